"""What the compiler makes of the kernels for a Hopper GPU; no GPU is needed."""

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
from compile_kernels import Compiler

from siren.fused import packing, triton_gradients

HOPPER_SHARED_MEMORY = 227 * 1024  # bytes that one program may take
FIELDS = [(64, 0), (128, 0), (128, 32), (256, 0), (256, 32)]  # width, features beside the point


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    found = Compiler(tmp_path_factory.mktemp("triton"))
    yield found
    found.close()


def variants(width, channels):
    """Every kernel of one field, with all that can be asked of it."""
    piece = min(width, 128)
    field = {"H": width, "WIDTH": piece, "PIECES": width // piece, "CHANNELS": channels,
             "BLOCK": packing.BLOCK, "STAGES": packing.STAGES, "ON_DEVICE": True}  # fmt: skip
    yield "forward_kernel", {**field, "DENSITY_ONLY": False}
    yield "forward_kernel", {**field, "DENSITY_ONLY": True}
    yield "backward_kernel", {**field, "OF_POINTS": False, "OF_DIRECTIONS": False}
    if channels:
        yield "backward_kernel", {**field, "OF_POINTS": True, "OF_DIRECTIONS": True}
    reduction = {"H": width, "TILE": piece, "NARROW": triton_gradients.NARROW, "ON_DEVICE": True,
                 "STEP": triton_gradients.STEP, "STAGES": triton_gradients.STAGES}  # fmt: skip
    for right in sorted({width, channels, 0}):
        yield "reduction_kernel", {**reduction, "RIGHT": right}


@pytest.mark.slow
@pytest.mark.parametrize(("width", "channels"), FIELDS)
def test_all_kernels_compile_for_hopper(compiler, width, channels):
    for kernel, constants in variants(width, channels):
        name = f"{kernel} {constants}"
        warps = packing.launch(width)["num_warps"]
        found = compiler(
            kernel=kernel, constants=constants, capability=90, num_warps=warps,
            output="machine code",
        )  # fmt: skip
        assert found["all"]["HGMMA"] > 0, f"{name}: no use of Hopper's matrix units"
        assert "HMMA" not in found["all"], f"{name}: products on the slower matrix units"
        assert found["shared"] <= HOPPER_SHARED_MEMORY, name
        # Around the loops a few values may wait in local memory, inside them hardly any.
        assert found["stack"] <= 1024, name
        spills = found["loops"].get("LDL", 0) + found["loops"].get("STL", 0)
        assert spills <= 0.05 * sum(found["loops"].values()), (
            f"{name}: {spills} spills in its loops"
        )
        assert found["loops"]["LDGSTS"] > 0, f"{name}: weights are not fetched ahead"
