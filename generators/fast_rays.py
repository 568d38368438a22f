"""Importance sampling and compositing as one kernel each, on CUDA in mixed precision.

The same mathematics as in volumetric_rendering, which is the reference. PyTorch's own operations
would start some forty kernels, most of which only read and write arrays of all samples.

Legend: B images, R rays, S samples per ray.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from siren.fused import cuda, launching

if TYPE_CHECKING:
    from generators.volumetric_rendering import RenderOptions

BACKGROUNDS = ("black", "white", "last_sample")  # by their numbers in the kernels
RAYS = 128  # of one program
TILE = 1024  # rays times depths of one program of importance_kernel


def is_supported(samples: Tensor) -> bool:
    """Return whether the kernels take these samples: where training asked for half precision."""
    is_wanted = samples.is_cuda and samples.dtype == torch.float32
    if not is_wanted or cuda.half_type(samples.device) is None or cuda.missing_tool():
        return False
    from generators import ray_trial  # here, because it imports what uses this module

    return not ray_trial.fault(samples.device)


def importance_depths(
    samples: Tensor,
    depths: Tensor,
    count: int,
    options: "RenderOptions",
    *,
    noise: Tensor | None,
    quantiles: Tensor | None,
    end: Tensor | None,
) -> Tensor:
    """Return depths (B, R, count) drawn by the coarse weights of samples (B, R, S, 4).

    noise (B, R, S) is standard normal; quantiles (B, R, count) are in [0, 1), evenly spaced if
    None; end (B, R) is where a bounded scene ends, or None.
    """
    from generators import ray_kernels  # here, because CPU users need no Triton

    out = depths.new_empty(*depths.shape[:2], count)
    width = 1 << (count - 1).bit_length()
    block = max(1, TILE // width)
    num_rays = depths.shape[0] * depths.shape[1]
    given, has_noise = _noise(noise, options, depths)
    if num_rays == 0:
        return out
    launching.launch(
        ray_kernels.importance_kernel, (-(-num_rays // block),),
        samples.contiguous(), depths.contiguous(), given,
        depths if quantiles is None else quantiles.contiguous(),
        depths if end is None else end.contiguous(), out,
        num_rays, float(options.density_noise),
        S=depths.shape[-1], COUNT=count, WIDTH=width, HAS_NOISE=has_noise,
        HAS_QUANTILES=quantiles is not None, HAS_END=end is not None,
        IS_SOFTPLUS=options.density_activation == "softplus", LAG=int(options.spreads_weights),
        BLOCK=block,
    )  # fmt: skip
    return out


def composite(
    samples: tuple[Tensor, ...],
    order: Tensor | None,
    depths: Tensor,
    options: "RenderOptions",
    *,
    noise: Tensor | None,
    end: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return rgb (B, R, 3), depth (B, R) and opacity (B, R), differentiable once by the samples.

    Args:
        samples: one set (B, R, S, 4) at depths, or two, whose numbers are those of torch.cat.
        order: (B, R, S) number of each sample in the order of depths; None if there is one set.
        depths: (B, R, S), ascending.
        options: how samples become light; their density_noise multiplies noise.
        noise: (B, R, S), standard normal.
        end: (B, R) where a bounded scene ends.
    """
    rgb, depth, opacity = _Composite.apply(  # type: ignore[no-untyped-call]
        options, order, depths, noise, end, *samples
    )
    return rgb, depth, opacity


def _noise(noise: Tensor | None, options: "RenderOptions", like: Tensor) -> tuple[Tensor, bool]:
    """Return noise, or any tensor, and whether the kernels shall read it."""
    if noise is None or options.density_noise == 0:
        return like, False
    return noise.contiguous(), True


def _arguments(
    options: "RenderOptions",
    order: Tensor | None,
    depths: Tensor,
    noise: Tensor | None,
    end: Tensor | None,
    samples: tuple[Tensor, ...],
) -> tuple[list[Tensor], dict[str, Any]]:
    """Return the arrays that both kernels of compositing read, and their constants."""
    given, has_noise = _noise(noise, options, depths)
    sizes = [part.shape[2] for part in samples]
    constants = {
        "S1": sizes[0],
        "S2": sum(sizes[1:]),
        "HAS_NOISE": has_noise,
        "HAS_END": end is not None,
        "IS_SOFTPLUS": options.density_activation == "softplus",
        "BACKGROUND": BACKGROUNDS.index(options.background),
        "BLOCK": RAYS,
    }
    arrays = [samples[0], samples[-1], depths if order is None else order, depths, given]
    return [*arrays, depths if end is None else end.contiguous()], constants


class _Composite(torch.autograd.Function):
    """Compositing as one operation; only the samples have gradients."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        options: "RenderOptions",
        order: Tensor | None,
        depths: Tensor,
        noise: Tensor | None,
        end: Tensor | None,
        *samples: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        from generators import ray_kernels

        samples = tuple(part.contiguous() for part in samples)
        arrays, constants = _arguments(options, order, depths.contiguous(), noise, end, samples)
        shape = depths.shape[:2]
        outputs = (depths.new_empty(*shape, 3), depths.new_empty(shape), depths.new_empty(shape))
        _launch(ray_kernels.composite_kernel, [*arrays, *outputs], options, constants)
        ctx.save_for_backward(*arrays)
        ctx.options, ctx.constants, ctx.num_sets = options, constants, len(samples)
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(  # noqa: D102
        ctx: Any, of_rgb: Tensor | None, of_depth: Tensor | None, of_opacity: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: the result would lack its graph
            raise RuntimeError("the fast rendering is differentiable once; disable autocast")
        from generators import ray_kernels

        arrays = ctx.saved_tensors
        first, second = arrays[:2]
        depths = arrays[3]
        if of_rgb is None:
            of_rgb = depths.new_zeros(*depths.shape[:2], 3)
        of_rays = [depths if part is None else part.contiguous() for part in (of_depth, of_opacity)]
        into = [torch.empty_like(part) for part in (first, second)[: ctx.num_sets]]
        _launch(
            ray_kernels.composite_back_kernel,
            [*arrays, of_rgb.contiguous(), *of_rays, into[0], into[-1]],
            ctx.options,
            {
                **ctx.constants,
                "HAS_DEPTH": of_depth is not None,
                "HAS_OPACITY": of_opacity is not None,
            },
        )
        return None, None, None, None, None, *into


def _launch(
    kernel: Any, arrays: list[Tensor], options: "RenderOptions", constants: dict[str, Any]
) -> None:
    """Start a kernel of compositing with a lane per ray."""
    num_rays = arrays[3].shape[0] * arrays[3].shape[1]
    if num_rays > 0:
        grid = (-(-num_rays // RAYS),)
        launching.launch(kernel, grid, *arrays, num_rays, float(options.density_noise), **constants)
