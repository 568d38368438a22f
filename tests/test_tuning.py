"""Tuning to a photo: what changes and what stays, the file, and the commands that take it."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import TINY

import extract_shapes
import render_multiview_images
import render_video
import render_video_interpolation
import viewer
from checkpoint_io import checkpoints
from config import curriculum
from generators import tuning
from generators.cameras import Poses, sample_poses
from generators.inversion import (
    FitOptions,
    FitTask,
    Guess,
    Photo,
    photo_losses,
    render_guess,
)
from generators.sampling import sample_latents
from generators.trajectories import Camera, SceneObject
from generators.tuning import Tuning, seen_in, tune, tuned_film
from generators.volumetric_rendering import RenderOptions
from geometry import mesh_extraction
from system.errors import UsageError


@pytest.fixture
def saved(tiny_run):
    """Return the tiny generator in a bounded scene: its views change smoothly."""
    saved = checkpoints.load_generator(tiny_run / "generator.pth")
    saved.generator.siren.density_scale = 200.0
    bounded = {**TINY, "scene_radius": 0.1, "density_scale": 200}
    return replace(saved, curriculum=curriculum.build("Bounded", bounded))


def guess_of(saved, seed, count=1):
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        film = saved.generator.mapping(sample_latents(count, 6, kind="gaussian", rng=rng))
    poses = sample_poses(saved.curriculum.poses(), count, rng=rng)
    return Guess(film, poses, torch.full((count,), 12.0))


def tuned_to_noise(saved, steps):
    """Tune to a photo that no object of the generator looks like; return guess, photo, result."""
    guess, options = guess_of(saved, 3), saved.curriculum.preview_render(0, 16)
    with torch.no_grad():
        image, _ = render_guess(saved.generator, guess, options, 16)
    stripes = 0.4 * torch.sin(torch.arange(16.0))[None, :, None]
    photo = Photo((image[0] + stripes).clamp(-1, 1), torch.ones(16, 16))
    task = FitTask(
        generator=saved.generator, poses=saved.curriculum.poses(), options=options,
        effort=FitOptions(), kind="gaussian", rng=torch.Generator().manual_seed(0),
        report=lambda *_: None,
    )  # fmt: skip
    return guess, photo, tune(task, guess, [photo], steps=steps)


def loss_of(saved, guess, photo):
    with torch.no_grad():
        seen = render_guess(saved.generator, guess, saved.curriculum.preview_render(0, 16), 16)
        return float(photo_losses(*seen, photo))


def test_tuning_nears_the_photo_and_leaves_the_generator_alone(saved):
    before = checkpoints.fingerprint(saved.generator)
    guess, photo, found = tuned_to_noise(saved, 40)
    tuned = replace(guess, film=tuned_film(saved.generator.siren, guess.film, found))
    assert loss_of(saved, tuned, photo) < 0.98 * loss_of(saved, guess, photo)  # shapes are kept
    assert checkpoints.fingerprint(saved.generator) == before
    assert found.factors.dtype == torch.float16


def test_tuning_sees_twice_the_samples_of_training(saved, monkeypatch):
    taken = set()

    def render(generator, guess, options, size):
        taken.add(options.num_steps)
        return render_guess(generator, guess, options, size)

    monkeypatch.setattr(tuning, "render_guess", render)
    tuned_to_noise(saved, 1)
    assert taken == {2 * saved.curriculum.preview_render(0, 16).num_steps}


def change_of_neighbors(saved, found):
    """Return the mean squared change of renders of other objects."""
    others, options = guess_of(saved, 11, 6), saved.curriculum.preview_render(0, 16)
    changes = tuning.weight_changes(saved.generator.siren, found).expand(6, -1)
    changed = replace(others, film=replace(others.film, weight_changes=changes))
    with torch.no_grad():
        old, new = (render_guess(saved.generator, each, options, 16)[0]
                    for each in (others, changed))  # fmt: skip
    return float((old - new).square().mean())


def test_neighbors_are_kept(saved, monkeypatch):
    kept = change_of_neighbors(saved, tuned_to_noise(saved, 30)[2])
    for name in ("KEEPING", "KEEPING_SHAPE"):
        monkeypatch.setattr(tuning, name, 0.0)
    assert kept < 0.7 * change_of_neighbors(saved, tuned_to_noise(saved, 30)[2])


BALL = RenderOptions(image_size=33, fov_degrees=20.0, near=0.7, far=1.3, num_steps=4)
HALF_SIDE = math.tan(math.radians(10))  # of a picture, at distance 1


def view_of_ball(yaw):
    """Return a view of a ball of radius 0.1 in the middle; it looks the same from anywhere."""
    poses = Poses(torch.tensor([math.pi / 2]), torch.tensor([yaw]))
    x = torch.linspace(-1, 1, 33) * HALF_SIDE
    squares = x[None, :].square() + x[:, None].square()
    cosine = 1 / (1 + squares).sqrt()
    inner = 0.1**2 - (1 - cosine.square())
    depths = torch.where(inner > 0, cosine - inner.clamp(min=0).sqrt(), 1.3)[None]
    opacities = (inner > 0).float()[None]
    seen = tuning.View(torch.zeros(1, 3, 33, 33), depths, opacities)
    return seen, Guess(None, poses, torch.tensor([20.0]))


def test_a_ball_is_seen_from_its_front_only():
    front, found = view_of_ball(0.4)
    shares = []
    for turn in (0.0, 0.5, math.pi):
        there, guess = view_of_ball(0.4 + turn)
        seen, _ = seen_in(front, found, there, guess, BALL)
        assert not (seen & (there.opacities < 0.5)).any()
        shares.append(float(seen.sum() / there.opacities.sum()))
    assert shares[0] > 0.95
    assert 0.5 < shares[1] < 0.95
    assert shares[2] < 0.1


@pytest.mark.parametrize("is_masked", [False, True])
def test_other_sides_get_the_colors_of_the_photo_where_it_shows_the_same_surface(is_masked):
    front, found = view_of_ball(0.4)
    views = [view_of_ball(0.4 + turn) for turn in (0.5, math.pi, 0.0)]  # the last: another object
    there = tuning.View(*(torch.cat(parts) for parts in zip(*(v for v, _ in views), strict=True)))
    poses = Poses(*(torch.cat(parts) for parts in zip(*(g.poses for _, g in views), strict=True)))
    guess = Guess(None, poses, torch.full((3,), 20.0))
    ramp = torch.linspace(-1, 1, 33).expand(3, 33, 33)  # a photo that shows where it was taken from
    photo = Photo(ramp, torch.full((33, 33), 0.0 if is_masked else 1.0))
    colors, weight = tuning._wanted([front], [found], [photo], there, guess, BALL)
    taken = weight == tuning.KEEPING_SEEN
    assert not taken[1:].any()
    assert (colors[~taken[:, None].expand_as(colors)] == 0).all()  # as before
    assert bool(taken[0, 16, 16]) is not is_masked
    if not is_masked:  # the middle of the turned view is a point of the ball's surface
        aside, ahead = 0.1 * math.sin(0.5), 1 - 0.1 * math.cos(0.5)
        assert abs(float(colors[0, 0, 16, 16])) == pytest.approx(
            aside / ahead / HALF_SIDE, rel=0.01
        )


@pytest.fixture
def paths(tiny_run, tmp_path):
    """Return the generator, the fit of an object and the same tuned, as files."""
    generator = tiny_run / "generator.pth"
    saved = checkpoints.load_generator(generator)
    count = tuning.num_factors(saved.generator.siren, 3)
    found = Tuning(3, torch.randn(count, generator=torch.Generator().manual_seed(2)).half())
    film = guess_of(saved, 8).film
    fits = []
    for name, one in (("plain", None), ("tuned", found)):
        shown = film if one is None else tuned_film(saved.generator.siren, film, one)
        fits.append(tmp_path / name / "fit.pth")
        fits[-1].parent.mkdir()
        shot = SceneObject("car", shown, Camera(1.3, 2.0, 15.0))
        checkpoints.save_fit(fits[-1], shot, saved, one)
    return generator, *fits, saved, shown


def test_a_tuned_fit_is_read_as_it_was_written(paths):
    _, plain, tuned, saved, film = paths
    assert checkpoints.load_fit(plain, saved).film.weight_changes is None
    assert torch.equal(checkpoints.load_fit(tuned, saved).film.weight_changes, film.weight_changes)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"rank": 0}, "of rank 0, not 1 to"),
        ({"rank": 10**12}, "of rank 1000000000000"),
        ({"rank": True}, "a bool as 'rank'"),
        ({"rank": 4}, "of shape"),
        ({"rank": None}, "NoneType as 'rank'"),
        ({"factors": None}, "no tensor as factors"),
        ({"factors": torch.zeros(1)}, "of shape [1]"),
        ({"factors": "all nan"}, "not finite"),
        ({"factors": "integers"}, "of type int64"),
        ({"generator": "0" * 64}, "fitted with another generator"),
    ],
)
def test_a_hostile_tuning_is_one_line(paths, changes, text):
    _, _, tuned, saved, _ = paths
    content = checkpoints.read(tuned, "fit")
    like = content["factors"]
    special = {"all nan": like * math.nan, "integers": like.long()}
    changed = {name: special.get(value, value) if isinstance(value, str) else value
               for name, value in changes.items()}  # fmt: skip
    checkpoints.save(tuned, "fit", {**content, **changed})
    with pytest.raises(UsageError) as error:
        checkpoints.load_fit(tuned, saved)
    assert text in str(error.value)
    assert "\n" not in str(error.value)


TINY_PICTURES = ["--image_size", "12", "--ray_step_multiplier", "1"]
COMMANDS = {
    "pictures": (render_multiview_images, TINY_PICTURES, "grid_car.png"),
    "video": (render_video, [*TINY_PICTURES, "--num_frames", "2", "--format", "webp"], "car.webp"),
    "shape": (extract_shapes, ["--level", "0", "--voxel_resolution", "12"], "car.mrc"),
    "viewer": (viewer, ["--save_picture", "--image_size", "12"], "*.png"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_show_the_tuned_object(paths, tmp_path, monkeypatch, name):
    monkeypatch.setattr(mesh_extraction, "PREVIEW_SIZE", 24)
    generator, *fits, _, _ = paths
    command, flags, output = COMMANDS[name]
    results = []
    for fit in fits:
        named = fit.rename(fit.with_name("car.pth"))
        folder = tmp_path / f"out_{fit.parent.name}"
        words = [generator, "--fit", named, "--output_dir", folder, "--device", "cpu", *flags]
        command.main([str(word) for word in words])
        (path,) = folder.glob(output)
        results.append(path.read_bytes())
    assert results[0] != results[1]


def test_an_interpolation_passes_the_tuned_object(paths):
    _, plain, tuned, saved, film = paths
    objects = [checkpoints.load_fit(path, saved) for path in (plain, tuned)]
    shots = render_video_interpolation.morph(objects, [[Camera(1.0, 1.0, 12.0)] * 2] * 2)
    changes = [shot.film.weight_changes for shot in shots]
    for found, weight in zip(changes, (0, 0.5, 1, 0.5), strict=True):
        torch.testing.assert_close(found, weight * film.weight_changes)
