"""How well photos are inverted: python -m benchmarks.inversion out/generator.pth.

Two tests, both with the defaults of inverse_render.py:
- renders of the generator itself at random latents and poses, whose answer is known exactly;
- held-out toy cars, for a generator that was trained on ToyCars: one view is fitted, and views
  from other sides are compared with renders of the same car. Nothing tells an unposed generator
  where yaw 0 is, so yaw errors are about their common offset.
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import checkpoints
from checkpoints import SavedGenerator
from generators.cameras import Poses, sample_poses
from generators.generators import View
from generators.latents import sample_latents
from generators.volumetric_rendering import RenderOptions
from scenes.rendering import render_cars
from scenes.toy_car_images import toy_car_scenes
from siren.film import Film
from training import inversion
from training.inversion import FitOptions, Guess, Photo

HELD_OUT = 1_000_000  # number of the first car; training sees the first thousands
OFFSETS = (-0.5, -0.25, 0.25, 0.5)  # radians of yaw from the fitted view


def psnr(one: Tensor, other: Tensor) -> float:
    """Peak signal-to-noise ratio of images in [-1, 1], dB."""
    return -10 * math.log10(max(1e-10, float(((one - other) / 2).square().mean())))


def turned(angle: Tensor, by: float) -> float:
    """The angle plus by, in degrees within +-180."""
    return (math.degrees(float(angle) + by) + 180) % 360 - 180


def fit(saved: SavedGenerator, image: Tensor, options: RenderOptions, fit: FitOptions) -> Guess:
    """What inverse_render.py makes of an image (3, H, W)."""
    guess, _ = inversion.fit_photo(
        saved.generator,
        Photo(image, torch.ones_like(image[0])),
        saved.curriculum.poses(),
        options,
        fit,
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


def own_renders(
    saved: SavedGenerator, options: RenderOptions, count: int, effort: FitOptions
) -> list[dict[str, float]]:
    """Fits of the generator's own renders: PSNR at the input view and errors of the pose."""
    rows = []
    for index in tqdm(range(count), unit="latent"):
        rng = torch.Generator().manual_seed(1000 + index)
        kind = saved.curriculum.settings.z_dist
        z = sample_latents(1, saved.generator.z_dim, kind=kind, rng=rng)
        poses = sample_poses(saved.curriculum.poses(), 1, rng=rng)
        with torch.no_grad():
            film = saved.generator.mapping(z)
        image = look(saved, film, poses, options).images[0]
        guess = fit(saved, image, options, effort)
        shown = look(saved, guess.film, guess.poses,
                     replace(options, fov_degrees=float(guess.fov_degrees)))  # fmt: skip
        rows.append(
            {
                "psnr_db": psnr(shown.images[0], image),
                "yaw_error_degrees": abs(turned(guess.poses.yaw - poses.yaw, 0)),
                "pitch_error_degrees": abs(turned(guess.poses.pitch - poses.pitch, 0)),
            }
        )
    return rows


def held_out_cars(
    saved: SavedGenerator, options: RenderOptions, count: int, effort: FitOptions
) -> list[dict[str, float]]:
    """Fits of one view of toy cars that training has not seen, and their other views."""
    rows = []
    numbers = range(HELD_OUT, HELD_OUT + count)
    cars, cameras = toy_car_scenes(numbers, seed=0, poses=saved.curriculum.poses())
    for index in tqdm(range(count), unit="car"):
        car = cars[index : index + 1]
        pitch, yaw = (angle[index : index + 1] for angle in cameras)
        true = render_cars(car, Poses(pitch, yaw), options.image_size, options.fov_degrees)
        guess = fit(saved, true.images[0] * 2 - 1, options, effort)
        camera = replace(options, fov_degrees=float(guess.fov_degrees))
        seen = look(saved, guess.film, guess.poses, camera)
        row = {
            "psnr_db": psnr(seen.images[0], true.images[0] * 2 - 1),
            "yaw_offset_degrees": turned(guess.poses.yaw - yaw, 0),
            "pitch_error_degrees": abs(turned(guess.poses.pitch - pitch, 0)),
        }
        novel, overlap = [], []
        for offset in OFFSETS:
            other = render_cars(car, Poses(pitch, yaw + offset), options.image_size,
                                options.fov_degrees)  # fmt: skip
            there = Poses(guess.poses.pitch, guess.poses.yaw + offset)
            seen = look(saved, guess.film, there, camera)
            novel.append(psnr(seen.images[0], other.images[0] * 2 - 1))
            inside, covered = other.depths[0].isfinite(), seen.opacities[0] > 0.5
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


def report(title: str, rows: list[dict[str, float]]) -> None:
    """Print medians and quartiles of each figure."""
    print(f"\n{title}, {len(rows)} of them: median (lower quartile, upper quartile)")
    for name in rows[0]:
        values = torch.tensor([row[name] for row in rows], dtype=torch.float64)
        low, middle, high = torch.quantile(values, torch.tensor([0.25, 0.5, 0.75]).double())
        print(f"  {name:22} {middle:8.3f} ({low:.3f}, {high:.3f})")


def main(argv: Sequence[str] | None = None) -> None:
    """Fit and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("generator", type=Path)
    parser.add_argument("--num_latents", type=int, default=20)
    parser.add_argument("--num_cars", type=int, default=20)
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--json", type=Path, help="write the figures of every fit")
    args = parser.parse_args(argv)
    saved = checkpoints.load_generator(args.generator)
    options = saved.curriculum.preview_render(saved.step, args.image_size)
    effort = FitOptions()
    rows = {"own": own_renders(saved, options, args.num_latents, effort)}
    if rows["own"]:
        report("renders of the generator", rows["own"])
        good = [r["psnr_db"] >= 30 and max(r["yaw_error_degrees"], r["pitch_error_degrees"]) <= 3
                for r in rows["own"]]  # fmt: skip
        print(f"  at least 30 dB and both angles within 3 degrees: {sum(good)} of {len(good)}")
    if args.num_cars:
        rows["cars"] = held_out_cars(saved, options, args.num_cars, effort)
        report("held-out toy cars", rows["cars"])
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
