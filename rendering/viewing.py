"""Turn flags into a generator, the objects to show and the options to render them with.

A command reads top-down: its parser is made of `add_generator`, `add_objects` and `add_rendering`;
`open_generator`, `objects_to_show` and `render_options` return what these flags name.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import torch

import curriculums
from checkpoint_io import checkpoints
from checkpoint_io.checkpoints import SavedGenerator
from generators.fields import default_chunk
from generators.generators import ImplicitGenerator3d
from generators.sampling import sample_latents
from generators.trajectories import Camera, SceneObject
from generators.volumetric_rendering import RenderOptions
from siren.film import Film
from siren.fused import arithmetic
from system import flags, machine
from system.errors import UsageError

Precision = Literal["exact", "fast"]
MEAN_LATENTS = 10_000  # latents whose mean is the center of truncation, as published
MAX_PSI = 10  # far beyond the published values, which are at most 1
MEAN_SEED = 0  # of that mean: the same for every picture, so that seeds are reproducible
# Operands' type of --precision fast: float16 is eight times finer, but CPUs have bfloat16 at best.
FAST_DTYPES = {"cuda": torch.float16}
if arithmetic.HAS_BFLOAT16_INSTRUCTIONS:
    FAST_DTYPES["cpu"] = torch.bfloat16


def add_generator(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a generator and of the evaluation of its field, for open_generator."""
    add = parser.add_argument
    add("generator", type=Path, metavar="generator.pth", help="of a run, or a published one")
    add("--curriculum", help="curriculum of its training; our own files "
        "contain it, for published ones the default is CelebA")  # fmt: skip
    add("--curriculum_file", type=Path, help="Python file with curriculum dicts of your own")
    add("--ema", choices=["ema", "ema2", "none"], default="ema", help="which averaged parameters "
        "beside the generator to use; none takes the raw ones")  # fmt: skip
    flags.add_device(parser)
    add("--max_batch_size", type=flags.positive_int, default=2_400_000, help="the most points in "
        "one call of the field; a smaller number is chosen by itself")  # fmt: skip
    add("--precision", choices=get_args(Precision), default="exact", help="fast rounds the "
        "field's products to half precision, and skips empty space")  # fmt: skip
    add("--lock_view_dependence", action="store_true", help="show the field one viewing direction "
        "for all rays")  # fmt: skip


def add_objects(parser: argparse.ArgumentParser, *, psi: float) -> argparse._MutuallyExclusiveGroup:
    """Add the flags of the objects to show, for objects_to_show; return their exclusive group."""
    which = parser.add_mutually_exclusive_group()
    flags.add_seeds(which)
    which.add_argument("--fit", type=Path, nargs="+", default=[], metavar="fit.pth", help="objects "
        "that inverse_render.py fitted to photos, in place of seeds")  # fmt: skip
    parser.add_argument("--psi", type=flags.number(0, MAX_PSI), default=psi, help="truncation: 0 "
        "is the mean object, 1 the full variety, more exaggerates")  # fmt: skip
    return which


def add_rendering(parser: argparse.ArgumentParser) -> None:
    """Add the flags of pictures, for render_options."""
    add = parser.add_argument
    add("--image_size", type=flags.pixels, default=256, help="pixels per side")
    add("--ray_step_multiplier", type=flags.whole(1, 1000), default=2, help="samples per ray, as "
        "a multiple of the curriculum's first stage")  # fmt: skip


def open_generator(args: argparse.Namespace) -> SavedGenerator:
    """Load the generator that add_generator's flags name; UsageError if it cannot be read."""
    curriculum = None
    if args.curriculum is not None or args.curriculum_file is not None:
        curriculum = curriculums.load(args.curriculum or "CelebA", file=args.curriculum_file)
    device = flags.resolve_device(args.device)
    saved = checkpoints.load_generator(
        args.generator,
        ema=args.ema,
        device=device,
        curriculum=curriculum,
        published_curriculum=curriculums.load("CelebA"),
    )
    if saved.is_published and curriculum is None:
        print(f"{saved.path}: published files don't say their curriculum; taking the cameras of "
              f"{saved.curriculum.name} (--curriculum names another)", file=sys.stderr)  # fmt: skip
    _require_average(saved, args)
    if saved.average != args.ema and saved.average == "none":
        print(f"{saved.path}: no {args.ema}.pth beside it; using the raw parameters",
              file=sys.stderr)  # fmt: skip
    if device.type == "cpu":
        machine.use_one_thread_for(saved.generator.siren.hidden_dim)
    set_precision(saved.generator, args.precision)
    saved.generator.points_per_chunk = min(args.max_batch_size, default_chunk(device))
    return saved


def _require_average(saved: SavedGenerator, args: argparse.Namespace) -> None:
    """Refuse all parameters except those of --ema ema2, which is never the default."""
    if args.ema != "ema2" or saved.average == "ema2":
        return
    path: Path = args.generator
    there = sorted(file.name for file in path.parent.glob("*.pth"))
    reason = f"is {saved.average}.pth" if saved.average == "ema" else "has no ema2.pth beside it"
    raise UsageError(f"--ema ema2: {path} {reason}; in that folder are {', '.join(there)}")


def set_precision(generator: ImplicitGenerator3d, precision: Precision) -> None:
    """Choose how exactly a trained generator renders; see docs/speed.md."""
    is_fast = precision == "fast"
    generator.field_dtype = FAST_DTYPES.get(generator.device.type) if is_fast else None
    generator.skips_empty_space = is_fast


def objects_to_show(saved: SavedGenerator, args: argparse.Namespace) -> list[SceneObject]:
    """Return the objects of --fit (UsageError as in fitted_objects), or those of --seeds."""
    if not args.fit:
        if args.psi > 1:
            print(f"note: --psi {args.psi:g} is beyond 1, the variety of training; objects may "
                  "fall apart", file=sys.stderr)  # fmt: skip
        return objects_of_seeds(saved, args.seeds, psi=args.psi)
    return fitted_objects(saved, args.fit)


def fitted_objects(saved: SavedGenerator, paths: Sequence[Path]) -> list[SceneObject]:
    """Load one object per file of --fit; UsageError if one does not fit, or two have one name."""
    objects: dict[str, SceneObject] = {}
    for path in paths:
        fit = checkpoints.load_fit(path, saved)
        if fit.name in objects:
            raise UsageError(f"--fit {path}: another fit is called {fit.name} too; rename one")
        objects[fit.name] = fit
    return list(objects.values())


def objects_of_seeds(
    saved: SavedGenerator, seeds: Sequence[int], *, psi: float, mean: Film | None = None
) -> list[SceneObject]:
    """Return one object per seed, seen from the middle of the curriculum's cameras.

    A seed always gives the same object, also among others: its latent is the first draw of a CPU
    stream with that seed, as published. mean is what mean_film returns, where it is known already.
    """
    mean = mean_film(saved) if mean is None else mean
    kind, camera = saved.curriculum.settings.z_dist, usual_camera(saved)
    objects = []
    with torch.no_grad():
        for seed in seeds:
            rng = torch.Generator().manual_seed(seed)
            z = sample_latents(1, saved.generator.z_dim, kind=kind, rng=rng)
            film = mean.lerp(saved.generator.mapping(z), psi)
            objects.append(SceneObject(str(seed), film, camera))
    return objects


def usual_camera(saved: SavedGenerator) -> Camera:
    """Return the camera in the middle of the training cameras."""
    return Camera(*saved.curriculum.poses().center(), saved.curriculum.settings.fov)


def mean_film(saved: SavedGenerator) -> Film:
    """Compute the center of truncation (1, F)."""
    rng = torch.Generator().manual_seed(MEAN_SEED)
    kind = saved.curriculum.settings.z_dist
    latents = sample_latents(MEAN_LATENTS, saved.generator.z_dim, kind=kind, rng=rng)
    return saved.generator.average_film(latents)


def render_options(saved: SavedGenerator, args: argparse.Namespace) -> RenderOptions:
    """Return the options for finished pictures from the flags of add_rendering."""
    curriculum, is_locked = saved.curriculum, args.lock_view_dependence
    options = curriculum.preview_render(saved.last_step, args.image_size, is_locked=is_locked)
    num_steps = curriculum.stage_settings(0).num_steps * args.ray_step_multiplier
    return replace(options, num_steps=num_steps)
