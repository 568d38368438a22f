"""Density grids, iso levels, surfaces and their visibility, against closed forms."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial import cKDTree

from generators.cameras import PoseDistribution, Poses, cast_rays
from generators.volumetric_rendering import RenderOptions, render_rays
from geometry import appearance, density_grid, level, rasterizer, surface, visibility
from geometry.density_grid import Cube, DensityGrid
from geometry.rasterizer import project, visible_triangles

OPTIONS = RenderOptions(image_size=32, fov_degrees=30, near=0.7, far=1.3, num_steps=48)
AROUND = PoseDistribution(
    kind="spherical_uniform", yaw_mean=0, yaw_spread=math.pi, pitch_mean=0.7, pitch_spread=0.7
)
FRONT = PoseDistribution(
    kind="gaussian", yaw_mean=math.pi / 2, yaw_spread=0.3, pitch_mean=math.pi / 2, pitch_spread=0.1
)


def ball(center, radius, steepness=1.0):
    middle = torch.tensor(center)
    return lambda points: steepness * (radius - (points - middle).norm(dim=-1))


def torus(center, major, minor):  # its axis is y
    def density(points):
        x, y, z = (points - torch.tensor(center)).unbind(-1)
        return minor - ((x.square() + z.square()).sqrt() - major).square().add(y * y).sqrt()

    return density


def box(low, high):
    low, high = torch.tensor(low), torch.tensor(high)
    return lambda points: torch.minimum(points - low, high - points).amin(-1)


def union(*fields):
    return lambda points: torch.stack([field(points) for field in fields]).amax(0)


def cube_of(resolution, side=0.3, center=(0.0, 0.0, 0.0)):
    return Cube(center=center, side=side, resolution=resolution)


def first_grid(field, cube, radius=None, progress=lambda done, needed: None):
    grid = DensityGrid(field, cube, radius=radius, progress=progress)
    return grid, grid.evaluate_first()


def grid_of(field, cube, *, at=0.0, is_dense=False, radius=None):
    grid, _ = first_grid(field, cube, radius)
    grid.end_at_ball(at)
    if is_dense:
        grid.evaluate_dense()
    else:
        grid.refine(at)
    return grid


def mesh_of(field, cube, *, at=0.0, is_dense=False, radius=None):
    grid = grid_of(field, cube, at=at, is_dense=is_dense, radius=radius)
    return surface.surface_mesh(grid.inside.numpy(), cube, at)


def solid(mesh):
    return trimesh.Trimesh(mesh.vertices, mesh.triangles, process=False)


def hausdorff(one, other):
    """Return the Hausdorff distance between two sets of vertices."""
    ways = [(one.vertices, other.vertices), (other.vertices, one.vertices)]
    return max(cKDTree(to).query(of)[0].max() for of, to in ways)


def silhouette(mesh, pitch, yaw, size, fov, scale=(1, 1, 1)):
    """Return the pixels at which a camera sees a mesh."""
    vertices = torch.from_numpy(mesh.vertices) * torch.tensor(scale)
    seen = project(vertices, pitch, yaw, size, fov)
    return visible_triangles(seen, torch.from_numpy(mesh.triangles).long(), size) >= 0


def overlap(one, other):
    return float((one & other).sum() / (one | other).sum())


@pytest.mark.parametrize("side_to_spare", [0.0, 0.11])
def test_ball_at_128(side_to_spare):
    center, radius = [0.013, -0.02, 0.031], 0.08
    cube = cube_of(128, 0.3 + side_to_spare, (0.01, 0.0, 0.02))
    found = mesh_of(ball(center, radius), cube)
    outward = (found.vertices - np.float32(center)) / radius
    assert (found.normals * outward).sum(1).min() > 0.99
    np.testing.assert_allclose(np.linalg.norm(found.normals, axis=1), 1, atol=1e-5)
    mesh = solid(found)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.01)
    assert mesh.area == pytest.approx(4 * math.pi * radius**2, rel=0.01)
    assert np.abs(mesh.center_mass - center).max() < 0.01 * radius


def test_torus_at_128():
    center, major, minor = [-0.02, 0.01, 0.015], 0.08, 0.03
    mesh = solid(mesh_of(torus(center, major, minor), cube_of(128)))
    assert mesh.is_watertight
    assert mesh.euler_number == 0
    assert mesh.volume == pytest.approx(2 * math.pi**2 * major * minor**2, rel=0.01)
    assert mesh.area == pytest.approx(4 * math.pi**2 * major * minor, rel=0.01)
    assert np.abs(mesh.center_mass - center).max() < 0.01 * major


def test_outermost_voxels_lie_on_the_faces_of_the_cube():
    cube = cube_of(11, 0.3, (1.0, 2.0, 3.0))
    corners = cube.points(torch.tensor([[0, 0, 0], [10, 5, 0]]))
    torch.testing.assert_close(corners, torch.tensor([[0.85, 1.85, 2.85], [1.15, 2.0, 2.85]]))
    ramp = grid_of(lambda points: points[:, 0] + 10 * points[:, 2], cube, is_dense=True).inside
    assert ramp[10, 0, 0] - ramp[0, 0, 0] == pytest.approx(0.3, abs=1e-4)
    assert ramp[0, 0, 10] - ramp[0, 0, 0] == pytest.approx(3.0, abs=1e-4)


@pytest.mark.parametrize("resolution", [99, 130])
def test_coarse_to_fine_is_the_dense_mesh(resolution, monkeypatch):
    monkeypatch.setattr(density_grid, "COARSE", 1)  # a spacing of four voxels at any size
    cube, side = cube_of(resolution), 0.3 / (resolution - 1)
    sheet = box([-0.1, 0.05, -0.1], [0.02, 0.05 + 1.2 * side, 0.1])  # thinner than the first pass
    field = union(ball([0.03, 0.02, -0.01], 0.06), torus([0.0, -0.05, 0.0], 0.09, 0.01), sheet)
    fine, dense = (mesh_of(field, cube, is_dense=flag) for flag in (False, True))
    assert np.array_equal(fine.triangles, dense.triangles)
    assert np.abs(fine.vertices - dense.vertices).max() < 0.05 * side
    grid = grid_of(field, cube)
    assert grid.is_known.sum() < 0.25 * resolution**3


@pytest.mark.parametrize("shift", range(5))
def test_no_block_of_four_voxels_is_lost(shift, monkeypatch):
    monkeypatch.setattr(density_grid, "COARSE", 1)
    cube = cube_of(65, 64.0, (32.0, 32.0, 32.0))  # places are voxels
    low = [20 + shift, 21 + 3 * shift % 7, 31 - shift]
    small = box([x - 0.4 for x in low], [x + 3.4 for x in low])  # holds 4 x 4 x 4 voxels
    field = union(small, ball([45.0, 45.0, 45.0], 9.0))
    fine, dense = (mesh_of(field, cube, is_dense=flag) for flag in (False, True))
    assert solid(fine).body_count == solid(dense).body_count == 2
    assert hausdorff(fine, dense) <= 0.5


def test_a_grid_of_noise_is_closed_and_each_vertex_has_its_own_place():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((20, 20, 20)).astype(np.float32)
    values[::3] = 0.0  # the level itself
    mesh = surface.surface_mesh(values, cube_of(20), 0.0)
    assert solid(mesh).is_watertight
    assert solid(mesh).volume > 0
    assert len(np.unique(mesh.vertices, axis=0)) == len(mesh.vertices)


def test_a_surface_that_leaves_the_cube_is_closed_half_a_voxel_outside():
    cube = cube_of(31, 0.3)
    mesh = solid(mesh_of(box([-0.05, -1.0, -0.05], [0.05, 1.0, 0.05]), cube))
    assert mesh.is_watertight
    assert mesh.bounds[:, 1].tolist() == pytest.approx([-0.155, 0.155])


def test_a_scene_ends_at_its_ball():
    cube, radius = cube_of(48), 0.1
    asked = []

    def everywhere(points):
        asked.append(points.norm(dim=1).max())
        return torch.full((len(points),), 50.0) + points[:, 0]

    mesh = solid(mesh_of(everywhere, cube, at=20.0, radius=radius))
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.01)
    assert max(asked) < radius + 2 * 4 * cube.spacing


def test_progress_ends_at_what_was_needed():
    seen = []
    grid, _ = first_grid(ball([0, 0, 0], 0.1), cube_of(64), progress=lambda *now: seen.append(now))
    grid.refine(0.0)
    grid.evaluate_dense()
    assert seen[-1][0] == seen[-1][1] == int(grid.is_known.sum())


def level_of(field, cube, poses=AROUND, options=OPTIONS):
    grid, first = first_grid(field, cube)
    spacing = grid.first_step * cube.spacing
    return level.choose_level(level.Lattice(first, cube.first, spacing), poses, options)


@pytest.mark.parametrize("steepness", [1e5, 1e7])
def test_the_level_of_a_hard_surface_is_at_that_surface(steepness):
    cube = cube_of(64, 0.5)
    field = ball([0.02, 0.0, -0.03], 0.12, steepness)
    mesh = solid(mesh_of(field, cube, at=level_of(field, cube)))
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * 0.12**3, rel=0.02)


@pytest.mark.parametrize("scale", [0.3, 3.0])
@pytest.mark.parametrize("activation", ["relu", "softplus"])
def test_the_outline_at_the_chosen_level_is_the_rendered_one(scale, activation):
    options = replace(OPTIONS, density_activation=activation, num_steps=96, image_size=64)
    soft = ball([0.02, 0.01, -0.03], 0.17, 400 * scale)
    empty = 0.0 if activation == "relu" else 6.0  # softplus(-6) is almost 0

    def field(points):
        return soft(points) - empty

    cube = cube_of(64, 0.6)
    chosen = level_of(field, cube, options=options)
    mesh = mesh_of(field, cube, at=chosen)
    rays = cast_rays(Poses(torch.tensor([1.2]), torch.tensor([0.5])), 64, 30)
    bounded = replace(options, scene_radius=0.3)
    rendering = render_rays(
        lambda points, _: torch.cat([torch.zeros_like(points), field(points)[..., None]], -1),
        rays, bounded, rng=None,
    )  # fmt: skip
    is_opaque = rendering.opacity.view(64, 64) > 0.5
    assert overlap(is_opaque, silhouette(mesh, 1.2, 0.5, 64, 30)) > 0.97


def test_empty_space_has_no_level():
    assert level_of(lambda points: -torch.ones(len(points)), cube_of(32)) is None


def test_a_lattice_is_trilinear_and_keeps_its_axes():
    values = torch.arange(27.0).view(3, 3, 3)
    lattice = level.Lattice(values, (0.0, 0.0, 0.0), 1.0)
    places = torch.tensor([[2.0, 1.0, 0.0], [0.5, 0.0, 1.25], [0.0, 2.1, 0.0]])
    assert lattice.sample(places).tolist() == pytest.approx([21.0, 5.75, -math.inf])


def test_half_of_the_light_of_a_fog_is_lost_at_its_half_depth():
    fog = torch.full((1, 1000), 20.0)
    depths = appearance.light_depths(fog, 1.0, 2)
    expected = [-math.log(1 - share) / 20 for share in (0.25, 0.75)]
    assert depths[0].tolist() == pytest.approx(expected, rel=0.03)
    assert (appearance.light_depths(torch.zeros(1, 8), 1.0, 4) <= 1).all()


def test_a_mesh_is_not_mirrored():
    """An asymmetric shape looks as the renderer shows it, and other than its mirror images."""
    parts = (ball([0.1, 0, 0], 0.05), ball([0, 0.08, 0], 0.03), box([-0.02] * 3, [0.02, 0.02, 0.1]))
    field = union(*parts)
    mesh = mesh_of(field, cube_of(96))
    assert solid(mesh).volume > 0
    pitch, yaw = 1.2, 1.1
    rays = cast_rays(Poses(torch.tensor([pitch]), torch.tensor([yaw])), 64, 20)
    depths = torch.linspace(0.8, 1.2, 200)
    points = rays.origins[0, :, None] + rays.directions[0, :, None] * depths[:, None]
    is_shape = (field(points) > 0).any(1).view(64, 64)
    assert overlap(is_shape, silhouette(mesh, pitch, yaw, 64, 20)) > 0.95
    for mirror in ([-1, 1, 1], [1, -1, 1], [1, 1, -1]):
        assert overlap(is_shape, silhouette(mesh, pitch, yaw, 64, 20, mirror)) < 0.9


def test_the_nearest_triangle_hides_the_others():
    """Two squares in front of a camera on the z axis, the nearer one smaller."""
    square = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], np.float32)
    vertices = torch.from_numpy(np.concatenate([0.1 * square, 0.05 * square + [0, 0, 0.1]]))
    triangles = torch.tensor([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
    seen = visible_triangles(project(vertices, math.pi / 2, math.pi / 2, 65, 20), triangles, 65)
    assert seen[32, 32] in (2, 3)
    assert seen[32, 17] in (0, 1)
    assert seen[0, 0] == -1
    assert seen[62, 62].item() == -1
    assert seen[20, 45] in (2, 3, 0, 1)
    width = (seen[32] >= 0).sum().item()
    assert width == pytest.approx(64 * 0.1 / math.tan(math.radians(10)), abs=2)


def test_what_is_behind_the_camera_is_not_seen():
    """One triangle reaches from in front of the camera to behind it, one is in front."""
    corners = [[-0.1, -0.1, 1.2], [0.1, -0.1, 1.2], [0.0, 0.1, 0.5]]
    corners += [[-0.1, -0.1, 0.0], [0.1, -0.1, 0.0], [0.0, 0.1, 0.0]]
    seen = project(torch.tensor(corners), math.pi / 2, math.pi / 2, 33, 30)
    assert seen.depths.isinf().tolist() == [True, True, False, False, False, False]
    picture = visible_triangles(seen, torch.tensor([[0, 1, 2], [3, 4, 5]]), 33)
    assert set(picture.unique().tolist()) == {-1, 1}


def test_what_no_camera_sees_is_cut_away_and_nothing_is_open_but_the_rim():
    """The bottom of a slab under a ball is removed; its top stays except under the ball."""
    cube = cube_of(96, 0.4)
    slab = box([-0.12, -0.1, -0.12], [0.12, -0.05, 0.12])
    mesh = mesh_of(union(ball([0, 0.06, 0], 0.06), slab), cube)
    cut = visibility.visible_part(mesh, AROUND, OPTIONS, spacing=cube.spacing)
    height = cut.vertices[:, 1]
    edge = 3 * cube.spacing
    inner = np.abs(cut.vertices[:, [0, 2]]).max(1) < 0.12 - 4 * cube.spacing
    assert not ((height < -0.1 + edge) & inner).any()
    assert (np.abs(height + 0.05) < edge).sum() > 500
    assert (height > 0.03).sum() == (mesh.vertices[:, 1] > 0.03).sum()
    largest = surface.largest_component(cut)
    ends = np.sort(trimesh.geometry.faces_to_edges(largest.triangles), axis=1)
    rim, times = np.unique(ends, axis=0, return_counts=True)
    assert times.max() == 2
    heights = largest.vertices[rim[times == 1]][..., 1]
    assert len(heights) > 0
    assert heights.max() < -0.02  # nowhere on the ball's visible upper side


def test_what_is_out_of_the_picture_or_the_ray_range_is_cut_away():
    cube = cube_of(64, 0.5)
    field = union(ball([0, 0, 0], 0.05), ball([0.2, 0, 0], 0.03), ball([0, 0.0, -0.2], 0.02))
    options = replace(OPTIONS, fov_degrees=12, near=0.88, far=1.12)
    cut = visibility.visible_part(mesh_of(field, cube), FRONT, options, spacing=cube.spacing)
    assert len(cut.triangles) > 0
    assert cut.vertices[:, 0].max() < 0.1
    assert cut.vertices[:, 2].min() > -0.1


def test_the_largest_piece_and_no_piece():
    cube = cube_of(64)
    field = union(ball([0.06, 0, 0], 0.05), ball([-0.06, 0, 0], 0.03))
    mesh = mesh_of(field, cube)
    assert solid(mesh).body_count == 2
    largest = surface.largest_component(mesh)
    assert largest.vertices[:, 0].min() > 0
    assert solid(largest).is_watertight
    none = mesh_of(field, cube, at=1.0)
    assert len(none.triangles) == len(none.vertices) == 0


def test_a_picture_shows_colors_and_clay_on_white():
    mesh = mesh_of(ball([0, 0, 0], 0.08), cube_of(32))
    red = np.zeros_like(mesh.vertices)
    red[:, 0] = 1
    colors, clay = rasterizer.picture(replace(mesh, colors=red), 1.3, 0.4, 48, 20)
    assert colors[:, 24, 24].tolist() == pytest.approx([1, 0, 0])
    assert colors[:, 0, 0].tolist() == clay[:, 0, 0].tolist() == [1, 1, 1]
    assert 0.5 < clay[0, 24, 24] < 1
    assert clay[0, 18, 20] > clay[0, 30, 28]  # lit from above on the left
    assert len({round(yaw, 6) for yaw in rasterizer.side_views(0.0, math.pi, 4)}) == 4
