"""The presets of training curricula, and loading them by name.

Presets are plain dicts in the published schema; `config/schema.py` lists every key with its type,
range and default. Write your own in the same form and give it with --curriculum_file.
"""

import contextlib
import math
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from own_modules import ROOT, is_from
from config.curriculum import Curriculum, build
from config.schema import keys_set_twice, values_of
from system.errors import UsageError, choose, nearest_path

PAPER_LATITUDES = math.pi / 4 * 85 / 90  # CARLA's cameras: upper hemisphere minus 5 degrees

_AROUND_FRONT: dict[str | int, Any] = {
    "fov": 12,
    "ray_start": 0.88,
    "ray_end": 1.12,
    "sample_dist": "gaussian",
    "h_mean": math.pi / 2,
    "v_mean": math.pi / 2,
    "h_stddev": 0.3,
    "v_stddev": 0.155,
    "last_back": False,
    "eval_last_back": True,
}

_FACES: dict[str | int, Any] = {
    **_AROUND_FRONT,
    "dataset": "CelebA",
    "dataset_path": "data/celeba/img_align_celeba/*.jpg",
    "model": "SPATIALSIRENBASELINE",
    "generator": "ImplicitGenerator3d",
    "latent_dim": 256,
    "z_dist": "gaussian",
    "clamp_mode": "relu",
    "hierarchical_sample": True,
    "topk_interval": 2000,
    "topk_v": 0.6,
    "betas": (0, 0.9),
    "z_lambda": 0,
    "pos_lambda": 15,
}

CelebA: dict[str | int, Any] = {
    0: {
        "batch_size": 56,
        "num_steps": 12,
        "img_size": 64,
        "batch_split": 2,
        "gen_lr": 6e-5,
        "disc_lr": 2e-4,
    },
    200_000: {},
    **_FACES,
    "discriminator": "CCSEncoderDiscriminator",
    "fade_steps": 10_000,
    "r1_lambda": 0.2,
    "grad_clip": 10,
}

# The paper grows from 32 to 128 px but does not publish its schedule. This one is from a later
# public rerun on four devices.
_GROWING: dict[str | int, Any] = {
    0: {
        "batch_size": 26,
        "num_steps": 12,
        "img_size": 32,
        "batch_split": 1,
        "gen_lr": 2e-5,
        "disc_lr": 2e-4,
    },
    30_000: {
        "batch_size": 16,
        "num_steps": 12,
        "img_size": 64,
        "batch_split": 2,
        "gen_lr": 2e-5,
        "disc_lr": 2e-4,
    },
    70_000: {
        "batch_size": 16,
        "num_steps": 12,
        "img_size": 64,
        "batch_split": 2,
        "gen_lr": 1e-5,
        "disc_lr": 1e-4,
    },
    100_000: {
        "batch_size": 4,
        "num_steps": 12,
        "img_size": 128,
        "batch_split": 2,
        "gen_lr": 2e-6,
        "disc_lr": 2e-5,
    },
    150_000: {},
    "discriminator": "ProgressiveEncoderDiscriminator",
    "fade_steps": 10_000,
    "r1_lambda": 1,
    "grad_clip": 0.3,
}

CelebA128: dict[str | int, Any] = {**_FACES, **_GROWING}

_CATS: dict[str | int, Any] = {
    **_FACES,
    "dataset": "Cats",
    "dataset_path": "data/cats/**/*.jpg",
    "ray_start": 0.8,
    "ray_end": 1.2,
    "sample_dist": "uniform",
    "h_stddev": 0.5,
    "v_stddev": 0.4,
    "pos_lambda": 0,
}

Cats: dict[str | int, Any] = {
    0: {
        "batch_size": 28,
        "num_steps": 24,
        "img_size": 64,
        "batch_split": 4,
        "gen_lr": 6e-5,
        "disc_lr": 2e-4,
    },
    200_000: {},
    **_CATS,
    "discriminator": "StridedDiscriminator",
    "fade_steps": 10_000,
    "r1_lambda": 0.2,
    "grad_clip": 10,
}

Cats128: dict[str | int, Any] = {**_CATS, **_GROWING}

_HEMISPHERE: dict[str | int, Any] = {
    "fov": 30,
    "ray_start": 0.7,
    "ray_end": 1.3,
    "sample_dist": "spherical_uniform",
    "h_mean": math.pi / 2,
    "v_mean": PAPER_LATITUDES,
    "h_stddev": math.pi,
    "v_stddev": PAPER_LATITUDES,
    "white_back": True,
    "clamp_mode": "relu",
    "hierarchical_sample": True,
    "z_dist": "gaussian",
    "betas": (0, 0.9),
    "z_lambda": 0,
    "pos_lambda": 0,
}

CARLA: dict[str | int, Any] = {
    0: {
        "batch_size": 30,
        "num_steps": 48,
        "img_size": 32,
        "batch_split": 1,
        "gen_lr": 4e-5,
        "disc_lr": 4e-4,
    },
    10_000: {
        "batch_size": 14,
        "num_steps": 48,
        "img_size": 64,
        "batch_split": 2,
        "gen_lr": 2e-5,
        "disc_lr": 2e-4,
    },
    55_000: {
        "batch_size": 10,
        "num_steps": 48,
        "img_size": 128,
        "batch_split": 5,
        "gen_lr": 1e-5,
        "disc_lr": 1e-4,
    },
    200_000: {},
    **_HEMISPHERE,
    "dataset": "Carla",
    "dataset_path": "data/carla/*.png",
    "model": "TALLSIREN",
    "discriminator": "ProgressiveEncoderDiscriminator",
    "latent_dim": 256,
    "fade_steps": 10_000,
    "topk_interval": 1000,
    "topk_v": 1,
    "r1_lambda": 10,
    "grad_clip": 1,
}


def _stage(img_size: int, gen_lr: float, **changes: float) -> dict[str, Any]:
    """Return a stage of the recipe below, in which the discriminator learns twice as fast."""
    sizes = {"batch_size": 16, "num_steps": 7, "img_size": img_size}
    return {**sizes, "gen_lr": gen_lr, "disc_lr": 2 * gen_lr, **changes}


# Our recipe. It learns from 16 pixels on, because steps of small images are cheap.
_RECIPE: dict[str | int, Any] = {
    **_HEMISPHERE,
    "model": "SPATIALSIRENBASELINE",
    "discriminator": "CCSDiscriminator",
    "resize": "points",
    "shares_fakes": True,
    "shares_jitter": True,
    "lock_view_dependence": True,  # colors do not depend on the viewing direction
    "fade_steps": 200,
    "density_noise_steps": 500,
    "topk_interval": 2000,
    "topk_v": 1,
    "r1_lambda": 0.2,
    "r1_interval": 2,
    "opacity_lambda": 2,  # against floating density; with 6, white parts dissolve on white ground
    "island_lambda": 64,  # photos of several things apart from each other need 0
    "grad_clip": 10,
    "preview_size": 64,
    # The size of the scene: for another one change these together with fov and the range of rays.
    "box_side": 0.5,
    "surface_width": 0.005,  # objects have a surface, and begin as a ball
    "density_scale": 0.05,  # outputs of 1 move the surface by this
    "eikonal_lambda": 0.1,
    "scene_radius": 0.27,  # the width of the image: no floating density outside of it
}

# Trains on the built-in toy cars in ten to twenty minutes on two processor cores.
Demo: dict[str | int, Any] = {
    0: _stage(16, 5e-4, r1_lambda=0.1, opacity_lambda=0.5),
    1500: _stage(32, 4e-4),
    # High rates learn fast, low ones well. What they have shaped is smoothed then.
    3400: _stage(32, 1.5e-4, smoothness_lambda=1),
    4600: {},
    **_RECIPE,
    "dataset": "ToyCars",
    "hidden_dim": 64,
    "num_layers": 3,
    "latent_dim": 64,
    "mapping_hidden_dim": 64,
    "discriminator_width": (64, 64, 64, 48, 32, 16),  # narrow where images are large: faster
}

# At this size even small islands are seen.
Demo64: dict[str | int, Any] = {
    **Demo,
    4600: _stage(64, 1.5e-4, island_lambda=256, smoothness_lambda=1),
    5200: {},
}

# For any folder of photos: only the cameras have to be set, and for objects of another size the
# last keys of the recipe. Networks twice as wide as those of Demo want half of its rates: Adam's
# steps do not shrink with the weights, and speckles are the sign of too large ones.
Objects64: dict[str | int, Any] = {
    0: _stage(16, 2.5e-4, r1_lambda=0.1, opacity_lambda=0.5),
    1500: _stage(32, 2e-4),
    3400: _stage(32, 7.5e-5, smoothness_lambda=1),
    4600: _stage(64, 7.5e-5, island_lambda=256, smoothness_lambda=1),
    6000: {},
    **_RECIPE,
    "dataset": "Images",
    "hidden_dim": 128,
    "num_layers": 4,
    "latent_dim": 128,
    "mapping_hidden_dim": 128,
    "discriminator_width": (128, 128, 128, 96, 64, 32),
}

Objects128: dict[str | int, Any] = {
    **Objects64,
    6000: _stage(128, 5e-5, island_lambda=256, smoothness_lambda=1),
    8000: {},
}

_FACE_SCENE: dict[str | int, Any] = {
    **_AROUND_FRONT,
    "white_back": False,
    "box_side": 0.48,
    "scene_radius": None,
    "discriminator": "CCSEncoderDiscriminator",
    "pos_lambda": 1,  # with 15, as in CelebA, the discriminator is too sure from the first steps on
}

Faces64: dict[str | int, Any] = {**Objects64, **_FACE_SCENE}
Faces128: dict[str | int, Any] = {**Objects128, **_FACE_SCENE}

PRESETS: dict[str, dict[str | int, Any]] = {
    "CelebA": CelebA,
    "CelebA128": CelebA128,
    "Cats": Cats,
    "Cats128": Cats128,
    "CARLA": CARLA,
    "Demo": Demo,
    "Demo64": Demo64,
    "Objects64": Objects64,
    "Objects128": Objects128,
    "Faces64": Faces64,
    "Faces128": Faces128,
}


def load(name: str, *, file: Path | None = None, overrides: Sequence[str] = ()) -> Curriculum:
    """Return the curriculum with this name, from the presets or a user's file.

    Upper and lower case are the same unless two names differ in nothing else.

    If the file sets a key in a stage and for the whole, otherwise than a preset that it copies, a
    note on stderr says which value is used.

    Raises:
        UsageError: no such name or file, or the dict does not follow the schema.
    """
    table = table_of(file)
    alike = [key for key in table if key.casefold() == name.casefold()]
    if name not in table and len(alike) > 1:
        raise UsageError(f"curriculum {name!r} may be {' or '.join(alike)}: write one of them")
    known = name if name in table or not alike else alike[0]
    source = choose("curriculum", known, table)
    built = build(known, source, overrides)
    ours = [values_of(preset, key) for preset in PRESETS.values() for key in preset]
    twice = [key for key in keys_set_twice(source) if values_of(source, key) not in ours]
    if twice:
        print(f"note: curriculum {known} sets {', '.join(twice)} in a stage and for the whole; the "
              "stage's value is taken (the published code takes the other)",
              file=sys.stderr)  # fmt: skip
    if any(stage.settings.instance_noise > 0 for _, stage in built.stages):
        print("note: instance_noise has no effect, as in the published code", file=sys.stderr)
    return built


def table_of(file: Path | None) -> dict[str, dict[str | int, Any]]:
    """Return the presets, and all dicts with a stage 0 that a user's Python file defines.

    Raises:
        UsageError: there is no such file, it cannot be run, or it defines no such dict.
    """
    if file is None:
        return PRESETS
    if not file.is_file():
        raise UsageError(f"--curriculum_file {file}: no such file.{nearest_path(file)}")
    try:
        with _importable(file.resolve().parent):
            names = runpy.run_path(str(file))
    except (Exception, SystemExit) as error:
        raise UsageError(f"--curriculum_file {file}: {type(error).__name__}: {error}") from error
    own = {k: v for k, v in names.items() if isinstance(v, dict) and 0 in v and k[0] != "_"}
    if not own:
        raise UsageError(f"--curriculum_file {file}: defines no dict with a stage 0")
    return {**PRESETS, **own}


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let code import the files of folder, and forget these modules at the end."""
    before, path = set(sys.modules), list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - before:
            if folder != ROOT and is_from(folder, name, sys.modules[name]):
                del sys.modules[name]
