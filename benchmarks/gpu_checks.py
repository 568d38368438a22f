"""Check every implementation of the field on a CUDA device against the float64 reference.

Part of benchmarks/gpu.py.
"""

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor

from benchmarks.bench import Bench
from generators import fast_rays
from generators.cameras import Poses, cast_rays
from generators.volumetric_rendering import RenderOptions, render_rays
from siren.fused import fused_field, launching
from siren.siren import FIELDS, FilmSiren

# Relative errors of output and gradients that eight layers of roundings may give: twice what the
# kernels have in Triton's interpreter.
TOLERANCE = {torch.float16: (5e-4, 1.2e-2), torch.bfloat16: (4e-3, 0.14)}
# Of float32 sums in another order; a fine depth moves by much more where a bin is nearly empty.
RAYS_TOLERANCE = 1e-3


def field_inputs(bench: Bench, points: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return points in the published cube, a direction per 12 or fewer, and latents."""
    size = (bench.sizes.objects, points)
    directions = points // 12 if points % 12 == 0 else 1
    unit = torch.nn.functional.normalize(torch.randn(size[0], directions, 3), dim=-1)
    drawn = (torch.rand(*size, 3) * 0.24 - 0.12, unit, torch.randn(size[0], 256))
    return drawn[0].to(bench.device), drawn[1].to(bench.device), drawn[2].to(bench.device)


@contextlib.contextmanager
def without_triton() -> Iterator[None]:
    """Use PyTorch's own operations, as on a GPU that the Triton kernels do not fit."""
    with mock.patch.object(launching, "find_blocks", return_value=None):
        yield


def check_without_triton(bench: Bench) -> None:
    """Do as check, with PyTorch's own operations."""
    with without_triton():
        check(bench)


def check_rays(bench: Bench) -> None:
    """Compare the kernels of sampling and compositing with the reference, gradients included."""
    options = RenderOptions(
        image_size=bench.sizes.picture, fov_degrees=12.0, near=0.88, far=1.12,
        num_steps=bench.sizes.picture_steps, density_noise=0.5,
    )  # fmt: skip
    poses = Poses(torch.full((1,), 1.5), torch.full((1,), 1.6))
    rays = cast_rays(poses, options.image_size, options.fov_degrees, device=bench.device)
    weight = torch.randn(3, 4, device=bench.device)

    def field(points: Tensor, directions: Tensor) -> Tensor:
        waves = torch.sin(40 * points) @ given
        return torch.cat([waves[..., :3].sigmoid(), 30 * waves[..., 3:]], dim=-1)

    runs = []
    for is_fast in (True, False):
        given = weight.clone().requires_grad_()
        rng = torch.Generator(bench.device).manual_seed(0)
        with mock.patch.object(fast_rays, "is_supported", lambda _, found=is_fast: found):
            found = render_rays(field, rays, options, rng=rng)
        (gradient,) = torch.autograd.grad(found.rgb.square().mean() + found.depth.mean(), given)
        runs.append([*(part.detach() for part in found), gradient])
    names = ("rgb", "depth", "opacity", "gradient")
    errors = {
        name: ((one - other).norm() / other.norm()).item()
        for name, one, other in zip(names, *runs, strict=True)
    }
    bench.note("rays", errors, f"kernels against the reference: {max(errors.values()):.1e}")
    if not max(errors.values()) < RAYS_TOLERANCE:
        raise RuntimeError(f"errors of the rays' kernels are too large: {errors}")


def check(bench: Bench) -> None:
    """Compare the chosen implementation with the float64 reference, including gradients."""
    for name in ("SPATIALSIRENBASELINE", "EmbeddingPiGAN128"):
        for dtype in (torch.float16, torch.bfloat16):
            if dtype == torch.float16 and bench.device.type != "cuda":
                continue
            errors, path, is_repeatable = errors_of(bench, FIELDS[name](), dtype)
            worst = max(errors.values())
            bench.note(
                f"{name}, {path.partition(' (')[0]}",
                {"path": path, "errors": errors, "is_repeatable": is_repeatable},
                f"{path}: density and color {errors['output']:.1e}, gradients {worst:.1e}"
                f"{'' if is_repeatable else ', NOT repeatable'}",
            )
            of_output, of_gradients = TOLERANCE[dtype]
            if errors["output"] > of_output or worst > of_gradients:
                raise RuntimeError(f"errors of {name} are too large: {errors}")


def errors_of(
    bench: Bench, field: FilmSiren, dtype: torch.dtype
) -> tuple[dict[str, float], str, bool]:
    """Return relative errors by name, the implementation, and whether two runs are bit-equal."""
    twin = type(field)()
    twin.load_state_dict(field.state_dict())
    field, twin = field.to(bench.device), twin.double().to(bench.device)
    points, directions, z = field_inputs(bench, bench.sizes.checked_points)
    upstream = torch.randn(*points.shape[:2], 4, device=bench.device)
    runs = []
    for _ in range(2):
        film = field.mapping_network(z)
        with torch.autocast(bench.device.type, dtype=dtype):
            path = fused_field.path_name(bench.device, field.hidden_dim, field.num_inputs)
            output = field(points, directions, film).float()
        loss = (output * upstream).sum()
        runs.append([output.detach(), *torch.autograd.grad(loss, list(field.parameters()))])
    expected = twin.reference(
        twin.encode(points.double()), directions.double(), twin.mapping_network(z.double())
    )
    loss = (expected * upstream).sum()
    exact = [expected.detach(), *torch.autograd.grad(loss, list(twin.parameters()))]
    names = ["output", *(name for name, _ in field.named_parameters())]
    errors = {
        name: ((one.double() - other).norm() / other.norm()).item()
        for name, one, other in zip(names, runs[0], exact, strict=True)
    }
    # The sampled grid is PyTorch's, whose gradient adds up in any order.
    same = [
        torch.equal(*pair)
        for name, *pair in zip(names, *runs, strict=True)
        if name != "spatial_embeddings"
    ]
    return errors, path, all(same)
