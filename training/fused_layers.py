"""The discriminator's layers on CUDA in mixed precision: one kernel after each convolution.

The same mathematics as in discriminators.linearized, which is the reference. There a constant, a
LeakyReLU and a shortcut are operations of their own, which mostly read and write memory.

Legend: B images, C channels, H x W pixels.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from discriminators.convolutions import kernel_of
from discriminators.linearized import (
    LEAKY_SLOPE,
    NORMAL_LAYERS,
    Affine,
    NormalLayers,
    RecordedLayers,
)
from siren.fused import cuda, launching

BLOCK = 1024  # numbers of one program
PROGRAMS = 512  # the backward pass splits the images for as many programs
CHANNELS_LAST = torch.channels_last


class Kinds(NamedTuple):
    """Implementations of the three ways to apply layers."""

    normal: NormalLayers
    recorded: type[RecordedLayers]
    affine: type[Affine]


def is_supported(device: torch.device) -> bool:
    """Return whether the kernels serve a device: under autocast to half precision on CUDA.

    Before their first use they are tried beside PyTorch's operations.
    """
    dtype = cuda.half_type(device) if device.type == "cuda" else None
    if dtype is None or cuda.missing_tool():
        return False
    from training import layer_trial  # here, because it imports this module

    return not layer_trial.fault(device, dtype)


def choose(device: torch.device) -> Kinds:
    """Return the implementations for a device under current autocast."""
    return FUSED if is_supported(device) else PLAIN


def _linear(convolution: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return a convolution's features (B, C, H, W) of x without its constant, and the constant."""
    weight, constant, stride, padding = kernel_of(convolution, x)
    features = F.conv2d(x, weight, None, stride, padding)
    return features.contiguous(memory_format=CHANNELS_LAST), constant


class _Rectified(torch.autograd.Function):
    """LeakyReLU of features plus a constant, in place, and the signs of its inputs."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        features: Tensor,
        constant: Tensor,
        shares: Tensor | None,
        known: Tensor | None,
        shortcut: Tensor | None,
        beside: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        from training import layer_kernels  # here, because CPU users need no Triton

        signs = torch.empty_like(features, dtype=torch.int8)
        numbers = features[0].numel()
        constant = constant.contiguous(memory_format=CHANNELS_LAST)
        optional = [constant if t is None else t for t in (shares, known, shortcut, beside)]
        ctx.is_map = constant[0, 0].numel() > 1
        ctx.constants = {
            "SLOPE": LEAKY_SLOPE, "SCALE": 0.5**0.5, "BLOCK": BLOCK,
            "HAS_SHARES": shares is not None, "HAS_SHORTCUT": shortcut is not None,
        }  # fmt: skip
        launching.launch(
            layer_kernels.rectify_kernel, (-(-numbers // BLOCK), len(features)),
            features, constant, *optional, features, signs,
            numbers, features.shape[1], 0 if known is None else len(known),
            IS_MAP=ctx.is_map, **ctx.constants,
        )  # fmt: skip
        ctx.mark_dirty(features)
        ctx.mark_non_differentiable(signs)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(signs, shares)
        return features, signs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: None) -> tuple[Tensor | None, ...]:  # noqa: D102
        from training import layer_kernels

        signs, shares = ctx.saved_tensors
        has_shortcut, needs_constants = ctx.constants["HAS_SHORTCUT"], ctx.needs_input_grad[1]
        gradient = gradient.contiguous(memory_format=CHANNELS_LAST)
        of_features = torch.empty_like(gradient)
        of_shortcut = torch.empty_like(gradient) if has_shortcut else None
        count, channels, height, width = gradient.shape
        blocks = -(-gradient[0].numel() // BLOCK)
        parts = max(1, min(count, PROGRAMS // blocks)) if needs_constants else count
        sums = torch.empty(
            (1 + has_shortcut) * needs_constants, parts, height, width, channels,
            device=gradient.device,
        )  # fmt: skip
        launching.launch(
            layer_kernels.rectify_back_kernel, (blocks, parts),
            gradient, signs, sums if shares is None else shares, of_features,
            sums if of_shortcut is None else of_shortcut, sums, gradient[0].numel(), count,
            OF_CONSTANTS=needs_constants, **ctx.constants,
        )  # fmt: skip
        of_constant = of_beside = None
        if needs_constants:
            of_constant = sums[0].sum(0 if ctx.is_map else (0, 1, 2), keepdim=True)
            of_constant = of_constant.view(1, *of_constant.shape[-3:]).permute(0, 3, 1, 2)
        if needs_constants and has_shortcut:
            of_beside = sums[1].sum((0, 1, 2))[None, :, None, None]
        return of_features, of_constant, None, None, of_shortcut, of_beside


class _WithHalf(torch.autograd.Function):
    """x and every second of its pixels; their gradients are added in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        return x.view_as(x), x[:, :, ::2, ::2].contiguous(memory_format=CHANNELS_LAST)

    @staticmethod
    def backward(ctx: Any, of_x: Tensor, of_half: Tensor) -> Tensor:  # noqa: D102
        of_x[:, :, ::2, ::2] += of_half  # of_x is the convolution's, which nothing else reads
        return of_x


class FusedLayers(NormalLayers):
    """NormalLayers by the kernels."""

    shares: Tensor | None = None  # (B, 1, 1, 1) factors on the layers' constants; None is 1

    def rectified(self, convolution: nn.Module, x: Tensor) -> Tensor:
        """Do as NormalLayers.rectified."""
        return self._applied(*_linear(convolution, x), None, None)

    def joined(
        self, convolution: nn.Module, x: Tensor, beside: nn.Conv2d, shortcut: Tensor
    ) -> Tensor:
        """Do as NormalLayers.joined."""
        return self._applied(*_linear(convolution, x), *_linear(beside, shortcut))

    def with_half(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return x (B, C, H, W) and every second of its pixels (B, C, H / 2, W / 2)."""
        found: tuple[Tensor, Tensor] = _WithHalf.apply(x)  # type: ignore[no-untyped-call]
        return found

    def _applied(self, *arrays: Tensor | None) -> Tensor:
        """Return features after constant, LeakyReLU, shortcut and its constant."""
        features, constant, *joined = arrays
        y: Tensor
        y, signs = _Rectified.apply(  # type: ignore[no-untyped-call]
            features, constant, self.shares, self._known(), *joined
        )
        self._note(signs)
        return y

    def _known(self) -> Tensor | None:
        """Return signs of the first images, which replace their own; None is of no image."""
        return None

    def _note(self, signs: Tensor) -> None:
        """Receive the signs of a rectifier's inputs: 1 for positive ones, else 0."""


class FusedRecorded(FusedLayers, RecordedLayers):
    """RecordedLayers by the kernels, for gradients by images alone: those of constants are sums."""

    def _applied(self, *arrays: Tensor | None) -> Tensor:
        features, constant, *joined = arrays
        if constant is not None:
            constant = constant.detach()
        if joined[1] is not None:
            joined[1] = joined[1].detach()
        return super()._applied(features, constant, *joined)

    def _note(self, signs: Tensor) -> None:
        self.signs.append(signs)


class FusedAffine(FusedLayers, Affine):  # type: ignore[misc]  # shares is never None
    """Affine by the kernels, around a pass of FusedRecorded."""

    def _known(self) -> Tensor | None:
        return next(self.signs)


PLAIN = Kinds(NORMAL_LAYERS, RecordedLayers, Affine)
FUSED = Kinds(FusedLayers(), FusedRecorded, FusedAffine)
