"""Density from signed distances: its values, its gradients, and the penalty on their slopes."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import curriculums
from generators.cameras import PoseDistribution
from generators.generators import ImplicitGenerator3d
from generators.volumetric_rendering import RenderOptions
from geometry.density_grid import Cube
from geometry.mesh_extraction import take_shape
from siren.siren import TALLSIREN
from siren.surface import CLEAR, Surface
from system.errors import UsageError
from training import losses

WIDTH, RADIUS = 0.01, 0.125  # of the tests; the ball of a field with box_side 0.5


def field(*, is_fresh=True, **changes):
    torch.manual_seed(0)
    options = {"box_side": 4 * RADIUS, "density_scale": 0.1, "surface_width": WIDTH, **changes}
    siren = TALLSIREN(z_dim=8, hidden_dim=16, num_layers=2, mapping_hidden_dim=8, **options)
    if is_fresh:
        nn.init.zeros_(siren.final_layer.weight)
        nn.init.zeros_(siren.final_layer.bias)
    return siren.double()


def points_and_film(siren, *, num_points=40, side=0.5):
    rng = torch.Generator().manual_seed(1)
    points = (torch.rand(2, num_points, 3, generator=rng).double() - 0.5) * side
    directions = nn.functional.normalize(torch.randn(2, 5, 3, generator=rng).double(), dim=-1)
    film = siren.mapping_network(torch.randn(2, 8, generator=rng).double())
    return points, directions, film


def test_density_is_half_of_its_most_at_the_surface_and_vanishes_outside():
    at = RADIUS + WIDTH * torch.tensor([-10.0, -2, 0, 2, 100])
    points = at.double()[None, :, None] * torch.tensor([0.6, 0, 0.8]).double()
    found = Surface(WIDTH, RADIUS).densities(points, torch.zeros(1, 5).double())[0] * WIDTH
    wanted = [1 / (1 + math.exp(-10)), 1 / (1 + math.exp(-2)), 0.5, 1 / (1 + math.exp(2)), 0]
    torch.testing.assert_close(found, torch.tensor(wanted).double() - CLEAR)


def test_a_field_begins_as_a_ball_a_quarter_as_large_as_its_box():
    siren = field()
    points, directions, film = points_and_film(siren)
    distances = siren.distances(points, film)
    torch.testing.assert_close(distances, RADIUS - points.norm(dim=-1))
    densities = siren(points, directions, film)[..., 3]
    assert torch.equal(densities > 0.4 / WIDTH, distances > math.log(0.4 / 0.6) * WIDTH)
    siren = field(box_side=None)
    at = torch.tensor([[[0.0, 0.5, 0], [0, 0, 0.25]]]).expand(2, 2, 3).double()
    torch.testing.assert_close(siren.distances(at, film)[0], torch.tensor([0, 0.25]).double())


def test_the_density_head_moves_the_surface():
    siren, changed = field(), field(is_fresh=False)
    points, _, film = points_and_film(siren)
    nn.init.constant_(siren.final_layer.bias, 0.3)  # times density_scale: 0.03 outwards
    torch.testing.assert_close(siren.distances(points, film), 0.155 - points.norm(dim=-1))
    wanted = RADIUS - points.norm(dim=-1)
    raw = changed.distances(points, film) - wanted
    features = field(is_fresh=False, surface_width=None).density(points, film)
    torch.testing.assert_close(raw, features)
    assert raw.std() > 1e-4


@pytest.mark.parametrize("skips_clear", [False, True])
def test_all_ways_give_the_same_densities_and_gradients(skips_clear):
    siren = field(is_fresh=False)
    points, directions, film = points_and_film(siren)
    encoded = siren.encode(points)
    fast = siren(points, directions, film, skips_clear=skips_clear)
    reference = siren.reference(encoded, directions, film)
    dense = reference[..., 3] > 0
    assert 0 < dense.sum() < dense.numel()
    torch.testing.assert_close(fast[..., 3], reference[..., 3])
    torch.testing.assert_close(fast[dense], reference[dense])
    assert (fast[~dense][:, :3] == 0).all() == skips_clear
    with torch.no_grad():
        torch.testing.assert_close(siren.density(points, film), reference[..., 3])
        torch.testing.assert_close(siren.reference_density(encoded, film), reference[..., 3])
    parameters = list(siren.parameters())
    weights = torch.randn(fast.shape, generator=torch.Generator().manual_seed(3)).double()
    weights[~dense] = 0  # what is clear is hidden
    found, wanted = (
        torch.autograd.grad((samples * weights).sum(), parameters, retain_graph=True)
        for samples in (fast, reference)
    )
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_points_far_outside_have_no_color_without_being_asked_for_it():
    siren = field()
    points, directions, film = points_and_film(siren)
    colors = siren(points, directions, film, skips_clear=True)[..., :3]
    far = points.norm(dim=-1) > RADIUS + WIDTH * math.log(1 / CLEAR)
    assert far.any()
    assert (colors[far] == 0).all()
    assert (colors[~far] > 0).all()


@torch.no_grad()
def test_distances_are_found_again_from_densities():
    distances = torch.linspace(-0.05, 0.05, 21)[None]
    points = (RADIUS - distances)[..., None] * torch.tensor([0.6, 0, 0.8])
    surface = Surface(0.005, RADIUS)
    densities = surface.densities(points, torch.zeros(1, 21))
    torch.testing.assert_close(surface.inverse(densities), distances, rtol=0, atol=1e-4)
    assert densities[0, 10].item() == pytest.approx(surface.level, rel=1e-4)


def test_a_mesh_lies_where_the_distance_is_zero():
    generator = ImplicitGenerator3d(field(surface_width=0.005)).float()
    film = generator.mapping(torch.ones(1, 8))
    cube = Cube(side=0.5, resolution=40)  # voxels are 2.5 widths apart
    options = RenderOptions(image_size=8, fov_degrees=30, near=0.7, far=1.3, num_steps=8)
    poses = PoseDistribution(kind="mean", yaw_mean=1, yaw_spread=0, pitch_mean=1, pitch_spread=0)
    shape = take_shape(generator, film, cube, options, poses)
    radii = np.linalg.norm(shape.mesh.vertices, axis=1)
    assert np.abs(radii - RADIUS).max() < 0.02 * cube.spacing
    assert shape.level == pytest.approx(100, rel=1e-5)


def test_slopes_of_a_true_distance_cost_nothing():
    points = torch.randn(2, 30, 3).double()
    for factor, wanted in ((1, 0), (2, 1), (0.5, 0.25)):
        slopes = losses.Slopes.at(points, lambda x, factor=factor: factor * (1 - x.norm(dim=-1)))
        assert losses.eikonal(slopes).item() == pytest.approx(wanted)
    siren = field()
    _, _, film = points_and_film(siren)
    slopes = losses.Slopes.at(points, lambda x: siren.distances(x, film))
    assert losses.eikonal(slopes).item() < 1e-20


@pytest.mark.parametrize("slope", [0.5, 1.0, 3.0])
def test_points_move_onto_the_surface(slope):
    def ball(points):
        return slope * (0.2 - points.norm(dim=-1))

    slopes = losses.Slopes.at(0.1 + torch.rand(2, 30, 3).double(), ball)
    moved = slopes.points + slopes.onto_surface()
    assert ball(moved).abs().max() < 1e-12
    torch.testing.assert_close(slopes.normals, -F.normalize(slopes.points, dim=-1))


def test_unevenness_is_how_much_normals_turn_from_the_surface_to_its_neighbors():
    points = F.normalize(torch.randn(2, 30, 3).double(), dim=-1)
    across = torch.linalg.cross(points, torch.randn(2, 30, 3).double())
    steps = 0.05 * F.normalize(across, dim=-1)  # along the surface of a ball of radius 0.2

    def unevenness(distances, at, reach=1.0):
        slopes = losses.Slopes.at(at.clone(), distances)
        return losses.unevenness(distances, slopes, steps, reach).item()

    turn = 2 * math.sin(math.atan(0.05 / 0.2) / 2)  # of the unit vectors' ends
    wanted = math.hypot(turn, losses.TURN) - losses.TURN
    for slope in (0.5, 2.0):
        found = unevenness(lambda x, slope=slope: slope * (0.2 - x.norm(dim=-1)), 0.3 * points)
        assert found == pytest.approx(wanted)
    assert unevenness(lambda x: 1 - x[..., 0] + x[..., 2], points) == pytest.approx(0, abs=1e-12)
    far = 0.3 * points
    far[:, 15:] *= 2
    counts = unevenness(lambda x: 0.2 - x.norm(dim=-1), far, reach=0.2)
    assert counts == pytest.approx(wanted)  # those at 0.6 are not counted, and do not dilute
    assert unevenness(lambda x: 0.2 - x.norm(dim=-1), 10 * far, reach=0.2) == 0


def penalties(distances, points):
    """Return the eikonal term and the unevenness at points."""
    slopes = losses.Slopes.at(points.clone(), distances)
    steps = torch.full_like(points, 0.1)
    return losses.eikonal(slopes), losses.unevenness(distances, slopes, steps, 0.5)


@pytest.mark.parametrize("which", [0, 1])
def test_the_penalties_on_slopes_have_their_derivatives(which, monkeypatch):
    siren = field(is_fresh=False, density_scale=2)
    points, _, film = points_and_film(siren, num_points=6)
    parameters = [siren.final_layer.weight, siren.network[0].layer.weight]
    # Points of the surface are where they were: the penalty does not move the surface to them.
    moves = losses.Slopes.at(points.clone(), lambda x: siren.distances(x, film)).onto_surface()
    monkeypatch.setattr(losses.Slopes, "onto_surface", lambda _: moves)

    def penalty():
        return penalties(lambda x: siren.distances(x, film), points)[which]

    found = torch.autograd.grad(penalty(), parameters)
    for parameter, gradient in zip(parameters, found, strict=True):
        value = parameter.detach()
        before = value.clone()
        ends = []
        for step in (1e-6, -1e-6):
            value.copy_(before)
            value[0, 1] += step
            ends.append(penalty().item())
        value.copy_(before)
        slope = (ends[0] - ends[1]) / 2e-6
        assert abs(slope) > 1e-3
        assert gradient[0, 1].item() == pytest.approx(slope, rel=1e-5)


def test_a_field_of_free_densities_has_no_distances():
    siren = field(surface_width=None)
    points, _, film = points_and_film(siren)
    with pytest.raises(ValueError, match="without surface_width"):
        siren.distances(points, film)
    for key in ("eikonal_lambda", "smoothness_lambda"):
        with pytest.raises(UsageError, match=f"{key} needs a surface_width"):
            curriculums.load("CelebA", overrides=[f"{key}=1"])


def test_a_scale_of_densities_is_no_scale_of_distances():
    curriculums.load("Demo", overrides=["density_scale=0.5"])
    with pytest.raises(UsageError, match="density_scale 21 is a distance .* at most box_side"):
        curriculums.load("Demo", overrides=["density_scale=21"])  # as earlier curricula say
