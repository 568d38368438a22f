"""BOUNDARY: the shape of an object, and its picture: what extract_shapes and the viewer share."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from checkpoint_io.checkpoints import SavedGenerator
from generators.volumetric_rendering import LOCKED_DIRECTION, RenderOptions
from geometry import appearance, level, shading, surface, visibility
from geometry.density_grid import Cube, DensityGrid
from geometry.surface import Array, Mesh
from image_io import png
from rendering.viewing import SceneObject
from system.flags import UsageError

PLACES = 2  # behind each vertex, whose mean color it has
PREVIEW_SIZE, PREVIEW_VIEWS = 256, 4
PREVIEW_MARGIN = 1.1  # how much wider than the pictures that were trained on

Progress = Callable[[int, int], None]  # takes points that are evaluated, and that are needed


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which surface of an object.

    level: raw density on it; None is where it agrees best with the renders. is_dense: every voxel
    is evaluated, not only those near the surface. keeps_all: every piece, not only the largest.
    visible_only: without what no training camera can see.
    """

    level: float | None = None
    is_dense: bool = False
    keeps_all: bool = False
    visible_only: bool = False


class Shape(NamedTuple):
    """Raw densities (N, N, N) in a cube, the level of the surface, and the surface, colored."""

    values: Array
    level: float
    mesh: Mesh


def take_shape(
    saved: SavedGenerator,
    thing: SceneObject,
    cube: Cube,
    options: RenderOptions,
    wanted: Wanted,
    *,
    points_per_chunk: int,
    progress: Progress,
) -> Shape:
    """The shape of an object in a cube.

    Raises:
        UsageError: there is no surface in the cube.
    """
    density = saved.generator.density(thing.film, points_per_chunk=points_per_chunk)
    grid = DensityGrid(density, cube, radius=options.scene_radius, progress=progress)
    surface_level = _evaluate(grid, saved, thing, options, wanted)
    values: Array = grid.inside.numpy()
    mesh = surface.surface_mesh(values, cube, surface_level)
    if wanted.visible_only:
        poses = saved.curriculum.poses()
        mesh = visibility.visible_part(mesh, poses, options, spacing=cube.spacing)
    if not len(mesh.triangles):
        raise UsageError(
            f"{thing.name}: no surface at level {surface_level:g} in the cube; choose another "
            "--level, --cube_size or --center"
        )
    if not wanted.keeps_all:
        mesh = surface.largest_component(mesh)
    lattice = level.Lattice(grid.values, cube.first, cube.spacing)
    colors = _colors(saved, thing, mesh, lattice, options, points_per_chunk)
    return Shape(values, surface_level, replace(mesh, colors=colors))


def _evaluate(
    grid: DensityGrid,
    saved: SavedGenerator,
    thing: SceneObject,
    options: RenderOptions,
    wanted: Wanted,
) -> float:
    """Evaluate the grid as far as the surface needs it; returns the level of that surface."""
    first = grid.evaluate_first()
    chosen = wanted.level
    if chosen is None:
        lattice = level.Lattice(first, grid.cube.first, grid.first_step * grid.cube.spacing)
        chosen = level.choose_level(lattice, saved.curriculum.poses(), options)
    if chosen is None:
        raise UsageError(
            f"{thing.name}: nothing in the cube is opaque; give --level, or another "
            "--cube_size or --center"
        )
    grid.end_at_ball(chosen)
    if wanted.is_dense:
        grid.evaluate_dense()
    else:
        grid.refine(chosen)
    return chosen


@torch.no_grad()
def _colors(
    saved: SavedGenerator,
    thing: SceneObject,
    mesh: Mesh,
    lattice: level.Lattice,
    options: RenderOptions,
    points_per_chunk: int,
) -> Array:
    """Colors (V, 3) of the vertices as a camera sees them that looks straight at the surface."""
    field = saved.generator.field(thing.film, points_per_chunk=points_per_chunk)
    vertices, normals = torch.from_numpy(mesh.vertices), torch.from_numpy(mesh.normals)
    places = appearance.lit_places(vertices, normals, lattice, options, count=PLACES)
    directions = -normals
    if options.lock_view_dependence:
        directions = directions.new_tensor([LOCKED_DIRECTION])
    device = thing.film.frequencies.device
    samples = field(places.flatten(0, 1)[None].to(device), directions[None].to(device))
    colors: Array = samples[0, :, :3].unflatten(0, (-1, PLACES)).mean(1).cpu().numpy()
    return colors


def save_preview(path: Path, mesh: Mesh, saved: SavedGenerator, options: RenderOptions) -> None:
    """Write the mesh from several sides: above with its colors, below as clay."""
    distribution = saved.curriculum.poses()
    pitch, yaw = distribution.center()
    fov = min(170.0, PREVIEW_MARGIN * options.fov_degrees)
    pairs = [
        shading.picture(mesh, pitch, side, PREVIEW_SIZE, fov)
        for side in shading.side_views(yaw, distribution.yaw_spread, PREVIEW_VIEWS)
    ]
    views = torch.stack([image for row in zip(*pairs, strict=True) for image in row])
    png.save_png(path, png.to_uint8(png.grid(views * 2 - 1, PREVIEW_VIEWS)))
