"""Components, holes and visible share of meshes, against known values."""

import pytest
import torch
from test_geometry import AROUND, FRONT, OPTIONS, ball, cube_of, grid_of, torus, union

from geometry.surface import surface_mesh
from metrics.mesh_sanity import MeshSanity, mesh_sanity


def sanity(field, poses=AROUND, resolution=48):
    cube = cube_of(resolution)
    mesh = surface_mesh(grid_of(field, cube, is_dense=True).inside.numpy(), cube, 0.0)
    return mesh_sanity(mesh, poses, OPTIONS, spacing=cube.spacing)


CENTER = (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("field", "components", "holes"),
    [
        (ball(CENTER, 0.1), 1, 0),
        (torus(CENTER, 0.09, 0.03), 1, 1),
        (union(ball((-0.08, 0, 0), 0.05), ball((0.08, 0, 0), 0.03)), 2, 0),
        (union(torus((0.0, 0.06, 0.0), 0.09, 0.02), torus((0.0, -0.06, 0.0), 0.09, 0.02)), 2, 2),
    ],
)
def test_pieces_and_tunnels_are_counted(field, components, holes):
    found = sanity(field)
    assert (found.components, found.holes) == (components, holes)


def test_a_cavity_is_a_piece_and_no_tunnel():
    def hollow(points):
        distance = points.norm(dim=-1)
        return torch.minimum(0.1 - distance, distance - 0.05)

    found = sanity(hollow)
    assert (found.components, found.holes) == (2, 0)
    assert found.main_share == pytest.approx(0.8, abs=0.02)  # 4 : 1 in area
    assert found.seen_share < 0.82  # nobody looks inside


def test_cameras_in_front_see_less_than_half_of_a_ball():
    front, around = sanity(ball(CENTER, 0.1), FRONT), sanity(ball(CENTER, 0.1), AROUND)
    assert 0.4 < front.seen_share < 0.75
    assert around.seen_share > front.seen_share + 0.1
    assert front.main_share == 1


def test_an_empty_mesh_has_no_pieces_and_no_holes():
    assert sanity(lambda points: torch.full(points.shape[:1], -1.0)) == MeshSanity(0, 0, 0, 0)
