"""The Triton kernels against the float64 reference: interpreted on the CPU, compiled on a GPU."""

import dataclasses
import os

import pytest
import torch

from siren.film import Film
from siren.siren import FIELDS

pytest.importorskip("triton", reason="Triton is not installed")
from siren.fused import triton_field, triton_gradients
from siren.fused.folded import ClearBelow

# Relative errors of densities and colors and of gradients: 3 and 10 roundings of one operand, which
# are 2^-11 in float16 and 2^-8 in bfloat16. They enter at every layer and are of either sign. The
# gradient of one direction, a sum over all points of either sign, has the largest: 8 roundings.
TOLERANCE = {torch.float16: (1.5e-3, 5e-3), torch.bfloat16: (1.2e-2, 4e-2)}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@dataclasses.dataclass
class Case:
    """A field with its inputs in float32, and a float64 copy of the field."""

    field: torch.nn.Module
    points: torch.Tensor
    directions: torch.Tensor
    latents: torch.Tensor
    twin: torch.nn.Module


@pytest.fixture(params=DEVICES)
def device(request):
    if request.param == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("the kernels are compiled in this process: there is a CUDA device")
    return request.param


@pytest.fixture(autouse=True)
def _small_grids(monkeypatch):
    for name, field in FIELDS.items():
        if name.startswith("Embedding"):
            monkeypatch.setattr(field, "embedding_shape", (32, 5, 0.1))


def make_case(device, name, width, num_layers, num_objects, num_points, num_directions):
    sizes = {"z_dim": 8, "hidden_dim": width, "num_layers": num_layers, "density_scale": 20.0}
    field, twin = (FIELDS[name](**sizes) for _ in range(2))
    twin.load_state_dict(field.state_dict())
    half_side = 1 if field.box_side is None else field.box_side / 2
    points = (torch.rand(num_objects, num_points, 3) * 2 - 1) * half_side
    directions = torch.nn.functional.normalize(torch.randn(num_objects, num_directions, 3), dim=-1)
    latents = torch.randn(num_objects, 8)
    moved = (t.to(device) for t in (points, directions, latents))
    return Case(field.to(device), *moved, twin.double())


def film_of(field, latents):
    """Return FiLM parameters with a different frequency per feature: 15 to 45, as in training."""
    film = field.mapping_network(latents)
    return Film(film.frequencies + torch.linspace(-1, 1, film.frequencies.shape[1]).to(latents),
                film.phase_shifts)  # fmt: skip


def reference(case, upstream):
    """Return output and gradients of points, directions and parameters, in float64 on the CPU."""
    inputs = [t.cpu().double().requires_grad_() for t in (case.points, case.directions)]
    film = film_of(case.twin, case.latents.cpu().double())
    output = case.twin.reference(case.twin.encode(inputs[0]), inputs[1], film)
    wanted = [*inputs, *case.twin.parameters()]
    return output, torch.autograd.grad((output * upstream).sum(), wanted)


def relative_error(found, expected):
    expected = expected.detach()
    return ((found.detach().cpu().double() - expected).norm() / expected.norm()).item()


def assert_equals_reference(device, name, dtype, sizes):
    """Output and all gradients of a field of these sizes (see make_case), by the kernels."""
    case = make_case(device, name, *sizes)
    num_objects, num_points = case.points.shape[:2]
    upstream = torch.randn(num_objects, num_points, 4) * 1e-9  # float16 alone would lose it
    upstream[:1] *= 1e3  # and objects differ
    points, directions = case.points.requires_grad_(), case.directions.requires_grad_()
    film = film_of(case.field, case.latents)
    output = triton_field.evaluate(
        case.field.joined(film), case.field.encode(points), directions, dtype
    )
    assert output.dtype == torch.float32
    wanted = [points, directions, *case.field.parameters()]
    gradients = torch.autograd.grad((output * upstream.to(device)).sum(), wanted)
    expected, expected_gradients = reference(case, upstream.double())
    of_output, of_gradients = TOLERANCE[dtype]
    for columns in (slice(0, 3), slice(3, 4)):
        assert relative_error(output[..., columns], expected[..., columns]) < of_output
    names = ["points", "directions", *(name for name, _ in case.field.named_parameters())]
    errors = {
        name: relative_error(*pair)
        for name, *pair in zip(names, gradients, expected_gradients, strict=True)
    }
    assert max(errors.values()) < of_gradients, errors


@pytest.mark.parametrize(
    ("name", "dtype", "sizes"),
    [
        ("TALLSIREN", torch.float16, (64, 2, 1, 1, 1)),  # one point
        ("TALLSIREN", torch.float16, (64, 1, 2, 129, 43)),  # a block and a point; the color layer
        ("TALLSIREN", torch.float16, (256, 3, 1, 129, 1)),  # two pieces; one direction
        ("SPATIALSIRENBASELINE", torch.bfloat16, (256, 2, 1, 12, 12)),  # a direction each
        ("SPATIALSIRENBASELINE", torch.bfloat16, (64, 3, 2, 20, 10)),
        ("EmbeddingPiGAN128", torch.float16, (128, 2, 2, 14, 7)),
        ("EmbeddingPiGAN256", torch.float16, (256, 2, 1, 128, 2)),  # a whole block
    ],
)
def test_kernels_equal_the_reference_gradients_included(device, name, dtype, sizes):
    assert_equals_reference(device, name, dtype, sizes)


@pytest.mark.parametrize("name", ["TALLSIREN", "EmbeddingPiGAN128"])
def test_the_density_alone_is_that_of_the_whole(device, name):
    case = make_case(device, name, 128, 2, 2, 5, 1)
    folded = case.field.joined(film_of(case.field, case.latents))
    encoded = case.field.encode(case.points)
    whole = triton_field.evaluate(folded, encoded, case.directions, torch.float16)
    alone = triton_field.density(folded, encoded, torch.float16)
    torch.testing.assert_close(alone, whole[..., 3], rtol=0, atol=0)
    assert not alone.requires_grad
    assert triton_field.density(folded, encoded[:, :0], torch.float16).shape == (2, 0)


@pytest.mark.parametrize("clear_below", [ClearBelow(), ClearBelow(-1, 1)])
def test_blocks_without_density_may_be_left_black_and_the_gradients_stay(device, clear_below):
    case = make_case(device, "TALLSIREN", 256, 2, 1, 512, 2)
    film = film_of(case.field, case.latents)
    folded = case.field.joined(film)
    raw = triton_field.density(folded, case.points, torch.float16)[0]
    raw = raw - clear_below.limits(case.points[0])
    order = raw.argsort()
    clear, dense = order[:128], order[-128:]
    points = case.points[
        :, torch.cat([clear, dense[:128], dense[128:]])
    ]  # the first block is clear
    assert raw[clear].max() < 0 < raw[dense].min()
    found = []
    dense = triton_field.density(folded, points, torch.float16) > clear_below.limits(points)
    for limits in (None, clear_below):
        output = triton_field.evaluate(folded, points, case.directions, torch.float16, limits)
        seen = output[..., :3] * dense[..., None]  # as a picture shows them
        weight = case.field.color_layer_sine.layer.weight
        found.append((output, *torch.autograd.grad(seen.sum(), weight, retain_graph=True)))
    (whole, gradient), (skipped, other_gradient) = found
    assert (skipped[:, :128, :3] == 0).all()
    assert torch.equal(skipped[..., 3], whole[..., 3])
    assert torch.equal(skipped[:, 128:], whole[:, 128:])
    assert torch.equal(gradient, other_gradient)


def test_no_points_give_no_samples_and_zero_gradients(device):
    case = make_case(device, "TALLSIREN", 64, 2, 2, 0, 1)
    output = triton_field.evaluate(
        case.field.joined(film_of(case.field, case.latents)),
        case.points, case.directions.requires_grad_(), torch.float16,
    )  # fmt: skip
    assert output.shape == (2, 0, 4)
    weight = case.field.network[1].layer.weight
    found = torch.autograd.grad(output.sum(), [weight, case.directions])
    assert [t.shape for t in found] == [weight.shape, case.directions.shape]
    assert all((t == 0).all() for t in found)


def test_strided_inputs_and_gradients_equal_contiguous_ones(device):
    case = make_case(device, "TALLSIREN", 64, 2, 2, 6, 3)
    folded = case.field.joined(film_of(case.field, case.latents))
    found = []
    for stride in (torch.Tensor.contiguous, strided):
        points = stride(case.points).requires_grad_()
        output = triton_field.evaluate(folded, points, stride(case.directions), torch.float16)
        upstream = stride(torch.linspace(-1, 1, 48).view(2, 6, 4).to(device))
        (gradient,) = torch.autograd.grad(output, points, upstream, retain_graph=True)
        found.append((output, gradient))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def strided(x):
    return x.detach().transpose(1, 2).contiguous().transpose(1, 2)


def test_gradients_do_not_depend_on_the_chunk_and_splits(device, monkeypatch):
    case = make_case(device, "TALLSIREN", 64, 1, 1, 258, 3)
    film = film_of(case.field, case.latents)
    weight = case.field.color_layer_sine.layer.weight
    found = []
    for chunk, programs in ((2**25, 1), (2**25, 512), (128 * 64, 512)):
        monkeypatch.setattr(triton_gradients, "CHUNK_NUMBERS", chunk)
        monkeypatch.setattr(triton_gradients, "PROGRAMS", programs)
        output = triton_field.evaluate(
            case.field.joined(film), case.points, case.directions, torch.float16
        )
        found.append(torch.autograd.grad(output.square().sum(), weight, retain_graph=True)[0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[2], found[0], rtol=1e-4, atol=1e-6)


def test_points_without_upstream_gradient_are_left_out(device, monkeypatch):
    case = make_case(device, "EmbeddingPiGAN128", 128, 2, 3, 300, 3)
    monkeypatch.setattr(triton_gradients, "CHUNK_NUMBERS", 3 * 128 * 128)  # a block a chunk
    upstream = torch.randn(3, 300, 4)
    upstream[0, torch.randperm(300)[:170]] = 0  # 130 points: a block and two more
    upstream[1] = 0
    upstream[2, :, :3] = 0  # the density alone
    points, directions = case.points.requires_grad_(), case.directions.requires_grad_()
    film = film_of(case.field, case.latents)
    output = triton_field.evaluate(
        case.field.joined(film), case.field.encode(points), directions, torch.float16
    )
    kept = []
    room = triton_gradients._kept
    monkeypatch.setattr(triton_gradients, "_kept", lambda *a: kept.append(room(*a)) or kept[0])
    wanted = [points, directions, *case.field.parameters()]
    gradients = torch.autograd.grad((output * upstream.to(device)).sum(), wanted)
    _, expected = reference(case, upstream.double())
    for one, other in zip(gradients, expected, strict=True):
        assert relative_error(one, other) < TOLERANCE[torch.float16][1]
    assert torch.equal((gradients[0] != 0).any(-1).cpu(), (upstream != 0).any(-1))
    if device == "cpu":  # where nobody has written, tests find NaN
        sines = kept[0][0]
        assert sines[:, [0, 2]].isfinite().all()
        assert sines[:, 1].isnan().all(), "rows of an object without gradient were computed"


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the interpreter's numpy
def test_a_gradient_that_overflowed_stays_visible(device):
    case = make_case(device, "TALLSIREN", 64, 2, 2, 3, 1)
    output = triton_field.evaluate(
        case.field.joined(film_of(case.field, case.latents)),
        case.points, case.directions, torch.float16,
    )  # fmt: skip
    upstream = torch.ones_like(output)
    upstream[1, 0, 3] = float("inf")
    weight = case.field.network[0].layer.weight
    (gradient,) = torch.autograd.grad(output, weight, upstream)
    assert not gradient.isfinite().all()


def test_the_kernels_are_differentiable_once_and_say_so(device):
    case = make_case(device, "TALLSIREN", 64, 2, 1, 3, 1)
    points = case.points.requires_grad_()
    folded = case.field.joined(film_of(case.field, case.latents))
    output = triton_field.evaluate(folded, points, case.directions, torch.float16)
    with pytest.raises(RuntimeError, match="differentiable once; use FilmSiren.reference"):
        torch.autograd.grad(output.sum(), points, create_graph=True)
    with torch.no_grad():
        alone = triton_field.evaluate(folded, points, case.directions, torch.float16)
    assert not alone.requires_grad
    torch.testing.assert_close(alone, output.detach(), rtol=0, atol=0)


def test_what_the_kernels_cannot_take_is_refused(device):
    case = make_case(device, "TALLSIREN", 32, 2, 1, 6, 1)
    folded = case.field.joined(film_of(case.field, case.latents))
    with pytest.raises(ValueError, match=r"fields \(64, 128, 256\) wide, this one is 32"):
        triton_field.evaluate(folded, case.points, case.directions, torch.float16)
    with pytest.raises(ValueError, match="4 directions cannot share 6 points"):
        triton_field.evaluate(folded, case.points, case.directions.expand(-1, 4, -1), torch.float16)
