"""Which path serves on CUDA, and the eager one against the reference, on the CPU."""

import types

import pytest
import torch

from siren.fused import cuda, eager, fused_field
from siren.siren import TALLSIREN, EmbeddingPiGAN128

HOPPER = types.SimpleNamespace(major=9, shared_memory_per_block_optin=232_448)


@pytest.fixture
def hopper(monkeypatch):
    """A machine that seems to have a Hopper GPU and Triton."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: HOPPER)
    monkeypatch.setattr(cuda, "has_triton", lambda: True)
    cuda._fits.cache_clear()
    yield torch.device("cuda", 0)
    cuda._fits.cache_clear()


def under_autocast(monkeypatch, dtype):
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: dtype is not None)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: dtype)


@pytest.mark.parametrize(
    ("dtype", "width", "path"),
    [
        (torch.float16, 256, "Triton, float16"),
        (torch.bfloat16, 64, "Triton, bfloat16"),
        (torch.float32, 256, "folded, float32"),
        (None, 256, "folded, float32"),
        (torch.float16, 96, "folded, float32"),
    ],
)
def test_triton_serves_half_precision_at_its_widths(hopper, monkeypatch, dtype, width, path):
    under_autocast(monkeypatch, dtype)
    assert fused_field.path_name(hopper, width) == path


@pytest.mark.parametrize(
    "properties",
    [
        types.SimpleNamespace(major=8, shared_memory_per_block_optin=232_448),
        types.SimpleNamespace(major=12, shared_memory_per_block_optin=101_376),
        types.SimpleNamespace(major=9),  # an older torch does not tell
    ],
)
def test_other_gpus_are_served_eagerly(hopper, monkeypatch, properties):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    under_autocast(monkeypatch, torch.float16)
    assert fused_field.path_name(hopper, 256) == "folded, float32"


def test_without_triton_the_eager_path_serves(hopper, monkeypatch):
    monkeypatch.setattr(cuda, "has_triton", lambda: False)
    under_autocast(monkeypatch, torch.float16)
    assert fused_field.path_name(hopper, 256) == "folded, float32"


def test_the_cpu_has_paths_of_its_own():
    assert fused_field.path_name(torch.device("cpu"), 256) == "folded"


def inputs(num_points, num_directions):
    rng = torch.Generator().manual_seed(1)
    points = torch.rand(2, num_points, 3, generator=rng, dtype=torch.float64) * 0.2 - 0.1
    directions = torch.randn(2, num_directions, 3, generator=rng, dtype=torch.float64)
    return points.requires_grad_(), directions.requires_grad_(), torch.randn(2, 6).double()


@pytest.mark.parametrize(("num_points", "num_directions"), [(12, 1), (12, 3), (12, 12), (1, 1)])
@pytest.mark.parametrize("cls", [TALLSIREN, EmbeddingPiGAN128])
def test_the_eager_path_equals_the_reference(cls, num_points, num_directions, monkeypatch):
    monkeypatch.setattr(cls, "embedding_shape", cls.embedding_shape and (4, 5, 0.1))
    monkeypatch.setattr(eager, "CHUNK_NUMBERS", 2 * 16 * 5)  # five points, and a rest
    field = cls(z_dim=6, hidden_dim=16, num_layers=2, density_scale=3.0).double()
    points, directions, z = inputs(num_points, num_directions)
    upstream = torch.randn(2, num_points, 4, dtype=torch.float64)
    results = []
    for path in ("eager", "reference"):
        film, encoded = field.mapping_network(z), field.encode(points)
        if path == "eager":
            output = eager.evaluate(field.folded(film), encoded, directions)
        else:
            output = field.reference(encoded, directions, film)
        wanted = [points, directions, *field.parameters()]
        loss = (output * upstream).sum()
        results.append((output, *torch.autograd.grad(loss, wanted)))
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-11)
    alone = eager.density(field.folded(field.mapping_network(z)), field.encode(points))
    torch.testing.assert_close(alone, results[1][0][..., 3])


def test_the_eager_path_is_differentiable_twice():
    field = TALLSIREN(z_dim=6, hidden_dim=16, num_layers=2).double()
    points, directions, z = inputs(4, 1)
    seconds = []
    for path in ("eager", "reference"):
        film = field.mapping_network(z)
        if path == "eager":
            output = eager.evaluate(field.folded(film), points, directions)
        else:
            output = field.reference(points, directions, film)
        (slope,) = torch.autograd.grad(output.sum(), points, create_graph=True)
        seconds.append(torch.autograd.grad(slope.square().sum(), field.network[1].layer.weight)[0])
    torch.testing.assert_close(*seconds)


def test_the_eager_path_takes_no_points_and_keeps_its_precision_under_autocast():
    field = TALLSIREN(z_dim=6, hidden_dim=16, num_layers=2)
    points, directions, z = (t.detach().float() for t in inputs(12, 3))
    folded = field.folded(field.mapping_network(z))
    exact = eager.evaluate(folded, points, directions)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(
            eager.evaluate(folded, points, directions), exact, rtol=0, atol=0
        )
    assert eager.evaluate(folded, points[:, :0], directions).shape == (2, 0, 4)
    assert eager.density(folded, points[:, :0]).shape == (2, 0)
