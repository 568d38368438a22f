"""No path on CUDA moves more bytes, or takes longer on any GPU, than the published arithmetic.

Counted on tensors without memory, for the field as a training step of CelebA asks it: once without
gradients (the discriminator's update) and once with them (the generator's). The numbers of kernels
and bytes are those of a GPU; the tensors are said to be on the CPU, whose PyTorch knows no CUDA.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("triton", reason="Triton is not installed")
from fake_gpu import CPU, Watch, without_kernels
from fake_steps import run_steps

import curriculums
from benchmarks.textbook import TextbookField
from siren.fused import eager, eager_layers, triton_field
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


def count_of(path, dtype, monkeypatch):
    """Return the work without gradients and with them."""
    found = []
    without_kernels(monkeypatch)
    with FakeTensorMode(), torch.autocast("cpu", dtype=HALF, enabled=dtype is not None):
        kind = TextbookField if path == "published" else TALLSIREN
        field = kind()
        points = torch.empty(OBJECTS, RAYS * SAMPLES, 3)
        directions = torch.empty(OBJECTS, RAYS, 3)
        for needs_gradients in (False, True):
            film = field.mapping_network(torch.empty(OBJECTS, 256))
            with Watch(CPU) as watch, torch.set_grad_enabled(needs_gradients):
                if path == "published":
                    output = field(points, directions, film)
                elif path == "eager":
                    output = eager.evaluate(field.joined(film), points, directions, dtype)
                else:
                    output = triton_field.evaluate(field.joined(film), points, directions, dtype)
                if needs_gradients:
                    torch.autograd.grad(output.sum(), list(field.parameters()), allow_unused=True)
            found.append(watch.work)
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
        with Watch(torch.device("cuda", 0)) as watch:
            result = eager_layers.product(x, y)
    assert result.dtype == torch.float32
    assert [work.name for work in watch.work] == ["bmm"]


OF_FIELD = ("forward_kernel", "backward_kernel", "reduction_kernel")


def test_a_step_of_celeba_starts_fewer_than_1500_operations(monkeypatch, counted):
    curriculum = curriculums.load("CelebA")
    watch = run_steps(monkeypatch, curriculum, 20_000, "kernels", is_half=True, num_steps=2)
    around = [work for work in watch.work if work.name not in OF_FIELD]
    counted(
        f"CelebA: {watch.launches} operations a step, {sum(w.launches for w in around)} of them "
        f"around the field's kernels, {gigabytes(around):.1f} of {gigabytes(watch.work):.1f} GB"
    )
    assert watch.launches < 1500
    # Half of the 43.7 GB before its kernels: compositing, rows, and what follows a convolution.
    assert gigabytes(around) < 21.8
    assert watch.waits == []


STEPS = {  # the longest stage, with a smaller batch
    "CelebA": (20_000, ["0.batch_size=4"]),
    "CARLA": (60_000, ["55000.batch_size=2", "55000.batch_split=1"]),
    "Demo": (3400, ["3400.batch_size=4"]),
}
OFTEN = {("CelebA", True), ("Demo", False)}


@pytest.mark.parametrize(
    ("name", "is_half"),
    [
        pytest.param(name, is_half, marks=() if (name, is_half) in OFTEN else pytest.mark.slow)
        for name in STEPS
        for is_half in (True, False)
    ],
)
def test_no_step_moves_more_bytes_or_takes_longer_than_the_published_one(
    name, is_half, monkeypatch, product_of_cuda, counted
):
    paths = ["kernels", "eager"] if is_half else ["eager"]
    start, overrides = STEPS[name]
    curriculum = curriculums.load(name, overrides=overrides)
    published, *ours = (
        run_steps(monkeypatch, curriculum, start, path, is_half=is_half).work
        for path in ("published", *paths)
    )
    for path, work in zip(paths, ours, strict=True):
        of_bytes, of_products = (of(work) / of(published) for of in (gigabytes, teraflop))
        times = {
            gpu: sum(one.seconds(*rates) for one in work)
            / sum(one.seconds(*rates) for one in published)
            for gpu, rates in GPUS.items()
        }
        gpu = max(times, key=times.get)
        counted(
            f"a step of {name} by {path}, {'half' if is_half else 'float32'}: {of_bytes:.2f} times "
            f"the published bytes, {of_products:.2f} times the operations of products, at most "
            f"{times[gpu]:.2f} times the time ({gpu})"
        )
        assert of_bytes < 0.85
        # The field's backward pass computes its layers again: ten products instead of eight. Eight
        # more columns and rows hold the biases and the heads.
        assert of_products < 10 / 8 * (1 + 8 / curriculum.field_width()) ** 2
        assert times[gpu] < 1
