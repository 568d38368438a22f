"""How well photos are inverted: python -m benchmarks.inversion out/generator.pth.

Two tests, both with the defaults of inverse_render.py:
- renders of the generator itself at random latents and poses, whose answer is known exactly;
- held-out toy cars, for a generator that was trained on ToyCars: one view is fitted, and views
  from other sides are compared with renders of the same car. Nothing tells an unposed generator
  where yaw 0 is, so yaw errors are about their common offset.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.held_out_cars import fit, held_out_cars, look, psnr, quartiles, turned
from checkpoint_io import checkpoints
from checkpoint_io.checkpoints import SavedGenerator
from generators.cameras import sample_poses
from generators.inversion import FitOptions
from generators.sampling import sample_latents
from generators.volumetric_rendering import RenderOptions


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


def report(title: str, rows: list[dict[str, float]]) -> None:
    """Print medians and quartiles of each figure."""
    print(f"\n{title}, {len(rows)} of them: median (lower quartile, upper quartile)")
    for name, (low, middle, high) in quartiles(rows).items():
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
