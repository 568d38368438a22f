"""What stands for a GPU where there is none: fake tensors, watched operations, Triton kernels.

Fake tensors have a device and a shape but no memory. fake_cuda.py runs the project's code with
them on a GPU that seems to be there; fake_steps.py runs training steps with their backward passes,
for which they are said to be on the CPU.
"""

import dataclasses
import math
import weakref

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from checkpoint_io import network_state
from generators import ray_kernels
from siren.fused import kernels, row_kernels
from training import layer_kernels

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)
WAITS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "unique_dim")
NO_KERNELS = ("empty", "new_empty", "detach", "device", "_unsafe_view", "_record_function")
COMPILER_OPTIONS = {"num_warps", "enable_fp_fusion"}
# Tensors of one launch of an operation on lists, by the number of lists (ATen, MultiTensorApply).
LIST_SIZES = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
KERNELS = {
    name: (module, getattr(module, name).arg_names)
    for module in (kernels, row_kernels, ray_kernels, layer_kernels)
    for name in vars(module)
    if name.endswith("_kernel")
}


@dataclasses.dataclass
class Work:
    """Bytes that one operation reads and writes, the operations of its products, its launches."""

    name: str
    bytes: int
    products: int = 0
    is_half: bool = True
    launches: int = 1

    def seconds(self, half, single, memory):
        rate = 1e12 * (half if self.is_half else single)
        return max(self.bytes / (1e9 * memory), self.products / rate)


class Watch(TorchDispatchMode):
    """Records the work of every operation on a device, and what is wrong with it.

    mixed: operations on several devices. waits: those that make the host wait for the device. now
    and peak: bytes of all live tensors, as an allocator would see them.
    """

    current = None
    is_on_host = False  # operations of which the device knows nothing

    def __init__(self, device=GPU):
        super().__init__()
        self.device, self.work, self.mixed, self.waits = device, [], [], []
        self.known, self.now, self.peak = set(), 0, 0

    def __enter__(self):
        Watch.current = self
        return super().__enter__()

    def __exit__(self, *error):
        Watch.current = None
        return super().__exit__(*error)

    @property
    def launches(self):
        return sum(work.launches for work in self.work)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        for tensor in tensors(out):
            self.note(tensor.untyped_storage())
        if Watch.is_on_host:
            return out
        read = tensors([args, {k: v for k, v in kwargs.items() if k != "out"}])
        found = [*read, *tensors(out)]
        devices = {t.device for t in found if t.dim() > 0}
        if len(devices) > 1 and name not in ("_to_copy", "copy_"):
            self.mixed.append((name, sorted(map(str, devices))))
        if self.device in {t.device for t in found}:
            if name in WAITS or (name in ("_to_copy", "copy_") and is_awaited(args, kwargs, out)):
                self.waits.append(name)
            returned = [value.alias_info for value in func._schema.returns]
            is_view = any(alias is not None and not alias.is_write for alias in returned)
            size = sum(map(distinct_bytes, found))
            if size and not is_view and not name.startswith(NO_KERNELS):
                self.work.append(work_of(name, args, read, tensors(out), size))
        return out

    def note(self, storage):
        key = storage._cdata
        if key not in self.known:
            self.known.add(key)
            weakref.finalize(storage, self.freed, key, storage.nbytes())
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)

    def freed(self, key, num_bytes):
        self.known.discard(key)
        self.now -= num_bytes


def work_of(name, args, read, written, size):
    work = Work(name, size)
    if name in {"mm", "addmm", "bmm", "baddbmm"}:
        x, y = read[-2:]
        work.products = 2 * x.numel() * y.shape[-1]
        work.is_half = x.element_size() == 2
    if name.startswith(("_foreach", "_fused", "_amp_foreach")):
        lists = [a for a in args if isinstance(a, list | tuple) and a and torch.is_tensor(a[0])]
        work.launches = math.ceil(len(lists[0]) / LIST_SIZES[min(5, len(lists))])
    return work


def tensors(tree):
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if torch.is_tensor(leaf)]


def distinct_bytes(tensor):
    """Return the bytes of a tensor; elements of an expanded dimension count once."""
    sizes = (n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or n == 1)
    return math.prod(sizes) * tensor.element_size()


def is_awaited(args, kwargs, out):
    """Return whether a copy between GPU and host makes the host wait for the GPU."""
    pair = [t.device.type for t in (*args[:2], out) if isinstance(t, torch.Tensor)]
    non_blocking = (kwargs or {}).get("non_blocking", args[2] if len(args) > 2 else False)
    return {"cpu", "cuda"} <= set(pair) and not non_blocking


def is_packed(tensor):
    """Return whether a tensor has no gaps, its last dimension or its channels closest."""
    is_image = tensor.dim() == 4
    return tensor.is_contiguous() or (
        is_image and tensor.is_contiguous(memory_format=torch.channels_last)
    )


class Kernel:
    """Stands for a Triton kernel: checks the arguments of its launches and records their work."""

    def __init__(self, name, names):
        self.name, self.names, self.launches = name, names, 0

    def __getitem__(self, grid):
        def launch(*arguments, **constants):
            given = dict(zip(self.names, arguments, strict=False))
            assert {*given, *constants} == {*self.names, *COMPILER_OPTIONS & {*constants}}
            given = {name: value for name, value in given.items() if torch.is_tensor(value)}
            (device,) = {t.device for t in given.values()}
            assert all(is_packed(t) for t in given.values())
            assert constants["ON_DEVICE"] is (device.type == "cuda")
            assert all(size > 0 for size in grid)
            assert all(size < 2**16 for size in grid[1:])
            assert all(abs(a) < 2**31 for a in arguments if isinstance(a, int))
            self.launches += 1
            if Watch.current is not None:
                of_field = getattr(self, self.name, lambda *_: ({}, 0))
                times, products = of_field(given, constants)
                size = sum(distinct_bytes(t) * times.get(n, 1) for n, t in given.items())
                Watch.current.work.append(Work(self.name, int(size), int(products)))

        return launch

    def forward_kernel(self, given, constants):
        """Return how often tensors are accessed, if not once, and the products' operations."""
        return {}, self.layers(given, constants, given["points_ptr"])

    def backward_kernel(self, given, constants):
        """Do as forward_kernel; a chunk accesses its share of tensors with all rows."""
        rows = given["sines_ptr"][0, ..., :1]
        share = rows.numel() / given["points_ptr"][..., :1].numel()
        times = dict.fromkeys(
            ["points_ptr", "features_ptr", "directions_ptr", "upstream_ptr"], share
        )
        times["gradients_ptr"] = 3  # slopes are written, read, and replaced
        return times, 2 * self.layers(given, constants, rows)

    def reduction_kernel(self, given, constants):
        """Do as forward_kernel."""
        left, right = given["left_ptr"], constants["RIGHT"]
        rows = left[..., 0].numel()
        times = {"wide_out_ptr": 2 if right else 0, "narrow_out_ptr": 2}  # sums are added to
        times["narrow_ptr"] = left.shape[2] / given["narrow_ptr"].shape[1]
        if given["right_ptr"].shape[2] != left.shape[2]:  # it holds all rows
            times["right_ptr"] = times["narrow_ptr"]
        elif not right:
            times["right_ptr"] = 0
        return times, 2 * rows * constants["H"] * (right + constants["NARROW"])

    @staticmethod
    def layers(given, constants, points):
        """Return the operations of the products of inner layers."""
        num_layers = given["weights_ptr"].shape[1]
        return 2 * points[..., 0].numel() * constants["H"] ** 2 * num_layers


def without_kernels(monkeypatch):
    """Replace all Triton kernels; return what stands for them, by name."""
    found = {name: Kernel(name, names) for name, (_, names) in KERNELS.items()}
    for name, (module, _) in KERNELS.items():
        monkeypatch.setattr(module, name, found[name])
    return found


def on_gpu(make, device=GPU):
    """Return the module of make(), with fake tensors on the device as parameters."""
    with unset_fake_temporarily():
        module = network_state.unfilled(make)
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                shape = tuple(value.shape)
                # As AdversarialGame lays out the discriminator.
                layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
                empty = torch.empty(shape, device=device, memory_format=layout)
                part._parameters[name] = torch.nn.Parameter(empty, requires_grad=device == CPU)
    module.to = lambda **_: module  # a fake parameter cannot be moved
    return module
