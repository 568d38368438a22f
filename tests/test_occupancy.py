"""Rendering skips empty space without changing the pictures."""

import dataclasses
import math

import pytest
import torch
from documented import ROOT
from one_view import look

from checkpoint_io import checkpoints
from generators import occupancy
from generators.cameras import Poses, cast_rays
from generators.generators import ImplicitGenerator3d
from generators.occupancy import Occupancy, find_occupancy, rays_that_may_hit, skipping
from generators.volumetric_rendering import RenderOptions
from rendering import viewing
from siren.siren import SPATIALSIRENBASELINE


def options(**changes):
    defaults = dict(image_size=24, fov_degrees=30.0, near=0.7, far=1.3, num_steps=6,
                    background="white", scene_radius=0.27)  # fmt: skip
    return RenderOptions(**defaults | changes)


@pytest.fixture(scope="module")
def demo():
    return checkpoints.load_generator(ROOT / "assets/demo/generator.pth")


@pytest.fixture
def pieces():
    """Return an untrained generator whose density is positive in a sixth of space."""
    generator = ImplicitGenerator3d(
        SPATIALSIRENBASELINE(z_dim=8, hidden_dim=32, num_layers=2, mapping_hidden_dim=8,
                             box_side=0.5, density_scale=2000.0)
    ).eval()  # fmt: skip
    film = generator.mapping(torch.randn(2, 8))
    points = torch.rand(2, 4000, 3) * 0.54 - 0.27
    with torch.no_grad():
        level = generator.siren.density(points, film).quantile(5 / 6)
        generator.siren.final_layer.bias -= level / generator.siren.density_scale
    return generator, film


def ball(radius):
    return lambda points: radius - points.norm(dim=-1)


def test_all_of_a_ball_may_hold_density_and_little_else():
    found = find_occupancy(ball(0.1), options(), torch.device("cpu"))
    points = torch.rand(100_000, 3) * 0.54 - 0.27
    distance, holds = points.norm(dim=-1), found.may_hold(points)
    assert holds[distance < 0.1].all()
    # The cell that the surface cuts, and one more.
    assert not holds[distance > 0.1 + 2 * math.sqrt(3) * found.side / occupancy.FEWEST_CELLS].any()


def test_what_is_outside_of_the_cube_is_not_known():
    found = Occupancy(torch.nn.functional.pad(torch.zeros(2, 2, 2) > 0, (1,) * 6, value=True), 0.5)
    points = torch.tensor([[0.0, 0, 0], [0.2, -0.2, 0.24], [0.26, 0, 0], [0, -9.0, 0], [-1, 1, 3]])
    assert found.may_hold(points).tolist() == [False, False, True, True, True]


def test_cells_are_where_they_say():
    cells = torch.zeros(6, 6, 6) > 0  # four along each side of 0.4, and the rim
    cells[1, 2, 4] = True
    found = Occupancy(cells, 0.4)
    inside = torch.tensor([-0.2, -0.1, 0.1]) + 0.1 * torch.rand(200, 3)
    assert found.may_hold(inside).all()
    assert not found.may_hold(inside + torch.tensor([0.1, 0, 0])).any()
    assert not found.may_hold(inside - torch.tensor([0, 0, 0.1])).any()


def test_half_precision_around_it_does_not_move_the_cells():
    cells = torch.rand(42, 42, 42, generator=torch.Generator().manual_seed(0)) > 0.5
    found = occupancy.Occupancy(cells, side=0.24)
    points = torch.rand(1000, 3) * 0.3 - 0.15
    exact = found.may_hold(points)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(found.may_hold(points), exact)


@pytest.mark.parametrize("directions", [1, 25, 50])
def test_the_field_is_asked_where_it_may_hold_density_alone(directions):
    found = find_occupancy(ball(0.1), options(), torch.device("cpu"))
    asked = []

    def field(points, seen_from):
        asked.append(points)
        assert seen_from.shape[1] in (1, points.shape[1])
        return torch.cat([points + seen_from, ball(0.1)(points)[..., None]], dim=-1)

    points = torch.rand(1, 50, 3) * 0.5 - 0.25
    seen_from = torch.rand(1, directions, 3)
    samples = skipping([field], [found])(points, seen_from)
    holds = found.may_hold(points[0])
    expected = field(points, seen_from.repeat_interleave(50 // directions, 1))
    assert 0 < holds.sum() < 50
    torch.testing.assert_close(samples[:, holds], expected[:, holds], rtol=0, atol=0)
    assert (samples[:, ~holds, 3] < 0).all()
    assert asked[0].shape == (1, int(holds.sum()), 3)
    nothing = skipping([field], [found])(torch.full((1, 6, 3), 0.2), seen_from[:, :1])
    assert (nothing[..., 3] < 0).all()


@pytest.mark.parametrize("size", [16, 64])
def test_pictures_of_the_trained_generator_stay(demo, size):
    generator = demo.generator
    render = dataclasses.replace(demo.curriculum.preview_render(demo.step, size), num_steps=12)
    things = viewing.objects_of_seeds(demo, [0, 1], psi=1.0)
    for seen in things:
        generator.skips_empty_space = False
        exact = look(demo, seen.film, 1.1, 0.4, render, points_per_chunk=20_000)
        generator.skips_empty_space = True
        fast = look(demo, seen.film, 1.1, 0.4, render, points_per_chunk=20_000)
        generator.skips_empty_space = False
        error = (exact.images - fast.images).square().mean().item()
        assert error < 4 * 10**-4.5  # 45 dB of a range of 2; on our machine the same bits
        torch.testing.assert_close(fast.depths, exact.depths, rtol=0, atol=0.02)


@pytest.mark.parametrize("background", ["white", "black", "last_sample"])
@pytest.mark.parametrize("radius", [0.27, None])
def test_several_objects_at_once(pieces, background, radius, monkeypatch):
    if background == "last_sample" and radius is not None:
        pytest.skip("such a scene has no last sample")
    generator, film = pieces
    monkeypatch.setattr(occupancy, "WORTHWHILE", 1.0)  # so few cells are empty in a cube
    poses = Poses(torch.tensor([1.2, 1.5]), torch.tensor([0.3, 2.0]))
    render = options(scene_radius=radius, background=background)
    exact = generator.render(film, poses, render, points_per_chunk=3000)
    generator.skips_empty_space = True
    fast = generator.render(film, poses, render, points_per_chunk=3000)
    error = (exact.images - fast.images).square().mean().item()
    assert error < 4 * 10**-4.5
    occupied = generator._remembered._known
    assert len(occupied) == 2
    assert not any(seen.cells.all() for seen in occupied.values())


def test_an_object_is_searched_once(pieces, monkeypatch):
    generator, film = pieces
    generator.skips_empty_space = True
    searched = []
    density = generator.density
    monkeypatch.setattr(generator, "density", lambda *args, **options: (
        lambda points: searched.append(len(points)) or density(*args, **options)(points)
    ))  # fmt: skip
    for yaw in (0.1, 0.5, 0.9):
        poses = Poses(torch.tensor([1.2] * 2), torch.tensor([yaw] * 2))
        generator.render(film, poses, options(), points_per_chunk=3000)
    assert len(searched) == 2
    for i in range(occupancy.MOST_KNOWN + 3):
        generator.render(generator.mapping(torch.full((2, 8), i / 3)), poses, options(),
                         points_per_chunk=3000)  # fmt: skip
    assert len(generator._remembered._known) == occupancy.MOST_KNOWN


def test_a_softplus_density_is_never_empty(pieces):
    generator, film = pieces
    generator.skips_empty_space = True
    poses = Poses(torch.tensor([1.2] * 2), torch.tensor([0.1] * 2))
    render = options(density_activation="softplus")
    view = generator.render(film, poses, render, points_per_chunk=3000)
    generator.skips_empty_space = False
    exact = generator.render(film, poses, render, points_per_chunk=3000)
    torch.testing.assert_close(view, exact, rtol=0, atol=0)


def test_rays_beside_a_ball_are_left_out():
    render = options(image_size=32, num_steps=24)
    found = find_occupancy(ball(0.1), render, torch.device("cpu"))
    rays = cast_rays(Poses(torch.tensor([1.2]), torch.tensor([0.7])), 32, 30.0)
    hits = rays_that_may_hit([found], rays, render)
    closest = torch.linalg.cross(rays.origins, rays.directions).norm(dim=-1)[0]
    assert set((closest < 0.1).nonzero()[:, 0].tolist()) <= set(hits.tolist())
    assert (closest[hits] < 0.1 + 2 * math.sqrt(3) * found.side / 24).all()


def test_nearly_full_space_is_not_looked_up():
    render = options(image_size=32, scene_radius=None)
    found = find_occupancy(lambda points: points[:, 0] + 0.26, render, torch.device("cpu"))
    assert found.is_full
    rays = cast_rays(Poses(torch.tensor([1.2]), torch.tensor([0.7])), 32, 30.0)
    assert rays_that_may_hit([found], rays, render) is None
    points, directions = torch.rand(1, 8, 3), torch.rand(1, 4, 3)
    seen = torch.zeros(1, 8, 4)
    assert torch.equal(skipping([lambda *_: seen], [found])(points, directions), seen)
