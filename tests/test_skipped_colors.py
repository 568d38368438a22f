"""Skipping colors of zero weight changes neither images nor gradients."""

from dataclasses import replace

import pytest
import torch

from generators.cameras import Poses
from generators.generators import ImplicitGenerator3d
from generators.volumetric_rendering import RenderOptions
from siren.fused import cpu, cpu_forward
from siren.siren import FIELDS

OPTIONS = RenderOptions(
    image_size=6, fov_degrees=12.0, near=0.8, far=1.2, num_steps=5, background="white"
)


def generator(name="SPATIALSIRENBASELINE", *, bias=0.0, width=16, dtype=torch.float64):
    """Return a generator whose raw densities are around bias."""
    torch.manual_seed(0)
    field = FIELDS[name](z_dim=8, hidden_dim=width, num_layers=2, mapping_hidden_dim=8)
    with torch.no_grad():
        field.final_layer.weight.mul_(60)
        field.final_layer.bias.fill_(bias)
    return ImplicitGenerator3d(field).to(dtype)


def latents_and_poses(count, dtype=torch.float64):
    rng = torch.Generator().manual_seed(1)
    angles = torch.linspace(0.5, 2, 2 * count, dtype=dtype).view(2, count)
    return torch.randn(count, 8, generator=rng, dtype=dtype), Poses(*angles)


def picture(network, options, *, skips, chunk=None, seed=3):
    """Return images, depths, opacities, and the gradient of a weighted sum of them."""
    network.zero_grad()
    z, poses = latents_and_poses(2)
    film = network.mapping(z)
    make = network.field
    if not skips:
        network.field = lambda *args, **named: make(*args, **named).whole
    rng = None if seed is None else torch.Generator().manual_seed(seed)
    view = network.render(film, poses, options, rng=rng, points_per_chunk=chunk)
    network.field = make
    (view.images.square().sum() + view.depths.sum() + view.opacities.square().sum()).backward()
    return [part.detach() for part in view], [p.grad.clone() for p in network.parameters()]


CASES = {
    "relu": {},
    "bounded": {"scene_radius": 0.15},
    "far color": {"background": "last_sample"},
    "locked far color": {"background": "last_sample", "lock_view_dependence": True},
    "coarse only": {"hierarchical": False},
    "coarse only, far color": {"hierarchical": False, "background": "last_sample"},
    "softplus": {"density_activation": "softplus"},
    "noise": {"density_noise": 3.0},
}


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("case", CASES)
def test_pictures_and_gradients_are_those_of_all_colors(case, seed):
    network, options = generator(), replace(OPTIONS, **CASES[case])
    chunk = 40 if seed is None else None
    (views, gradients), (all_views, all_gradients) = (
        picture(network, options, skips=skips, seed=seed, chunk=chunk) for skips in (True, False)
    )
    for one, other in zip(views + gradients, all_views + all_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("case", "is_skipped"), [(c, c not in ("softplus", "noise")) for c in CASES]
)
def test_only_what_no_pixel_shows_is_skipped(case, is_skipped, monkeypatch):
    asked = []
    evaluate = cpu.evaluate

    def watched(field, encoded, directions, clear_below):
        asked.append((clear_below is not None, encoded.shape[1]))
        return evaluate(field, encoded, directions, clear_below)

    monkeypatch.setattr(cpu, "evaluate", watched)
    options = replace(OPTIONS, **CASES[case])
    picture(generator(), options, skips=True)
    points = sum(count for skips, count in asked if skips)
    if "far color" in case:  # the last of a ray's samples is always colored
        assert sum(count for skips, count in asked if not skips) == 36
    else:
        assert all(skips == is_skipped for skips, _ in asked)
    assert (points > 0) == is_skipped


def upstream_of(output, *, seed=2):
    """Return a gradient as of rendering: zero where the density is not positive."""
    rng = torch.Generator().manual_seed(seed)
    random = torch.randn(output.shape, generator=rng, dtype=torch.float64).to(output)
    return random * (output[..., 3:] > 0)


@pytest.mark.parametrize("bias", [-1e3, -8.0, 0.0, 8.0, 1e3])  # none dense ... all dense
@pytest.mark.parametrize("points", [0, 1, 2, 64, 65, 130])
@pytest.mark.parametrize("rays", [1, "each"])
def test_the_fast_field_skips_colors_of_clear_points_alone(points, bias, rays, monkeypatch):
    monkeypatch.setattr(cpu, "CHUNK_NUMBERS", 16 * 65)  # 65 points
    field = generator(bias=bias).siren
    rng = torch.Generator().manual_seed(0)
    shape = (2, points if rays == "each" else 1, 3)
    at = (torch.rand(2, points, 3, generator=rng) * 0.2 - 0.1).double().requires_grad_()
    directions = torch.randn(shape, generator=rng).double().requires_grad_()
    film = field.mapping_network(latents_and_poses(2)[0])
    wanted = [at, directions, *field.parameters()]
    results = []
    for skips in (True, False):
        output = field(at, directions, film, skips_clear=skips)
        found = torch.autograd.grad(output, wanted, upstream_of(output), retain_graph=True)
        results.append((output.detach(), found))
    (skipped, gradients), (whole, all_gradients) = results
    dense = whole[..., 3] > 0
    torch.testing.assert_close(skipped[..., 3], whole[..., 3])
    torch.testing.assert_close(skipped[dense], whole[dense])
    if bias < -100:
        assert (skipped[..., :3] == 0).all()
    for one, other in zip(gradients, all_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_float32_and_bfloat16_skip_alike(dtype):
    field = generator(width=64, dtype=torch.float32).siren
    at = torch.rand(1, 500, 3, generator=torch.Generator().manual_seed(0)) * 0.2 - 0.1
    film = field.mapping_network(latents_and_poses(1, torch.float32)[0])
    direction = torch.tensor([[[0.0, 0.0, -1.0]]])
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        skipped, whole = (field(at, direction, film, skips_clear=s) for s in (True, False))
    dense = whole[..., 3] > 0
    assert 0.1 < dense.float().mean() < cpu_forward.MANY
    torch.testing.assert_close(skipped[dense], whole[dense], rtol=1e-5, atol=1e-6)
    assert (skipped[..., :3][~dense] == 0).all()
