"""BOUNDARY: fits of single views of toy cars that training has not seen, and their other sides.

Nothing tells a generator that learned from unposed pictures where yaw 0 is: it finds the cars up to
a turn that all of them share. So errors of yaw are about that common turn.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm

from checkpoint_io.checkpoints import SavedGenerator
from generators import inversion
from generators.cameras import Poses
from generators.generators import View
from generators.inversion import FitOptions, Guess, Photo
from generators.volumetric_rendering import RenderOptions
from scenes.rendering import render_cars
from scenes.toy_car_images import toy_car_scenes
from siren.film import Film

HELD_OUT = 1_000_000  # number of the first car; training sees the first thousands
OFFSETS = (-0.5, -0.25, 0.25, 0.5)  # radians of yaw from the fitted view


def psnr(one: Tensor, other: Tensor) -> float:
    """Peak signal-to-noise ratio of images in [-1, 1], dB."""
    return -10 * math.log10(max(1e-10, float(((one - other) / 2).square().mean())))


def turned(angle: Tensor, by: float) -> float:
    """The angle plus by, in degrees within +-180."""
    return (math.degrees(float(angle) + by) + 180) % 360 - 180


def fit(saved: SavedGenerator, image: Tensor, options: RenderOptions, effort: FitOptions) -> Guess:
    """What inverse_render.py makes of an image (3, H, W)."""
    guess, _ = inversion.fit_photo(
        saved.generator,
        Photo(image, torch.ones_like(image[0])),
        saved.curriculum.poses(),
        options,
        effort,
        kind=saved.curriculum.settings.z_dist,
        rng=torch.Generator().manual_seed(0),
        report=lambda *_: None,
    )
    return guess


def look(saved: SavedGenerator, film: Film, poses: Poses, options: RenderOptions) -> View:
    """One view with twice the samples of training."""
    finer = replace(options, num_steps=2 * options.num_steps)
    with torch.no_grad():
        return saved.generator.render(film, poses, finer, points_per_chunk=2**17)


def held_out_cars(
    saved: SavedGenerator, options: RenderOptions, count: int, effort: FitOptions
) -> list[dict[str, float]]:
    """One row of figures per car: the fitted view, and views from OFFSETS against the truth.

    psnr_db of the fitted view; novel_psnr_db of the others and novel_silhouette_iou, the share of
    the joint silhouette that both cover (opacity above 1/2), means over OFFSETS; errors of the
    fitted pose in degrees.
    """
    rows = []
    numbers = range(HELD_OUT, HELD_OUT + count)
    cars, cameras = toy_car_scenes(numbers, seed=0, poses=saved.curriculum.poses())
    device = next(saved.generator.parameters()).device
    for index in tqdm(range(count), unit="car"):
        car = cars[index : index + 1]
        pitch, yaw = (angle[index : index + 1] for angle in cameras)
        true = render_cars(car, Poses(pitch, yaw), options.image_size, options.fov_degrees)
        image = true.images[0] * 2 - 1
        guess = fit(saved, image.to(device), options, effort)
        camera = replace(options, fov_degrees=float(guess.fov_degrees))
        seen = look(saved, guess.film, guess.poses, camera)
        row = {
            "psnr_db": psnr(seen.images[0].cpu(), image),
            "yaw_offset_degrees": turned(guess.poses.yaw.cpu() - yaw, 0),
            "pitch_error_degrees": abs(turned(guess.poses.pitch.cpu() - pitch, 0)),
        }
        novel, overlap = [], []
        for offset in OFFSETS:
            other = render_cars(car, Poses(pitch, yaw + offset), options.image_size,
                                options.fov_degrees)  # fmt: skip
            there = Poses(guess.poses.pitch, guess.poses.yaw + offset)
            seen = look(saved, guess.film, there, camera)
            novel.append(psnr(seen.images[0].cpu(), other.images[0] * 2 - 1))
            inside, covered = other.depths[0].isfinite(), seen.opacities[0].cpu() > 0.5
            overlap.append(float((inside & covered).sum() / (inside | covered).sum()))
        row |= {
            "novel_psnr_db": statistics.mean(novel),
            "novel_silhouette_iou": statistics.mean(overlap),
        }
        rows.append(row)
    _center_yaw(rows)
    return rows


def _center_yaw(rows: list[dict[str, float]]) -> None:
    """Replace yaw offsets by what is left of them about the offset that most rows share."""
    offsets = [row.pop("yaw_offset_degrees") for row in rows]

    def errors(common: float) -> list[float]:
        return [abs((offset - common + 180) % 360 - 180) for offset in offsets]

    common = min(offsets, key=lambda candidate: statistics.median(errors(candidate)))
    for row, error in zip(rows, errors(common), strict=True):
        row["yaw_error_degrees"] = error


def quartiles(rows: Sequence[dict[str, float]]) -> dict[str, tuple[float, float, float]]:
    """Lower quartile, median and upper quartile of each figure."""
    at = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    found = {}
    for name in rows[0]:
        values = torch.tensor([row[name] for row in rows], dtype=torch.float64)
        low, middle, high = torch.quantile(values, at).tolist()
        found[name] = (low, middle, high)
    return found
