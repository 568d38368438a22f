"""Choice of the field on CUDA; its eager implementation against the reference, on the CPU."""

import functools
import sys
import sysconfig
import types

import pytest
import torch
from test_siren import GRID, by_eager, inputs, results_of

from siren.fused import cuda, eager, fused_field, launching
from siren.siren import SPATIALSIRENBASELINE, TALLSIREN, EmbeddingPiGAN128

GPU = torch.device("cuda", 0)
HALVES = (torch.float16, torch.bfloat16)


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Make the machine seem to have a GPU, Triton and a compiler, under autocast."""

    def pretend(major, shared_memory, dtype):
        properties = types.SimpleNamespace(
            major=major, minor=6, shared_memory_per_block_optin=shared_memory
        )
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: dtype is not None)
        monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: dtype)

    runtime = types.ModuleType("triton.runtime")
    active = types.SimpleNamespace(get_current_device=lambda: 0)
    runtime.driver = types.SimpleNamespace(active=active)
    monkeypatch.setitem(sys.modules, "triton", types.ModuleType("triton"))
    monkeypatch.setitem(sys.modules, "triton.runtime", runtime)
    monkeypatch.setenv("CC", sys.executable)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})
    trial = types.ModuleType("siren.fused.trial")
    trial.field_fault = lambda *_: ""
    monkeypatch.setitem(sys.modules, "siren.fused.trial", trial)
    monkeypatch.setattr("siren.fused.trial", trial, raising=False)
    remembered = (cuda.missing_tool, cuda._fault, launching.find_blocks)
    for cached in remembered:
        cached.cache_clear()
    yield pretend
    for cached in remembered:
        cached.cache_clear()


NOT_FITTING = "the GPU is older than Ampere, or has too little shared memory"


@pytest.mark.parametrize(
    ("major", "shared_memory", "dtype", "width", "path"),
    [
        (9, 232_448, torch.float16, 256,
         "Triton, float16, 128 points forward, 128 backward, tiles of 128, 8 warps, 2 stages"),
        (8, 101_376, torch.bfloat16, 64,
         "Triton, bfloat16, 128 points forward, 64 backward, tiles of 64, 4 warps, 2 stages"),
        (9, 232_448, torch.float16, 96, "folded, float16 (not by Triton: a field 96 wide)"),
        (9, 232_448, torch.float32, 256, "folded, float32"),
        (9, 232_448, None, 256, "folded, float32"),
        (7, 65_536, torch.float16, 256, f"folded, float16 (not by Triton: {NOT_FITTING})"),
        (7, 65_536, torch.bfloat16, 256, "folded, float32"),  # such a GPU multiplies it slowly
        (6, 49_152, torch.float16, 256, "folded, float32"),
    ],
)  # fmt: skip
def test_what_serves_is_told_in_one_line(gpu, major, shared_memory, dtype, width, path):
    gpu(major, shared_memory, dtype)
    assert fused_field.path_name(GPU, width) == path


def test_without_a_c_compiler_pytorch_serves_and_the_line_says_why(gpu, monkeypatch, tmp_path):
    gpu(8, 101_376, torch.float16)
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    cuda.missing_tool.cache_clear()
    assert fused_field.path_name(GPU, 256) == (
        "folded, float16 (not by Triton: no C compiler: install gcc or clang)"
    )
    compiler = tmp_path / "gcc"
    compiler.touch(mode=0o755)
    cuda.missing_tool.cache_clear()
    assert fused_field.path_name(GPU, 256).startswith("Triton, float16")
    monkeypatch.setenv("CC", "no-such-compiler")
    cuda.missing_tool.cache_clear()
    assert fused_field.path_name(GPU, 256).endswith("CC names no program: no-such-compiler)")


def test_an_environment_variable_turns_triton_off(gpu, monkeypatch):
    gpu(8, 101_376, torch.float16)
    monkeypatch.setenv("PIGAN_TRITON", "0")
    path = fused_field.path_name(GPU, 256)
    assert path == "folded, float16 (not by Triton: PIGAN_TRITON=0)"


def test_without_the_headers_of_python_pytorch_serves_and_the_line_says_why(gpu, tmp_path):
    gpu(8, 101_376, torch.float16)
    (tmp_path / "Python.h").unlink()
    assert fused_field.path_name(GPU, 256).endswith(
        "(not by Triton: no Python.h for its C compiler: install python3-dev)"
    )


def test_without_triton_pytorch_serves_and_the_line_says_why(gpu, monkeypatch):
    gpu(8, 101_376, torch.float16)
    monkeypatch.setitem(sys.modules, "triton.runtime", None)
    cuda.missing_tool.cache_clear()
    path = fused_field.path_name(GPU, 256)
    assert path == "folded, float16 (not by Triton: it is not installed)"


def test_where_triton_cannot_start_pytorch_serves_and_the_line_says_why(gpu, monkeypatch):
    gpu(8, 101_376, torch.float16)

    def start():
        raise PermissionError("[Errno 13] Permission denied: '/.triton'\nand more")

    monkeypatch.setattr(sys.modules["triton.runtime"].driver.active, "get_current_device", start)
    assert fused_field.path_name(GPU, 256) == (
        "folded, float16 (not by Triton: it cannot start: PermissionError: [Errno 13] Permission "
        "denied: '/.triton')"
    )


def test_where_triton_computes_something_else_pytorch_serves_and_the_line_says_why(
    gpu, monkeypatch
):
    gpu(8, 101_376, torch.float16)
    tried = []
    trial = sys.modules["siren.fused.trial"]

    def field_fault(*field):
        tried.append(field)
        return "its results are off by 93%" if field[1] == 256 else ""

    monkeypatch.setattr(trial, "field_fault", field_fault)
    for _ in range(2):  # it is tried once
        assert fused_field.path_name(GPU, 256, 35) == (
            "folded, float16 (not by Triton: its results are off by 93%)"
        )
        assert fused_field.path_name(GPU, 64).startswith("Triton, float16")
    assert tried == [(GPU, 256, 35, torch.float16), (GPU, 64, 3, torch.float16)]


@pytest.mark.parametrize(("major", "dtype"), [(7, torch.float16), (7, None), (9, torch.float16)])
def test_the_path_that_is_named_is_taken(gpu, monkeypatch, major, dtype):
    taken = []
    stub = types.ModuleType("siren.fused.triton_field")
    stub.evaluate = stub.density = lambda *args, **_: taken.append(("Triton", args[-1]))
    monkeypatch.setitem(sys.modules, "siren.fused.triton_field", stub)
    monkeypatch.setattr("siren.fused.triton_field", stub, raising=False)
    for name in ("evaluate", "density"):
        monkeypatch.setattr(eager, name, lambda *args: taken.append(("folded", args[-1])))
    gpu(major, 232_448, dtype)
    field = types.SimpleNamespace(width=256)
    points = types.SimpleNamespace(device=GPU, shape=(1, 5, 3))
    cuda.evaluate(field, points, points)
    cuda.density(field, points)
    assert taken == [("Triton" if major == 9 else "folded", dtype)] * 2


def test_the_cpu_has_paths_of_its_own():
    assert fused_field.path_name(torch.device("cpu"), 256) == "folded"


@pytest.mark.parametrize("cls", [TALLSIREN, EmbeddingPiGAN128])
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_operands_keep_within_the_bounds_of_the_kernels(cls, dtype, monkeypatch):
    monkeypatch.setattr(cls, "embedding_shape", cls.embedding_shape and GRID)
    field = cls(z_dim=8, hidden_dim=64, num_layers=3, density_scale=20.0).double()
    points, directions, z = inputs(60, 3)
    upstream = torch.randn(2, 60, 4, dtype=torch.float64) * 1e-9  # float16 alone would lose it
    upstream[:1] *= 1e3  # and objects differ
    evaluate = functools.partial(by_eager, dtype=dtype)
    fast, slow = results_of(evaluate, field, points, directions, z, upstream)
    roundings = {torch.float16: 2**-11, torch.bfloat16: 2**-8}[dtype]
    for columns in (slice(0, 3), slice(3, 4)):
        difference = (fast[0] - slow[0])[..., columns].norm()
        assert difference < 3 * roundings * slow[0][..., columns].norm()
    for one, other in zip(fast[1:], slow[1:], strict=True):
        assert (one - other).norm() <= 10 * roundings * other.norm()
    alone = eager.density(field.joined(field.mapping_network(z)), field.encode(points), dtype)
    torch.testing.assert_close(alone, fast[0][..., 3], rtol=1e-4, atol=1e-5)


def test_float16_gradients_of_steep_layers_stay_finite():
    torch.manual_seed(0)
    field = SPATIALSIRENBASELINE(z_dim=8, hidden_dim=256, num_layers=8)
    with torch.no_grad():
        for layer in list(field.film_layers())[1:]:
            layer.weight *= 5  # the gradient grows some 20,000 times on its way
    points, directions = torch.rand(1, 200, 3) * 0.24 - 0.12, torch.randn(1, 100, 3)
    film = field.mapping_network(torch.randn(1, 8))
    output = by_eager(field, points, directions, film, torch.float16)
    gradients = torch.autograd.grad(output.square().mean(), list(field.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_the_eager_path_takes_no_points_and_keeps_its_precision_under_autocast():
    field = TALLSIREN(z_dim=8, hidden_dim=16, num_layers=2)
    points, directions, z = (t.float() for t in inputs(12, 3))
    joined = field.joined(field.mapping_network(z))
    exact = eager.evaluate(joined, points, directions)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(
            eager.evaluate(joined, points, directions), exact, rtol=0, atol=0
        )
    output = eager.evaluate(joined, points[:, :0], directions.requires_grad_())
    assert output.shape == (2, 0, 4)
    weight = field.network[1].layer.weight
    assert all((t == 0).all() for t in torch.autograd.grad(output.sum(), [weight, directions]))
    assert eager.density(joined, points[:, :0]).shape == (2, 0)
