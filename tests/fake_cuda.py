"""CUDA tensors without a GPU: fake tensors, which have a device and a shape but no memory.

`fake_gpu` makes the machine seem to have two GPUs of one kind. Inside of it the project's own code
runs on "cuda:1" as it is, while "cuda:0" is the current device, and `Watch` sees every operation.
Code that needs a real device is replaced: random streams, pinned memory, the launch of Triton
kernels, whose arguments are checked instead, and the backward pass, since PyTorch's automatic
differentiation runs on threads of the device. Each forward pass of the field's own autograd
function is followed at once by its backward pass, so that this one is checked as well.
"""

import collections
import contextlib
import types

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from checkpoint_io import network_state
from generators import cameras, generators, sampling, volumetric_rendering
from siren.fused import cuda, eager, kernels, launching, triton_field
from training import adversarial

GPU = torch.device("cuda", 1)
KIB = 1024
# Compute capability and shared memory of one program, as NVIDIA's programming guide has them.
GPUS = {
    "H100": (9, 0, 227 * KIB),
    "A100": (8, 0, 163 * KIB),
    "RTX 3090": (8, 6, 99 * KIB),
    "RTX 2080 Ti": (7, 5, 64 * KIB),
}
WAITS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "unique_dim")


class Stream:
    """Stands for a random stream on a GPU."""

    def __init__(self, device):
        self.device = torch.device(device)


class Watch(TorchDispatchMode):
    """Counts GPU operations, and records those that mix devices or make the host wait."""

    def __init__(self):
        super().__init__()
        self.mixed, self.waits, self.launches = [], [], collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        leaves = torch.utils._pytree.tree_leaves
        found = [t for t in leaves([args, kwargs, out]) if isinstance(t, torch.Tensor)]
        name = func.overloadpacket.__name__
        devices = {t.device for t in found if t.dim() > 0}
        if len(devices) > 1 and name not in ("_to_copy", "copy_"):
            self.mixed.append((name, sorted(map(str, devices))))
        returned = [value.alias_info for value in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in returned)
        if GPU in {t.device for t in found}:
            self.launches[name] += not (is_view or "empty" in name)
            if name in WAITS or (name in ("_to_copy", "copy_") and is_awaited(args, kwargs, out)):
                self.waits.append(name)
        return out


def is_awaited(args, kwargs, out):
    """Return whether a copy between GPU and host makes the host wait for the GPU."""
    pair = [t.device.type for t in (*args[:2], out) if isinstance(t, torch.Tensor)]
    non_blocking = (kwargs or {}).get("non_blocking", args[2] if len(args) > 2 else False)
    return {"cpu", "cuda"} <= set(pair) and not non_blocking


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


class Kernel:
    """Stands for a Triton kernel: checks the arguments of its launches and counts them."""

    def __init__(self):
        self.launches = 0

    def __getitem__(self, grid):
        def launch(*arguments, **constants):
            tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
            assert {t.device for t in tensors} == {GPU}
            assert all(t.is_contiguous() for t in tensors)
            assert constants["ON_DEVICE"] is True
            assert all(size > 0 for size in grid)
            assert all(size < 2**16 for size in grid[1:])
            assert all(abs(a) < 2**31 for a in arguments if isinstance(a, int))
            self.launches += 1

        return launch


def on_gpu(make):
    """Return the module of make(), with fake tensors on the GPU as parameters."""
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        module = network_state.unfilled(make)
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                shape = tuple(value.shape)
                # As AdversarialGame lays out the discriminator.
                layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
                empty = torch.empty(shape, device=GPU, memory_format=layout)
                part._parameters[name] = torch.nn.Parameter(empty, requires_grad=False)
    return module


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


def both_passes(function):
    """Return an apply for function that runs its forward pass, then its backward pass if asked."""

    @torch.no_grad()
    def apply(*arguments):
        context = Context(arguments)
        output = function.forward(context, *arguments)
        if is_learning:
            gradients = function.backward(context, torch.empty_like(output))
            for gradient, of in zip(gradients, arguments, strict=True):
                if isinstance(of, torch.Tensor):
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
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_, **__: self)  # see on_gpu
    monkeypatch.setattr(cuda, "missing_tool", lambda: "")
    launching.find_blocks.cache_clear()
    for module in (cameras, generators, volumetric_rendering, adversarial):
        monkeypatch.setattr(module, "moved", moved)
    # How many rays hit depends on values, which fake tensors lack.
    monkeypatch.setattr(
        generators, "rays_that_hit", lambda options: torch.arange(options.image_size**2 // 2)
    )
    monkeypatch.setattr(volumetric_rendering, "_uniform", draw(torch.rand))
    monkeypatch.setattr(volumetric_rendering, "_normal", draw(torch.randn))
    of_cpu = sampling.step_rng

    def step_rng(seed, rank, step, purpose, device):
        on_cpu = device.type == "cpu"
        return of_cpu(seed, rank, step, purpose, device) if on_cpu else Stream(device)

    monkeypatch.setattr(adversarial, "step_rng", step_rng)
    found = {name: Kernel() for name in ("forward_kernel", "backward_kernel", "reduction_kernel")}
    for name, kernel in found.items():
        monkeypatch.setattr(kernels, name, kernel)
    for module in (triton_field, eager):
        function = module._FieldFunction
        monkeypatch.setattr(function, "apply", both_passes(function))
    monkeypatch.setattr(adversarial.AdversarialGame, "_backward", backward)
    monkeypatch.setattr(torch.autograd, "grad", lambda _, wanted, **__: (torch.empty_like(wanted),))
    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()), WithoutDevice():
        yield found
    launching.find_blocks.cache_clear()
