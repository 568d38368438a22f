"""The comparison of the Triton kernels with PyTorch's operations before their first use."""

import types

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
from test_triton_field import device  # noqa: F401 (a fixture with mark.gpu)

from generators import fast_rays, ray_trial
from siren.fused import cuda, kernels, launching, trial, triton_field, triton_gradients
from siren.fused.folded import ClearBelow
from training import fused_layers, layer_kernels, layer_trial


def field_fault(kind, num_inputs=3, dtype=torch.float16):
    return trial.field_fault(torch.device(kind), 64, num_inputs, dtype)


def is_warned_of():
    return pytest.warns(UserWarning, match="the field is evaluated by PyTorch, not by Triton: ")


@pytest.fixture(autouse=True)
def _nothing_remembered():
    for remembered in (ray_trial.fault, layer_trial.fault):
        remembered.cache_clear()
    yield
    for remembered in (ray_trial.fault, layer_trial.fault):
        remembered.cache_clear()


def test_right_kernels_pass_inside_of_training_and_of_renders(device):  # noqa: F811
    state, half = torch.get_rng_state(), torch.bfloat16
    assert field_fault(device, num_inputs=35, dtype=half) == ""
    with torch.inference_mode(), torch.autocast(device, dtype=half):
        assert field_fault(device) == ""
        assert ray_trial.fault(torch.device(device)) == ""
        assert layer_trial.fault(torch.device(device), half) == ""
    assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn from the common stream


def halved_after(place, name, argument, monkeypatch):
    """Halve what one kernel has written: an argument, by its place among the launch's."""
    launch, wanted = launching.launch, getattr(place, name)

    def wrong(kernel, grid, *arguments, **constants):
        launch(kernel, grid, *arguments, **constants)
        if kernel is wanted:
            arguments[argument].mul_(0.5)

    monkeypatch.setattr(launching, "launch", wrong)


def test_a_wrong_field_is_found(monkeypatch):
    right = triton_gradients.gradients

    def wrong(*args, **kwargs):  # as with a loop that forgets what an iteration computed
        points, directions, first, direction, inner, *rest = right(*args, **kwargs)
        return points, directions, first, direction, 0.1 * inner, *rest

    with monkeypatch.context() as patch, is_warned_of():
        patch.setattr(triton_gradients, "gradients", wrong)
        assert field_fault("cpu") == "its results are off by 90%"
    forward = triton_field._forward
    for variant in ({}, {"clear_below": ClearBelow()}, {"is_density_only": True}):

        def wrong_forward(*args, variant=variant, **kwargs):
            is_wrong = all(kwargs.get(name) == value for name, value in variant.items())
            return forward(*args, **kwargs) * (torch.nan if is_wrong else 1)

        with monkeypatch.context() as patch, is_warned_of():
            patch.setattr(triton_field, "_forward", wrong_forward)
            assert field_fault("cpu") == "its results are off by nan%"


def test_a_kernel_that_is_not_compiled_is_told_in_one_line(monkeypatch):
    class Kernel:
        def __getitem__(self, grid):
            raise RuntimeError("out of resource: shared memory\nand more")

    monkeypatch.setattr(kernels, "forward_kernel", Kernel())
    with is_warned_of():
        assert field_fault("cpu") == "RuntimeError: out of resource: shared memory"


def test_a_gpu_that_has_failed_ends_the_process_with_the_name_of_the_switch(monkeypatch):
    class Kernel:
        def __getitem__(self, grid):
            raise torch.AcceleratorError("an illegal memory access was encountered")

    monkeypatch.setattr(kernels, "forward_kernel", Kernel())
    with pytest.raises(RuntimeError, match="set PIGAN_TRITON=0 in the environment"):
        field_fault("cpu")


def test_wrong_rays_and_layers_are_found_warned_of_once_and_not_used(monkeypatch):
    cpu = torch.device("cpu")
    from generators import ray_kernels

    for (module, function), (place, kernel, argument), arguments, what in (
        ((ray_trial, "fault"), (ray_kernels, "importance_kernel", 5), (cpu,), "rays are"),
        ((layer_trial, "fault"), (layer_kernels, "rectify_kernel", 6), (cpu, torch.bfloat16),
         "the discriminator's layers are"),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            halved_after(place, kernel, argument, patch)
            with pytest.warns(
                UserWarning, match=f"{what}.* by PyTorch, not by Triton: its results"
            ):
                assert "off by" in getattr(module, function)(*arguments)
            assert "off by" in getattr(module, function)(*arguments)  # remembered: no warning
    monkeypatch.setattr(cuda, "half_type", lambda _: torch.bfloat16)
    monkeypatch.setattr(cuda, "missing_tool", lambda: "")
    samples = types.SimpleNamespace(is_cuda=True, dtype=torch.float32, device=cpu)
    assert not fast_rays.is_supported(samples)
    ray_trial.fault.cache_clear()
    assert fast_rays.is_supported(samples)
    gpu = types.SimpleNamespace(type="cuda")
    monkeypatch.setattr(layer_trial, "fault", lambda *_: "its results are off by 50%")
    assert fused_layers.choose(gpu) is fused_layers.PLAIN
    monkeypatch.setattr(layer_trial, "fault", lambda *_: "")
    assert fused_layers.choose(gpu) is fused_layers.FUSED
