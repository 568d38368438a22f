"""No path on CUDA moves more bytes, or takes longer on any GPU, than the published arithmetic.

Counted on tensors without memory, for the field as a training step of CelebA asks it: once without
gradients (the discriminator's update) and once with them (the generator's). The numbers of kernels
and bytes are those of a GPU; the tensors are said to be on the CPU, whose PyTorch knows no CUDA.
"""

import dataclasses
import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="Triton is not installed")
from benchmarks.textbook import TextbookField
from siren.fused import eager, eager_layers, kernels, triton_field
from siren.siren import TALLSIREN

OBJECTS, RAYS, SAMPLES = 56, 64 * 64, 12  # a batch of CelebA at 64 px, coarse samples
HALF = torch.bfloat16  # the CPU's autocast; as wide as float16
# TFLOP/s of half-precision products added up in float32, of float32, and GB/s of memory. Source:
# NVIDIA's data sheets and architecture white papers.
GPUS = {
    "RTX 2080 Ti": (53.8, 13.4, 616),
    "RTX 3090": (71, 35.6, 936),
    "RTX A6000": (155, 38.7, 768),
    "RTX 4090": (165, 82.6, 1008),
    "RTX 5090": (210, 105, 1792),
    "A100": (312, 19.5, 1555),
    "H100": (989, 67, 3350),
}


NO_KERNELS = ("empty", "new_empty", "detach", "device", "_unsafe_view")


@dataclasses.dataclass
class Work:
    """Bytes that one GPU operation reads and writes, and the operations of its products."""

    name: str
    bytes: int
    products: int = 0
    is_half: bool = True

    def seconds(self, half, single, memory):
        rate = 1e12 * (half if self.is_half else single)
        return max(self.bytes / (1e9 * memory), self.products / rate)


class Count(TorchDispatchMode):
    """Records the work of every operation that runs a kernel on a GPU."""

    def __init__(self):
        super().__init__()
        self.work = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        returned = [value.alias_info for value in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in returned)
        name = func.overloadpacket.__name__
        if not is_view and not name.startswith(NO_KERNELS):
            read = tensors([args, {k: v for k, v in kwargs.items() if k != "out"}])
            size = sum(distinct_bytes(t) for t in [*read, *tensors(out)])
            work = Work(name, size)
            if name in {"mm", "addmm", "bmm", "baddbmm"}:
                x, y = read[-2:]
                work.products = 2 * x.numel() * y.shape[-1]
                work.is_half = x.element_size() == 2
            self.work.append(work)
        return out


def tensors(tree):
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if torch.is_tensor(leaf)]


def distinct_bytes(tensor):
    """Return the bytes of a tensor; elements of an expanded dimension count once."""
    sizes = (n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or n == 1)
    return math.prod(sizes) * tensor.element_size()


PARAMETERS = {
    name: getattr(kernels, name).arg_names
    for name in ("forward_kernel", "backward_kernel", "reduction_kernel")
}


class Kernel:
    """Stands for a Triton kernel: counts each tensor as often as the kernel accesses it."""

    def __init__(self, count, name):
        self.count, self.name = count, name

    def __getitem__(self, grid):
        def launch(*arguments, **constants):
            names = PARAMETERS[self.name]
            tensors = {
                name: argument
                for name, argument in zip(names, arguments, strict=False)
                if torch.is_tensor(argument)
            }
            times, products = getattr(self, self.name)(tensors, constants)
            size = sum(distinct_bytes(t) * times.get(n, 1) for n, t in tensors.items())
            self.count.work.append(Work(self.name, int(size), int(products)))

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


def count_of(path, dtype, monkeypatch):
    """Return the work without gradients and with them."""
    found = []
    with FakeTensorMode(), torch.autocast("cpu", dtype=HALF, enabled=dtype is not None):
        kind = TextbookField if path == "published" else TALLSIREN
        field = kind()
        points = torch.empty(OBJECTS, RAYS * SAMPLES, 3)
        directions = torch.empty(OBJECTS, RAYS, 3)
        for needs_gradients in (False, True):
            film = field.mapping_network(torch.empty(OBJECTS, 256))
            count = Count()
            for name in PARAMETERS:
                monkeypatch.setattr(kernels, name, Kernel(count, name))
            with count, torch.set_grad_enabled(needs_gradients):
                if path == "published":
                    output = field(points, directions, film)
                elif path == "eager":
                    output = eager.evaluate(field.joined(film), points, directions, dtype)
                else:
                    output = triton_field.evaluate(field.joined(film), points, directions, dtype)
                if needs_gradients:
                    torch.autograd.grad(output.sum(), list(field.parameters()), allow_unused=True)
            found.append(count.work)
    return found


def gigabytes(work):
    return sum(one.bytes for one in work) / 1e9


def teraflop(work):
    return sum(one.products for one in work) / 1e12


@pytest.fixture
def product_of_cuda(monkeypatch):
    """Stands for the matrix product that only CUDA has."""

    def product(x, y):
        is_half = x.element_size() == 2
        return torch.bmm(x, y, out_dtype=torch.float32) if is_half else torch.bmm(x, y)

    monkeypatch.setattr(eager_layers, "product", product)
    monkeypatch.setattr(eager, "product", product)


@pytest.mark.parametrize(
    ("path", "dtype", "most"),
    [("triton", HALF, 0.25), ("eager", HALF, 0.9), ("eager", None, 0.9)],
)  # of the published bytes
def test_no_path_moves_more_bytes_or_takes_longer_than_the_published_arithmetic(
    path, dtype, most, monkeypatch, product_of_cuda, counted
):
    published = count_of("published", dtype, monkeypatch)
    ours = count_of(path, dtype, monkeypatch)
    for name, one, other in zip(("without", "with"), ours, published, strict=True):
        counted(
            f"{path}, {dtype}, {name} gradients: {len(one)} kernels, {gigabytes(one):.0f} GB, "
            f"{teraflop(one):.2f} TFLOP; published: {len(other)}, {gigabytes(other):.0f} GB, "
            f"{teraflop(other):.2f} TFLOP"
        )
        assert gigabytes(one) < gigabytes(other)
        # Eight columns more than 256 replace a pass over memory. The backward pass computes the
        # layers again instead of keeping 30 KB per point: four products instead of three.
        most_products = 264 / 256 + 0.01 if name == "without" else 4 / 3 * 264 / 256 + 0.05
        assert teraflop(one) < most_products * teraflop(other)
    assert sum(map(gigabytes, ours)) < most * sum(map(gigabytes, published))
    for gpu, rates in GPUS.items():
        seconds, theirs = (
            sum(work.seconds(*rates) for part in path for work in part)
            for path in (ours, published)
        )
        counted(f"{path}, {dtype}, {gpu}: {seconds:.3f} s for the field, published {theirs:.3f}")
        assert seconds < theirs, gpu


def test_half_precision_products_on_cuda_are_one_kernel_with_float32_results():
    with FakeTensorMode():
        x, y = (torch.empty(2, 8, 8, dtype=torch.float16, device="cuda") for _ in range(2))
        with Count() as count:
            result = eager_layers.product(x, y)
    assert result.dtype == torch.float32
    assert [work.name for work in count.work] == ["bmm"]
