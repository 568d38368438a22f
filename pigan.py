"""The functions for Python programs: their names and arguments stay as they are.

    import pigan
    saved = pigan.load("celeba/generator.pth", curriculum="CelebA")
    film = pigan.film(saved, seed=0, psi=0.7)
    view = pigan.render(saved, film, yaw=0.3)
    pigan.save_picture("picture.png", view)

docs/python.md has an example of each, and what the published code calls them. Errors of a file or
a value are `UsageError`s.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

import own_modules
import curriculums
from checkpoint_io import checkpoints
from checkpoint_io.checkpoints import Average, SavedGenerator
from generators.cameras import Poses, sample_poses
from generators.generators import View
from geometry import mesh_extraction, mesh_files
from geometry.density_grid import Cube
from geometry.mesh_extraction import Shape
from image_io import png
from rendering.viewing import mean_film, objects_of_seeds
from siren.film import Film
from system.errors import UsageError, choose

__all__ = ["Film", "Poses", "SavedGenerator", "Shape", "UsageError", "View", "density", "film",
           "load", "mean_film", "mesh", "render", "sample_poses", "save_mesh",
           "save_picture"]  # fmt: skip

own_modules.put_back()  # a program that imports pigan keeps its own modules


def load(
    path: Path | str,
    *,
    curriculum: str | None = None,
    curriculum_file: Path | str | None = None,
    ema: Average = "ema",
    device: torch.device | str = "cpu",
) -> SavedGenerator:
    """Load a generator, ours or a published one, with the averaged parameters beside it.

    Args:
        path: a `generator.pth`, or an average.
        curriculum: its name. A published file needs it, a file of ours contains its own.
        curriculum_file: Python file that defines the curriculum; None is the presets.
        ema: the average of decay 0.999 ("ema") or 0.9999 ("ema2"), or the raw parameters ("none").
            Without such a file the parameters are the raw ones; `average` of the result says so.
        device: device of the generator.

    Raises:
        UsageError: the file cannot be read, the curriculum is missing or is another one, or there
            is no such average.
    """
    choose("average", ema, dict.fromkeys(get_args(Average)))
    own_file = None if curriculum_file is None else Path(curriculum_file)
    named = None if curriculum is None else curriculums.load(curriculum, file=own_file)
    return checkpoints.load_generator(path, ema=ema, device=device, curriculum=named)


def film(saved: SavedGenerator, *, seed: int, psi: float = 1.0) -> Film:
    """Return the conditioning (1, F) of a seed's object, truncated to psi of the full variety.

    It is the object that the commands show for `--seeds SEED --psi PSI`. For latents of your own:
    `mean_film(saved).lerp(saved.generator.mapping(z), psi)`.
    """
    return objects_of_seeds(saved, [seed], psi=psi)[0].film


@torch.no_grad()
def render(
    saved: SavedGenerator,
    film: Film,
    *,
    yaw: float = 0.0,
    pitch: float = 0.0,
    image_size: int = 256,
    num_steps: int | None = None,
    fov_degrees: float | None = None,
) -> View:
    """Render the objects of film, without randomness.

    Args:
        saved: what load returned.
        film: conditioning of B objects.
        yaw: radians from the middle of the training cameras; positive moves the camera to the
            image's left.
        pitch: radians likewise; positive moves the camera down.
        image_size: pixels per side, H = W.
        num_steps: samples per ray in each of the two passes; None is twice those of the
            curriculum's first stage, as in the commands.
        fov_degrees: angle of view; None takes the curriculum's.

    Returns:
        images (B, 3, H, W) in [-1, 1], depths (B, H, W) in scene units, opacities (B, H, W).
    """
    curriculum = saved.curriculum
    options = curriculum.preview_render(saved.last_step, image_size)
    options = replace(
        options,
        num_steps=num_steps or 2 * curriculum.stage_settings(0).num_steps,
        fov_degrees=options.fov_degrees if fov_degrees is None else fov_degrees,
    )
    middle_pitch, middle_yaw = curriculum.poses().center()
    pitches = torch.full((len(film),), middle_pitch + pitch)
    poses = Poses(pitch=pitches, yaw=torch.full((len(film),), middle_yaw + yaw))
    return saved.generator.render(film, poses, options)


def density(saved: SavedGenerator, film: Film) -> Callable[[Tensor], Tensor]:
    """Return a function from points (P, 3), scene units, to raw densities (P,) of one object.

    Raw densities are those before clamp_mode: below zero is empty space under relu.
    """
    return saved.generator.density(film)


@torch.no_grad()
def mesh(
    saved: SavedGenerator, film: Film, *, resolution: int = 256, level: float | None = None
) -> Shape:
    """Extract the surface of one object, film (1, F), with colors.

    Args:
        saved: what load returned.
        film: conditioning of the object.
        resolution: voxels along each axis of the cube that the curriculum's rays see.
        level: raw density of the surface; None chooses the one that matches the renders best.

    Returns:
        values (N, N, N), the raw densities; level; mesh (vertices, triangles, normals, colors).

    Raises:
        UsageError: there is no surface at that level.
    """
    options = saved.curriculum.evaluation_render(saved.last_step)
    cube = Cube(side=options.visible_side, resolution=resolution)
    poses = saved.curriculum.poses()
    return mesh_extraction.take_shape(saved.generator, film, cube, options, poses, iso_level=level)


def save_mesh(path: Path | str, shape: Shape) -> None:
    """Write a shape's mesh as path's suffix says, .glb, .ply, .obj or .stl; else UsageError."""
    path = Path(path)
    choose("mesh format", path.suffix.removeprefix("."), mesh_files.MESH_FORMATS)
    mesh_files.save_mesh(path, shape.mesh)


def save_picture(path: Path | str, view: View) -> None:
    """Write the images of a view side by side as a png."""
    images = png.to_uint8(view.images)
    png.save_png(Path(path), png.grid(images, len(images)))
