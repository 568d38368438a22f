"""Launches of the Triton kernels: GPU, block sizes and arguments."""

import ast
import inspect
import re
import types
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("triton", reason="Triton is not installed")
from siren.fused import kernels, launching, packing, triton_field, triton_gradients
from siren.siren import TALLSIREN, EmbeddingPiGAN128


class Recorder:
    """Stands for a kernel: records its launches."""

    def __init__(self, on_launch=lambda: None):
        self.launches, self.on_launch = [], on_launch

    def __getitem__(self, grid):
        def launch(*arguments, **constants):
            self.launches.append(types.SimpleNamespace(
                grid=grid, arguments=arguments, constants=constants, seen=self.on_launch()
            ))  # fmt: skip

        return launch


@pytest.fixture
def recorders(monkeypatch):
    found = {}
    for name in ("forward_kernel", "backward_kernel", "reduction_kernel"):
        found[name] = Recorder()
        monkeypatch.setattr(kernels, name, found[name])
    return types.SimpleNamespace(**found)


def test_a_kernel_is_launched_on_the_device_of_its_tensors(monkeypatch):
    current = [0]

    def exchange(device):
        previous, current[0] = current[0], device if device >= 0 else current[0]
        return previous

    monkeypatch.setattr(torch.cuda, "_exchange_device", exchange)
    monkeypatch.setattr(torch.cuda, "_maybe_exchange_device", exchange)
    kernel = Recorder(lambda: current[0])
    with FakeTensorMode():
        launching.launch(kernel, (1,), 5, torch.empty(3, device="cuda:1"), H=64)
    (launch,) = kernel.launches
    assert launch.seen == 1
    assert launch.constants == {"H": 64, "ON_DEVICE": True, "enable_fp_fusion": True}
    assert current == [0]  # and the current device is again what it was


@pytest.mark.parametrize("start", range(5))
def test_parts_of_tensors_reach_the_kernels_at_aligned_addresses(start):
    whole = torch.rand(1, 24, 3)
    points, directions = whole[:, start:], whole[:, start:]
    found = packing.inputs(points, directions, torch.float16)
    assert found.points.data_ptr() % 16 == found.directions.data_ptr() % 16 == 0
    assert torch.equal(found.points, points)
    assert torch.equal(found.directions, directions)


@pytest.mark.parametrize("module", [triton_field, triton_gradients])
def test_no_kernel_is_launched_another_way(module):
    started = [
        ast.unparse(node)
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)
    ]
    assert started == []


def evaluate_and_differentiate(cls, wants):
    field = cls(z_dim=4, hidden_dim=64, num_layers=2)
    points, directions = torch.rand(2, 150, 3), torch.rand(2, 3, 3)
    folded = field.joined(field.mapping_network(torch.randn(2, 4)))
    encoded = field.encode(points).detach()
    for tensor, name in ((encoded, "points"), (directions, "directions")):
        tensor.requires_grad_(name in wants)
    output = triton_field.evaluate(folded, encoded, directions, torch.float16)
    output.sum().backward()
    return encoded, directions


@pytest.mark.parametrize(
    ("wants", "sizes"),
    [
        ((), (0, 0, 0)),
        (("points",), (2 * 256 * 3, 2 * 256 * 4, 0)),  # of whole blocks of rows
        (("directions",), (0, 0, 2 * 256 * 3)),
    ],
)
def test_gradients_of_the_inputs_are_made_only_where_they_are_asked_for(
    recorders, monkeypatch, wants, sizes
):
    monkeypatch.setattr(EmbeddingPiGAN128, "embedding_shape", (4, 5, 0.1))
    encoded, directions = evaluate_and_differentiate(EmbeddingPiGAN128, wants)
    (launch,) = recorders.backward_kernel.launches
    parameters = inspect.signature(kernel_source("backward_kernel")).parameters
    given = dict(zip(parameters, launch.arguments, strict=False))
    names = ("of_points_ptr", "of_features_ptr", "of_directions_ptr")
    assert tuple(given[name].numel() for name in names) == sizes
    assert launch.constants["OF_POINTS"] == ("points" in wants)
    assert (encoded.grad is not None) == ("points" in wants)
    assert (directions.grad is not None) == ("directions" in wants)


def kernel_source(name):
    """Return the Python function of a kernel, which the recorders replace."""
    namespace: dict = {}
    tree = ast.parse(inspect.getsource(kernels))
    (found,) = (node for node in tree.body if getattr(node, "name", "") == name)
    found.decorator_list = []
    for argument in found.args.args:
        argument.annotation = None
    exec(compile(ast.Module([found], []), name, "exec"), namespace)
    return namespace[name]


@pytest.mark.parametrize("block", [64, 128])
def test_the_grids_cover_all_points_whatever_the_block(recorders, monkeypatch, block):
    blocks = launching.Blocks(forward=block, backward=block, tile=32)
    monkeypatch.setattr(launching, "blocks_of", lambda device: blocks)
    evaluate_and_differentiate(TALLSIREN, ())
    (forward,), (backward,) = recorders.forward_kernel.launches, recorders.backward_kernel.launches
    assert forward.grid == (-(-150 // block), 2)
    assert backward.grid == (256 // block, 2)  # rows are padded to whole blocks of 128
    assert forward.constants["BLOCK"] == backward.constants["BLOCK"] == block
    assert {launch.constants["TILE"] for launch in recorders.reduction_kernel.launches} == {32}
    assert all(launch.grid[0] == 2 for launch in recorders.reduction_kernel.launches)


HOPPER, AMPERE, ADA = 232_448, 166_912, 101_376  # bytes that one program may take


@pytest.mark.parametrize(
    ("capability", "shared", "sizes"),
    [
        ((7, 5), 65_536, None),
        ((8, 0), AMPERE, (64, 64, 64)),
        ((8, 6), ADA, (128, 64, 64)),
        ((8, 7), AMPERE, (64, 64, 64)),
        ((8, 9), ADA, (128, 64, 64)),
        ((9, 0), HOPPER, (128, 128, 128)),
        ((9, 0), ADA, None),
        ((10, 0), HOPPER, (128, 128, 64)),
        ((10, 3), HOPPER, (128, 128, 64)),
        ((12, 0), ADA, (128, 64, 64)),
        ((12, 1), ADA, (128, 64, 64)),
        ((12, 0), 65_536, None),
    ],
)
def test_sizes_fit_the_gpu(capability, shared, sizes):
    expected = sizes and launching.Blocks(*sizes)
    assert launching.blocks_for(capability, shared) == expected


def test_sizes_are_told_in_one_line_and_asked_of_the_device_once(monkeypatch):
    asked = []
    properties = types.SimpleNamespace(major=8, minor=6, shared_memory_per_block_optin=ADA)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: asked.append(device) or properties
    )
    launching.find_blocks.cache_clear()
    for _ in range(2):
        found = launching.blocks_of(torch.device("cuda", 3))
    launching.find_blocks.cache_clear()
    assert str(found) == "128 points forward, 64 backward, tiles of 64"
    assert asked == [torch.device("cuda", 3)]


def test_the_oldest_pytorch_that_is_accepted_tells_the_shared_memory_of_a_gpu():
    requirements = (Path(__file__).parent.parent / "requirements.txt").read_text()
    (version,) = re.findall(r"^torch>=(\d+)\.(\d+)$", requirements, re.M)
    assert tuple(map(int, version)) >= (2, 7)  # the first with shared_memory_per_block_optin
