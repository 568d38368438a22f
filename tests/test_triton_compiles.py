"""Compile the kernels for every supported GPU and check the result; needs no GPU."""

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
from compile_kernels import Compiler

from generators import fast_rays
from siren.fused import launching, triton_gradients
from training import fused_layers

# By compute capability: bytes of shared memory that one program may take, and the instruction of
# the matrix units. Source: the table of technical specifications in the CUDA C++ Programming Guide.
GPUS = {
    80: (163 * 1024, "HMMA"),
    86: (99 * 1024, "HMMA"),
    89: (99 * 1024, "HMMA"),
    90: (227 * 1024, "HGMMA"),
    100: (227 * 1024, "UTCHMMA"),
    120: (99 * 1024, "HMMA"),
}
FIELDS = [(64, 0), (128, 32), (256, 0), (256, 32)]  # width, features beside the point
# Percent of the loops' instructions. Data-centre Blackwell is a little above with features beside
# the point (3.18) and with bfloat16 operands (3.22), and at 2.93 else, with Triton 3.9.
MOST_SPILLS, MOST_SPILLS_ON_100 = 3.0, 3.3


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    found = Compiler(tmp_path_factory.mktemp("triton"))
    yield found
    found.close()


def blocks_for(capability):
    return launching.blocks_for(divmod(capability, 10), GPUS[capability][0])


def variants(blocks, width, channels):
    """Yield every kernel of one field with each combination of its options."""
    piece = min(width, 128)
    field = {"H": width, "WIDTH": piece, "PIECES": width // piece, "CHANNELS": channels,
             "STAGES": launching.STAGES, "ON_DEVICE": True}  # fmt: skip
    forward, backward = {**field, "BLOCK": blocks.forward}, {**field, "BLOCK": blocks.backward}
    yield "forward_kernel", {**forward, "DENSITY_ONLY": False, "SKIPS_CLEAR": True}
    yield "backward_kernel", {**backward, "OF_POINTS": False, "OF_DIRECTIONS": False}
    reduction = {"H": width, "TILE": min(width, blocks.tile), "NARROW": triton_gradients.NARROW,
                 "STEP": triton_gradients.STEP, "STAGES": triton_gradients.STAGES,
                 "ON_DEVICE": True}  # fmt: skip
    yield "reduction_kernel", {**reduction, "RIGHT": width}
    yield "forward_kernel", {**forward, "DENSITY_ONLY": True, "SKIPS_CLEAR": False}
    if channels:
        yield "backward_kernel", {**backward, "OF_POINTS": True, "OF_DIRECTIONS": True}
    for right in sorted({channels, 0}):
        yield "reduction_kernel", {**reduction, "RIGHT": right}


def check(compiler, capability, kernel, constants, operand="fp16"):
    width = constants["H"]
    found = compiler(
        kernel=kernel, constants=constants, capability=capability, output="machine code",
        num_warps=launching.num_warps(width), operand=operand,
    )  # fmt: skip
    shared, matrix_instruction = GPUS[capability]
    loops = found["loops"]
    name = f"{kernel} on {capability}, {operand}: {constants}"
    assert found["shared"] <= shared, name
    assert loops.get(matrix_instruction, 0) > 0, f"{name}: no use of its matrix units in loops"
    spills = 100 * (loops.get("LDL", 0) + loops.get("STL", 0)) / sum(loops.values())
    most = MOST_SPILLS_ON_100 if capability == 100 else MOST_SPILLS
    assert spills <= most, f"{name}: {spills:.1f} % of its loops are spills"
    assert found["stack"] <= 1280, f"{name}: {found['stack']} bytes wait in local memory"
    assert loops.get("LDGSTS", 0) > 0, f"{name}: operands are not fetched ahead"


@pytest.mark.parametrize("kernel", ["forward_kernel", "backward_kernel", "reduction_kernel"])
def test_the_kernels_of_training_compile_for_a_common_gpu(compiler, kernel):
    constants = dict(list(variants(blocks_for(86), 256, 0))[:3])[kernel]
    check(compiler, 86, kernel, constants)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "channels"), FIELDS)
@pytest.mark.parametrize("capability", GPUS)
def test_all_kernels_compile_for_every_gpu_they_serve(compiler, capability, width, channels):
    for kernel, constants in variants(blocks_for(capability), width, channels):
        check(compiler, capability, kernel, constants)


@pytest.mark.slow
@pytest.mark.parametrize("capability", GPUS)
def test_the_kernels_of_training_compile_with_bfloat16_operands(compiler, capability):
    for kernel, constants in list(variants(blocks_for(capability), 256, 0))[:3]:
        check(compiler, capability, kernel, constants, "bf16")


RAYS = {"HAS_NOISE": True, "IS_SOFTPLUS": True, "BLOCK": fast_rays.RAYS, "ON_DEVICE": True}
BLENDED = {**RAYS, "S1": 12, "S2": 12, "HAS_END": True, "BACKGROUND": 2}
ROWS = {"BLOCK": triton_gradients.BLOCK, "ON_DEVICE": True}
LAYERS = {"SLOPE": 0.2, "SCALE": 0.5**0.5, "HAS_SHARES": True, "HAS_SHORTCUT": True,
          "BLOCK": fused_layers.BLOCK, "ON_DEVICE": True}  # fmt: skip
SMALL = {
    "importance_kernel": {**RAYS, "S": 48, "COUNT": 48, "WIDTH": 64, "BLOCK": fast_rays.TILE // 64,
                          "HAS_QUANTILES": True, "HAS_END": True, "LAG": 1},
    "composite_kernel": BLENDED,
    "composite_back_kernel": {**BLENDED, "HAS_DEPTH": True, "HAS_OPACITY": True},
    "upstream_kernel": {**ROWS, "H": 256},
    "rows_kernel": {**ROWS, "CHANNELS": 32},
    "rectify_kernel": {**LAYERS, "IS_MAP": True},
    "rectify_back_kernel": {**LAYERS, "OF_CONSTANTS": True},
}  # fmt: skip


@pytest.mark.parametrize(
    "capability", [pytest.param(c, marks=[] if c == 86 else pytest.mark.slow) for c in (75, *GPUS)]
)
@pytest.mark.parametrize("kernel", SMALL)
def test_the_kernels_around_the_field_compile_without_spills(compiler, kernel, capability):
    found = compiler(
        kernel=kernel, constants=SMALL[kernel], capability=capability, output="machine code",
        num_warps=4,
    )  # fmt: skip
    assert found["stack"] == 0
    assert found["shared"] <= 16 * 1024
