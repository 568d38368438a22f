"""The fast field of the CPU at its real widths, precisions and numbers of threads."""

import pytest
import torch

from siren.film import Film
from siren.fused import arithmetic, cpu
from siren.siren import FIELDS, SPATIALSIRENBASELINE, TALLSIREN


def setting(name="TALLSIREN", *, width=None, layers=2, batch=1, points=5, rays=1, seed=0):
    """Return a float32 field, inputs and the gradient of its output."""
    torch.manual_seed(seed)
    field = FIELDS[name](z_dim=8, hidden_dim=width, num_layers=layers, mapping_hidden_dim=8)
    rng = torch.Generator().manual_seed(seed)
    inputs = (
        torch.rand(batch, points, 3, generator=rng) * 0.2 - 0.1,
        torch.nn.functional.normalize(torch.randn(batch, rays, 3, generator=rng), dim=-1),
        torch.randn(batch, 8, generator=rng),
    )
    return field, inputs, torch.randn(batch, points, 4, generator=rng)


def results(field, inputs, upstream, *, is_fast=True, is_rounded=False):
    """Return the output and all gradients; is_rounded: autocast forward, as in training."""
    points, directions, z = (t.detach().clone().requires_grad_() for t in inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_rounded):
        film = field.mapping_network(z)
        if is_fast:
            output = field(points, directions, film)
        else:
            output = field.reference(field.encode(points), directions, film)
    wanted = [points, directions, z, *field.parameters()]
    return [output.detach(), *torch.autograd.grad((output * upstream).sum(), wanted)]


def relative_errors(found, expected):
    pairs = zip(found, expected, strict=True)
    return [float((one - other).norm() / other.norm().clamp(min=1e-30)) for one, other in pairs]


def exact(field, inputs, upstream):
    double = [t.double() for t in inputs]
    return results(field.double(), double, upstream.double(), is_fast=False)


def assert_is_as_exact_as_the_reference(field, *case):
    true = exact(field, *case)
    field.float()
    fast, plain = results(field, *case), results(field, *case, is_fast=False)
    for error, usual in zip(relative_errors(fast, true), relative_errors(plain, true), strict=True):
        assert error < 3 * usual + 2e-6


@pytest.mark.parametrize(
    ("name", "width", "points"),
    [
        ("TALLSIREN", 256, cpu.CHUNK_NUMBERS // 256 + 1),
        ("TALLSIREN", 128, 3),
        ("TALLSIREN", 64, cpu.CHUNK_NUMBERS // 64 + 1),
        ("EmbeddingPiGAN128", None, 7),
        ("EmbeddingPiGAN256", None, 1),
    ],
)
def test_float32_is_as_exact_as_the_reference(name, width, points):
    assert_is_as_exact_as_the_reference(*setting(name, width=width, points=points))


def test_strong_modulation_as_of_a_trained_mapping_network_stays_exact():
    field, inputs, upstream = setting(width=64, layers=4, points=40, batch=2)
    with torch.no_grad():
        field.mapping_network.network[-1].weight.mul_(8)
        field.final_layer.weight.mul_(50)
    assert_is_as_exact_as_the_reference(field, inputs, upstream)


@pytest.mark.parametrize("is_wide", [False, True])
@pytest.mark.parametrize("rays", [1, 6])
def test_two_threads_give_what_one_gives(rays, is_wide, monkeypatch):
    monkeypatch.setattr(cpu, "CHUNK_NUMBERS", 16 * 4)
    monkeypatch.setattr(cpu, "WIDE", 16 if is_wide else 17)
    case = setting(width=16, points=18, batch=3, rays=rays)
    one = results(*case)
    torch.set_num_threads(2)
    try:
        two, again = results(*case), results(*case)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(one[0], two[0])
    assert max(relative_errors(two, one)) < 1e-5  # partial sums are added in another order
    assert all(torch.equal(a, b) for a, b in zip(two, again, strict=True))


def test_under_autocast_operands_are_bfloat16_and_the_rest_float32():
    case = setting(width=128, layers=4, points=300, rays=3, batch=2)
    true = exact(*case)
    case[0].float()
    rough = results(*case, is_rounded=True)
    assert all(t.dtype == torch.float32 for t in rough)
    errors = relative_errors(rough, true)
    assert 1e-5 < errors[0] < 0.02  # rounded, and not more
    for one, other in zip(rough[1:], true[1:], strict=True):
        assert torch.cosine_similarity(one.flatten().double(), other.flatten(), dim=0) > 0.99


def test_fields_that_are_not_wide_stay_float32_under_autocast():
    """Rounding the operands of narrow fields takes longer than it saves."""
    case = setting(width=cpu.WIDE // 2, layers=3, points=300, rays=3, batch=2)
    plain = results(*case)
    found = results(*case, is_rounded=True)
    assert all(torch.equal(one, other) for one, other in zip(found, plain, strict=True))


def test_bfloat16_at_the_published_size_is_as_exact_as_documented():
    torch.manual_seed(0)
    field = SPATIALSIRENBASELINE(z_dim=256)
    rng = torch.Generator().manual_seed(0)
    points = torch.rand(1, 1024, 3, generator=rng) * 0.2 - 0.1
    inputs = points, torch.tensor([[[0.0, 0.0, -1.0]]]), torch.randn(1, 256, generator=rng)
    upstream = torch.randn(1, 1024, 4, generator=rng)
    output, *gradients = exact(field, inputs, upstream)
    rough, *rough_gradients = results(field.float(), inputs, upstream, is_rounded=True)
    error = rough - output
    assert error[..., 3].std() < 0.04 * output[..., 3].std()
    assert error[..., :3].abs().max() < 2e-3
    found, expected = (torch.cat([t.flatten() for t in g]) for g in (rough_gradients, gradients))
    assert (found - expected).norm() < 0.05 * expected.norm()


def test_whole_turns_of_a_phase_do_not_cost_bfloat16_its_digits():
    """Uses a phase of a thousand turns, which bfloat16 would round to a multiple of four."""
    field = TALLSIREN(z_dim=8, hidden_dim=128, num_layers=2, mapping_hidden_dim=8)
    points = torch.tensor([[[0.1, -0.2, 0.3]]])
    film = Film(torch.zeros(1, 384), torch.full((1, 384), 2000 * torch.pi))
    direction = torch.tensor([[[0.0, 0.0, -1.0]]])
    expected = field(points, direction, Film(torch.zeros(1, 384), torch.zeros(1, 384)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = field(points, direction, film)
    torch.testing.assert_close(found, expected, atol=0.01, rtol=0.05)


def test_float64_and_other_autocasts_take_the_path_that_is_promised():
    points = torch.zeros(1, 2, 3)
    assert cpu.is_supported(points)
    assert cpu.is_supported(points.double())
    assert not cpu.is_supported(points.half())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert cpu.is_supported(points)
        assert not cpu.is_supported(points.double())
    with torch.autocast("cpu", dtype=torch.float16):
        assert not cpu.is_supported(points)


def test_without_gradients_the_same_numbers_come_out():
    field, (points, directions, z), _ = setting(width=64, points=9)
    with torch.no_grad():
        found = field(points, directions, field.mapping_network(z))
    assert torch.equal(found, field(points, directions, field.mapping_network(z)).detach())


LIBRARIES = {"MKL": {"PREFERS_MKL": True}, "oneDNN": {"PREFERS_MKL": False}, "no oneDNN": {
    "PREFERS_MKL": False, "HAS_ONEDNN_LINEAR": False, "HAS_ONEDNN_BFLOAT16": False}}  # fmt: skip


@pytest.mark.parametrize(
    ("avx512", "amx", "capabilities", "is_faster"),
    [
        (False, False, {"avx2": True}, True),  # a laptop, or AMD before Zen 4
        (True, False, {"avx512_f": True}, False),
        (True, True, {}, True),
        (True, False, {"avx512_fp16": True}, True),  # a Xeon whose AMX is hidden
    ],
)
def test_mkl_is_chosen_on_newer_xeons_and_without_avx512(
    avx512, amx, capabilities, is_faster, monkeypatch
):
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert arithmetic._is_mkl_faster() == is_faster
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert arithmetic._is_mkl_faster() == (amx or not avx512)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)  # ARM
    assert not arithmetic._is_mkl_faster()


@pytest.fixture(params=LIBRARIES)
def library(request, monkeypatch):
    """Use the code path of another processor, if this one supports it."""
    for name, value in LIBRARIES[request.param].items():
        monkeypatch.setattr(arithmetic, name, value)
    return request.param


@pytest.mark.parametrize(("points", "rays"), [(130, 2), (0, 1)])
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 5e-6), (torch.float64, 1e-13), (torch.bfloat16, 0.06)]
)
def test_every_library_gives_the_fields_numbers_and_gradients(
    library, dtype, bound, points, rays, monkeypatch
):
    field, inputs, upstream = setting(width=64, layers=3, points=points, rays=rays, batch=2)
    monkeypatch.setattr(cpu, "WIDE", 64)
    true = exact(field, inputs, upstream)
    if dtype == torch.float64:
        inputs = [t.double() for t in inputs]
    else:
        field.float()
    found = results(field, inputs, upstream, is_rounded=dtype == torch.bfloat16)
    assert max(relative_errors(found, true)) < bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_library_multiplies_matrices_without_rows(library, dtype):
    x, y, weight = (torch.zeros(rows, n, dtype=dtype) for rows, n in ((0, 5), (0, 4), (4, 5)))
    assert arithmetic.product(x, weight).shape == arithmetic.product_times(x, weight, y).shape
    assert torch.equal(arithmetic.outer_product(x, y), torch.zeros(5, 4, dtype=dtype))


def test_sine_and_cosine_far_from_zero(library):
    x = torch.tensor([[-1e6, -300.0, 0.0], [7e4, 1e5, 3e5]])
    sine, cosine = torch.empty_like(x), torch.empty_like(x)
    arithmetic.sine_and_cosine(x, sine, cosine)
    torch.testing.assert_close(sine.double(), x.double().sin(), atol=2e-7, rtol=0)
    torch.testing.assert_close(cosine.double(), x.double().cos(), atol=2e-7, rtol=0)
    assert torch.equal(arithmetic.sine_(x.clone()), sine)
    rounded = [torch.empty_like(x, dtype=torch.bfloat16) for _ in range(2)]
    arithmetic.sine_and_cosine(x, *rounded)
    assert torch.equal(rounded[0], sine.bfloat16())
    assert torch.equal(rounded[1], cosine.bfloat16())
