"""CUDA tensors without a GPU: the project's own code, on fake tensors.

`fake_gpu` makes the machine seem to have two GPUs of one kind. Inside of it the code runs on
"cuda:1" as it is, while "cuda:0" is the current device. Code that needs a real device is replaced:
random streams, pinned memory, Triton kernels, and the backward pass, since PyTorch's automatic
differentiation runs on threads of the device. Each forward pass of our own autograd functions is
followed at once by its backward pass, so that this one is checked as well.
"""

import contextlib
import types

import torch
from fake_gpu import GPU, without_kernels
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.overrides import TorchFunctionMode

from generators import (
    cameras,
    fast_rays,
    generators,
    ray_trial,
    sampling,
    volumetric_rendering,
)  # fmt: skip
from siren.fused import cuda, eager, launching, triton_field
from training import adversarial, layer_trial, losses
from training.adversarial import AdversarialGame

KIB = 1024
# Compute capability and shared memory of one program, as NVIDIA's programming guide has them.
GPUS = {
    "H100": (9, 0, 227 * KIB),
    "A100": (8, 0, 163 * KIB),
    "RTX 3090": (8, 6, 99 * KIB),
    "RTX 2080 Ti": (7, 5, 64 * KIB),
}


class Stream:
    """Stands for a random stream on a GPU."""

    def __init__(self, device):
        self.device = torch.device(device)


class WithoutDevice(TorchFunctionMode):
    """Replaces methods that enter the device, which needs a GPU, by operations that do not."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.__getitem__:
            return indexed(*args)
        if func is torch.Tensor.__setitem__:
            place, value = indexed(*args[:2]), args[2]
            if isinstance(value, torch.Tensor):
                return torch.ops.aten.copy_(place, value)
            return place.fill_(value)
        if func is torch.Tensor.copy_:
            return torch.ops.aten.copy_(*args, **(kwargs or {}))
        if func is torch.Tensor.contiguous:
            layout = (kwargs or {}).get("memory_format", torch.contiguous_format)
            (tensor,) = args
            is_so = tensor.is_contiguous(memory_format=layout)
            return tensor if is_so else tensor.clone(memory_format=layout)
        if func is torch.Tensor.new_tensor:
            return torch.tensor(args[1]).to(args[0])
        if func is torch.nn.functional.grid_sample:
            planes, places = args[:2]
            assert planes.device == places.device
            return planes.new_empty(*planes.shape[:2], *places.shape[1:-1])
        if func is torch.Tensor.__invert__:
            return torch.bitwise_not(*args)
        if func is torch.Tensor.requires_grad_:  # a graph of differentiation needs the device
            return args[0]
        return func(*args, **(kwargs or {}))


def indexed(tensor, index):
    """Return tensor[index] of a fake tensor."""
    index = list(index) if isinstance(index, tuple) else [index]
    if not any(i is Ellipsis for i in index):
        index.append(Ellipsis)
    at = next(place for place, i in enumerate(index) if i is Ellipsis)
    num_axes = sum(i is not None for i in index) - 1  # that the others stand for
    index[at : at + 1] = [slice(None)] * (tensor.dim() - num_axes)
    axis, gathered = 0, []
    for i in index:
        if i is None:
            tensor = tensor.unsqueeze(axis)
        elif isinstance(i, int):
            tensor = tensor.select(axis, i)
            continue
        elif isinstance(i, slice):
            if i != slice(None):
                tensor = torch.ops.aten.slice(tensor, axis, i.start, i.stop, i.step or 1)
        else:
            gathered += [None] * (axis - len(gathered)) + [torch.as_tensor(i)]
        axis += 1
    return torch.ops.aten.index(tensor, gathered) if gathered else tensor


def draw(kind):
    """Wrap a random draw to require a stream on the device of its values."""

    def drawn(shape, like, rng):
        assert rng.device == like.device
        return kind(shape, device=rng.device).to(like)

    return drawn


def moved(tensor, device):
    """Do as generators.cameras.moved, whose pinned memory needs a GPU."""
    return tensor.to(device, non_blocking=True)


class Context:
    """Stands for an autograd function's context between forward and backward."""

    def __init__(self, arguments):
        self.needs_input_grad = [isinstance(a, torch.Tensor) for a in arguments]

    def save_for_backward(self, *tensors):
        self.saved_tensors = tensors

    def set_materialize_grads(self, value):
        pass


def both_passes(function):
    """Return an apply for function that runs its forward pass, then its backward pass if asked."""

    @torch.no_grad()
    def apply(*arguments):
        context = Context(arguments)
        output = function.forward(context, *arguments)
        if is_learning:
            outputs = output if isinstance(output, tuple) else (output,)
            gradients = function.backward(context, *map(torch.empty_like, outputs))
            for gradient, of in zip(gradients, arguments, strict=True):
                if gradient is not None:
                    assert (gradient.shape, gradient.dtype) == (of.shape, of.dtype)
                    assert gradient.device == of.device
        return output

    def noting(*arguments):
        nonlocal is_learning
        is_learning = torch.is_grad_enabled()
        return apply(*arguments)

    is_learning = False
    return staticmethod(noting)


def backward(game, loss):
    """Stands for a backward pass: gives every parameter a gradient."""
    loss = game.scaler.scale(loss)
    assert (loss.device, loss.dim()) == (GPU, 0)
    for network in (game.generator, game.discriminator):
        for parameter in network.parameters():
            parameter.grad = torch.empty_like(parameter)


@contextlib.contextmanager
def fake_gpu(monkeypatch, kind):
    """Make the machine seem to have two GPUs; yield the kernels by name."""
    major, minor, shared = GPUS[kind]
    properties = types.SimpleNamespace(
        major=major, minor=minor, shared_memory_per_block_optin=shared, multi_processor_count=80
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: contextlib.nullcontext())
    for module in (torch.cuda.amp.common, torch.amp.autocast_mode):
        monkeypatch.setattr(module, "amp_definitely_not_available", lambda: False, raising=False)
    monkeypatch.setattr(cuda, "missing_tool", lambda: "")
    monkeypatch.setattr(cuda, "_fault", lambda *field: "")
    monkeypatch.setattr(ray_trial, "fault", lambda device: "")
    monkeypatch.setattr(layer_trial, "fault", lambda device, dtype: "")
    launching.find_blocks.cache_clear()
    for module in (cameras, generators, volumetric_rendering, adversarial, losses):
        monkeypatch.setattr(module, "moved", moved)
    # How many rays hit depends on values, which fake tensors lack.
    monkeypatch.setattr(
        generators, "rays_that_hit", lambda options: torch.arange(options.image_size**2 // 2)
    )
    monkeypatch.setattr(volumetric_rendering, "uniform", draw(torch.rand))
    monkeypatch.setattr(volumetric_rendering, "_normal", draw(torch.randn))

    def stream(*key, device=None):
        return sampling.stream(*key) if device is None else Stream(device)

    monkeypatch.setattr(adversarial, "stream", stream)
    found = without_kernels(monkeypatch)
    for function in (triton_field._FieldFunction, eager._FieldFunction, fast_rays._Composite):
        monkeypatch.setattr(function, "apply", both_passes(function))
    monkeypatch.setattr(AdversarialGame, "_backward", backward)
    monkeypatch.setattr(torch.autograd, "grad", gradients_like)
    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()), WithoutDevice():
        yield found
    launching.find_blocks.cache_clear()


def gradients_like(_, wanted, **options):
    """Return a gradient for each of the wanted tensors, as torch.autograd.grad does."""
    return tuple(map(torch.empty_like, wanted if isinstance(wanted, list) else [wanted]))
