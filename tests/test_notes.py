"""The start of training warns of pictures that generated ones cannot be like."""

import math

import numpy as np
import pytest

from config.curriculum import build
from curriculums import CelebA, Demo
from datasets import DatasetOptions, ImageSet
from training import notes

SIZE = 16
FACES = ["fov=12", "ray_start=0.88", "ray_end=1.12"]


def found(preset, pixels, *changes):
    """Return the notes on the ground of pictures (N, H, W) in one grey each."""
    render = build("Mine", preset, [f"0.img_size={SIZE}", *changes]).at(0).render
    pixels = np.repeat(np.asarray(pixels, np.uint8)[:, None], 3, axis=1)
    options = DatasetOptions(kind="Images", path="")
    images = ImageSet(pixels=pixels, options=options, skipped=(), fingerprint="", checksum=0)
    return notes.of_ground(images, render)


def disk(radius, count=40):
    """Return dark disks on white; the radius is a share of half of the picture's side."""
    axis = np.linspace(-1, 1, SIZE)
    return np.tile(np.where(np.hypot(axis, axis[:, None]) <= radius, 40, 255), (count, 1, 1))


def test_the_distances_are_those_of_rays_that_pass_the_middle():
    render = build("Mine", Demo, [f"0.img_size={SIZE}"]).at(0).render
    distances = notes.distances_from_middle(render).numpy()
    corner, edge = math.sqrt(2) * math.tan(math.radians(15)), math.tan(math.radians(15))
    assert distances[0, 0] == pytest.approx(math.sin(math.atan(corner)), abs=1e-6)
    assert distances.min() == pytest.approx(math.sin(math.atan(math.sqrt(2) * edge / 15)), abs=1e-6)


def test_a_ball_that_cuts_the_pictures_is_named_with_the_radius_that_does_not():
    assert found(Demo, disk(0.9)) == []
    whole = disk(2)
    whole[:, : SIZE // 2] = 255  # the lower corners are not white, as those of shoulders
    (note,) = found(Demo, whole, *FACES, "scene_radius=0.11")
    assert note.startswith("100% of the pictures")
    assert note.endswith("set it to 0.15")
    assert found(Demo, whole, *FACES, "scene_radius=0.15") == []
    few = np.concatenate([disk(0.5, 39), whole[:1]])
    assert found(Demo, few, *FACES, "scene_radius=0.11") == []  # one picture may be odd


def test_a_white_ground_that_the_pictures_do_not_have():
    photos = np.random.default_rng(0).integers(0, 200, (40, SIZE, SIZE))
    (note,) = found(Demo, photos)
    assert note.startswith("100% of the pictures have no white ground")
    assert found(Demo, photos, "white_back=False", "eval_last_back=True", "scene_radius=None") == []
    assert found(CelebA, photos) == []  # the field decides what is behind faces
    (note,) = found(Demo, photos, "white_back=False")
    assert note.startswith("100% of the pictures have no black ground")
