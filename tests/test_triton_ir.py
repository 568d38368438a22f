"""Run the compiler's intermediate representation of the kernels in NumPy; compare with float64.

This finds faults of the compiler's front end, which Triton's interpreter bypasses; the other tests
use the interpreter if there is no GPU.
"""

import re

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
import test_fast_rays as ray_tests
import test_fused_layers as layer_tests
import test_triton_field as field_tests
import ttir
from fake_gpu import KERNELS
from test_triton_compiles import compiler  # noqa: F401 (a fixture)

from siren.fused import triton_field
from siren.fused.folded import ClearBelow
from training import layer_kernels

OPTIONS = {"num_warps", "enable_fp_fusion"}


class Compiled:
    """Stands for a kernel: compiles it on the first launch and runs its TTIR."""

    def __init__(self, compile_kernel, name):
        self.compile_kernel, self.name, self.texts = compile_kernel, name, {}

    def __getitem__(self, grid):
        def launch(*arguments, **constants):
            constants = {k: v for k, v in constants.items() if k not in OPTIONS}
            constants["ON_DEVICE"] = True
            key = str(constants)
            if key not in self.texts:
                operand = "fp32" if KERNELS[self.name][0] is layer_kernels else "fp16"
                self.texts[key] = self.compile_kernel(
                    kernel=self.name, constants=constants, capability=90, num_warps=8,
                    output="ttir", operand=operand,
                )  # fmt: skip
            flat = [
                a.detach().as_strided((a.numel(),), (1,)).numpy() if torch.is_tensor(a) else a
                for a in arguments
            ]
            ttir.launch(self.texts[key], grid, flat)

        return launch


@pytest.fixture
def compiled(compiler, monkeypatch):  # noqa: F811
    found = {name: Compiled(compiler, name) for name in KERNELS}
    for name, (module, _) in KERNELS.items():
        monkeypatch.setattr(module, name, found[name])
    return found


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("TALLSIREN", (256, 4, 1, 129, 3)),  # two pieces a layer, a block and a point
        ("EmbeddingPiGAN128", (128, 2, 2, 14, 7)),  # one piece; features beside the point
    ],
)
def test_the_compiled_kernels_equal_the_reference_gradients_included(
    compiled, monkeypatch, name, sizes
):
    if name.startswith("Embedding"):
        monkeypatch.setattr(field_tests.FIELDS[name], "embedding_shape", (32, 5, 0.1))
    field_tests.assert_equals_reference("cpu", name, torch.float16, sizes)
    of_field = [kernel for name, kernel in compiled.items()
                if KERNELS[name][0].__name__.startswith("siren")]  # fmt: skip
    assert all(kernel.texts for kernel in of_field)


def test_the_compiled_kernels_leave_clear_blocks_black(compiled):
    field_tests.test_blocks_without_density_may_be_left_black_and_the_gradients_stay(
        "cpu", ClearBelow(-1, 1)
    )
    assert compiled["forward_kernel"].texts  # and not the interpreter


@pytest.mark.parametrize("name", ["noise", "softplus and the last of one set"])
def test_the_compiled_kernels_of_rays_equal_the_reference(compiled, monkeypatch, name):
    with monkeypatch.context() as patched:
        ray_tests.test_pixels_and_gradients_are_those_of_the_reference(name, "cpu", patched)
    if name == "noise":
        ray_tests.test_fine_depths_are_those_of_the_reference(name, True, True, "cpu", monkeypatch)
        assert compiled["importance_kernel"].texts
    assert compiled["composite_back_kernel"].texts


def test_the_compiled_kernels_of_the_discriminator_equal_the_reference(compiled, monkeypatch):
    layer_tests.test_an_update_with_and_without_penalties_is_that_of_the_reference(
        monkeypatch, "CelebA", 0, 1
    )
    assert compiled["rectify_back_kernel"].texts


def test_the_loop_over_wide_layers_carries_both_pieces_and_the_next(compiled):
    case = field_tests.make_case("cpu", "TALLSIREN", 256, 2, 1, 1, 1)
    film = field_tests.film_of(case.field, case.latents)
    output = triton_field.evaluate(
        case.field.joined(film), case.points, case.directions, torch.float16
    )
    output.sum().backward()
    for name, loops in (("forward_kernel", 1), ("backward_kernel", 2)):
        (text,) = compiled[name].texts.values()
        carried = [
            len(re.findall(r"tensor<\d+x\d+xf16>", line))
            for line in text.splitlines()
            if "scf.for" in line
        ]
        assert carried == [3] * loops, name


@pytest.mark.parametrize("operation", ["arith.xori %a, %b : i32", "math.tanh %a : f32"])
def test_an_operation_that_is_not_known_is_an_error(operation):
    text = f"module {{\ntt.func public @k(%a: i32, %b: i32) {{\n%0 = {operation}\n}}\n}}"
    with pytest.raises(NotImplementedError, match="is not known here"):
        ttir.launch(text, (1,), [1, 2])


def test_an_access_outside_of_its_array_is_an_error():
    text = """module {
      tt.func public @k(%arg0: !tt.ptr<f32>, %arg1: i32) {
        %0 = tt.addptr %arg0, %arg1 : !tt.ptr<f32>, i32
        %1 = tt.load %0 : !tt.ptr<f32>
      }
    }"""
    ttir.launch(text, (1,), [np.ones(3, np.float32), 2])
    with pytest.raises(AssertionError, match="outside of its array"):
        ttir.launch(text, (1,), [np.ones(3, np.float32), 3])
