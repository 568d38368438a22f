"""Extract the mesh of an object and render a preview of it."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from generators.cameras import PoseDistribution
from generators.generators import ImplicitGenerator3d
from generators.volumetric_rendering import LOCKED_DIRECTION, RenderOptions
from geometry import appearance, level, rasterizer, surface, visibility
from geometry.density_grid import Cube, DensityGrid, Progress
from geometry.surface import Array, Mesh
from image_io import png
from siren.film import Film
from system.errors import UsageError

COLOR_POINTS = 2  # behind each vertex; it gets their mean color
PREVIEW_SIZE, PREVIEW_VIEWS = 256, 4
PREVIEW_MARGIN = 1.1  # times the angle of view of training


class Shape(NamedTuple):
    """Raw densities (N, N, N) in a cube, the iso level, and the colored mesh at that level."""

    values: Array
    level: float
    mesh: Mesh


def take_shape(
    generator: ImplicitGenerator3d,
    film: Film,
    cube: Cube,
    options: RenderOptions,
    poses: PoseDistribution,
    *,
    iso_level: float | None = None,
    is_dense: bool = False,
    keeps_all: bool = False,
    visible_only: bool = False,
    name: str = "the object",
    progress: Progress = lambda done, needed: None,
) -> Shape:
    """Extract the shape of one object, film (1, F), from the region of a cube.

    options are those of its renders, poses the training cameras. iso_level: raw density of the
    surface; None chooses the one that matches the renders, or that of a distance of 0. is_dense:
    evaluate every voxel, not only those near the surface. keeps_all: keep every connected
    component, not only the largest. visible_only: cut away what no training camera can see. name is
    the object's in messages; progress is called with the numbers of points evaluated and needed so
    far. Raises UsageError if there is no surface in the cube.
    """
    density, kind = generator.density(film), generator.siren.surface
    if kind is not None and iso_level is None:
        iso_level = kind.level
    grid = DensityGrid(density, cube, radius=options.scene_radius, progress=progress)
    surface_level = _evaluate(grid, poses, name, options, iso_level, is_dense)
    values, value = grid.inside, torch.tensor(surface_level)
    if kind is not None:
        values, value = kind.inverse(values), kind.inverse(value)
    mesh = surface.surface_mesh(values.numpy(), cube, float(value))
    if visible_only:
        mesh = visibility.visible_part(mesh, poses, options, spacing=cube.spacing)
    if len(mesh.triangles) and not keeps_all:
        mesh = surface.largest_component(mesh)
    if not len(mesh.triangles):
        raise UsageError(
            f"{name}: no surface at level {surface_level:g} in the cube; choose another "
            "--level, --cube_size or --center"
        )
    lattice = level.Lattice(grid.values, cube.first, cube.spacing)
    colors = _colors(generator, film, mesh, lattice, options)
    return Shape(grid.inside.numpy(), surface_level, replace(mesh, colors=colors))


def _evaluate(
    grid: DensityGrid,
    poses: PoseDistribution,
    name: str,
    options: RenderOptions,
    chosen: float | None,
    is_dense: bool,
) -> float:
    """Evaluate the grid near the surface and return the iso level."""
    first = grid.evaluate_first()
    if chosen is None:
        lattice = level.Lattice(first, grid.cube.first, grid.first_step * grid.cube.spacing)
        chosen = level.choose_level(lattice, poses, options)
    if chosen is None:
        raise UsageError(
            f"{name}: nothing in the cube is opaque; give --level, or another "
            "--cube_size or --center"
        )
    grid.end_at_ball(chosen)
    if is_dense:
        grid.evaluate_dense()
    else:
        grid.refine(chosen)
    return chosen


@torch.no_grad()
def _colors(
    generator: ImplicitGenerator3d,
    film: Film,
    mesh: Mesh,
    lattice: level.Lattice,
    options: RenderOptions,
) -> Array:
    """Return vertex colors (V, 3) as a camera sees them that looks straight at the surface."""
    field = generator.field(film, points_per_chunk=generator.points_per_chunk)
    vertices, normals = torch.from_numpy(mesh.vertices), torch.from_numpy(mesh.normals)
    points = appearance.lit_points(vertices, normals, lattice, options, count=COLOR_POINTS)
    directions = -normals
    if options.lock_view_dependence:
        directions = directions.new_tensor([LOCKED_DIRECTION])
    device = film.frequencies.device
    samples = field(points.flatten(0, 1)[None].to(device), directions[None].to(device))
    colors: Array = samples[0, :, :3].unflatten(0, (-1, COLOR_POINTS)).mean(1).cpu().numpy()
    return colors


def save_preview(path: Path, mesh: Mesh, poses: PoseDistribution, options: RenderOptions) -> None:
    """Write a picture of the mesh from several sides: colored above, as clay below."""
    pitch, yaw = poses.center()
    fov = min(170.0, PREVIEW_MARGIN * options.fov_degrees)
    pairs = [
        rasterizer.picture(mesh, pitch, side, PREVIEW_SIZE, fov)
        for side in rasterizer.side_views(yaw, poses.yaw_spread, PREVIEW_VIEWS)
    ]
    views = torch.stack([image for row in zip(*pairs, strict=True) for image in row])
    png.save_png(path, png.to_uint8(png.grid(views * 2 - 1, PREVIEW_VIEWS)))
