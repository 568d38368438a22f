"""Penalties on the discriminator's gradient (R1, R2) without second derivatives.

Legend: B images. Source of the penalties: Mescheder et al. 2018, equation 9.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from discriminators.discriminators import PyramidDiscriminator, Verdict
from discriminators.linearized import Affine, RecordedLayers
from system.errors import UsageError

Critic = Callable[..., Verdict]  # a discriminator: its arguments are those of its forward
CHECKED_SHARES = (1.0, -0.5, 0.3, 0.0)  # factors on images
CHECKED_SIZE = 8  # pixels per side: all levels are alike, and large ones take seconds


class Observed(NamedTuple):
    """A recorded pass over images (B, 3, H, W): logits (B,), their gradients (B, 3, H, W)."""

    images: Tensor
    logits: Tensor
    gradients: Tensor
    watched: RecordedLayers

    def squares(self) -> Tensor:
        """Return the squared norms (B,) of the gradients."""
        return self.gradients.flatten(1).square().sum(1)


def observe(
    discriminator: Critic,
    images: Tensor,
    alpha: float,
    *,
    scale: Tensor | None = None,
    watched: RecordedLayers | None = None,
) -> Observed:
    """Record the discriminator's pass over images, and the gradients of its logits by them.

    Args:
        discriminator: a PyramidDiscriminator; runs under the caller's autocast.
        images: (B, 3, H, W).
        alpha: share of the newest level.
        scale: factor on the logits before differentiation, divided out of the gradients
            afterwards; keeps half-precision gradients from vanishing. None is 1.
        watched: records the pass; None takes RecordedLayers.
    """
    watched = watched or RecordedLayers()
    wanted = images.detach().requires_grad_()
    logits = discriminator(wanted, alpha, watched).logits
    outputs = logits.sum() if scale is None else logits.sum() * scale
    (gradients,) = torch.autograd.grad(outputs, wanted)
    gradients = gradients if scale is None else gradients / scale
    return Observed(images, logits.detach(), gradients, watched)


@torch.no_grad()
def require_affine(discriminator: PyramidDiscriminator) -> None:
    """Check on small random images that stand-ins give the penalties of this discriminator.

    They do if it is affine around each image under the slopes that `layers` records, and if no
    layer mixes the images of a batch. Computed in float64 on the CPU.

    Raises:
        UsageError: they do not.
    """
    network = copy.deepcopy(discriminator).cpu().double()
    rng, alpha = torch.Generator().manual_seed(0), 0.5
    images = torch.randn(len(CHECKED_SHARES), 3, CHECKED_SIZE, CHECKED_SIZE, generator=rng).double()
    shares = images.new_tensor(CHECKED_SHARES)
    watched = RecordedLayers()
    logits = network(images, alpha, watched).logits
    scaled = shares[:, None, None, None] * images
    affine = network(scaled, alpha, Affine(watched, shares)).logits
    alone = network(images[:1], alpha).logits
    error = torch.cat([affine - shares * logits, alone - logits[:1]]).abs().max()
    if error > 1e-6 * logits.abs().max():
        raise UsageError(
            f"discriminator {type(discriminator).__name__}: its gradient penalties would be wrong, "
            "because a layer mixes images or does not go through `layers` (CONTRIBUTING.md, "
            '"Adding a discriminator")'
        )


class StandIns(NamedTuple):
    """Inputs of the frozen affine pass, whose gradient is that of a loss with penalties.

    Legend: x images, l their logits, g = grad l their gradients, s the loss's derivatives by l, p
    factors, so that the penalties are p / 2 |g|^2 and their derivatives by g are p g.

    Around each image the discriminator is an affine map a(x) = A x + b, and g is a row of A. With g
    and s held fixed, the parameters' gradient of loss and penalties is that of

        sum (s l + p <g, grad l>) = sum (A (s x + p g) + s b),

    which is one pass of the affine map over other images, and its ordinary gradient. Automatic
    differentiation of g takes more convolutions, and some in layouts that are slow.

    The affine pass takes images (B, 3, H, W), scaled to about 1, and shares (B,) of the constants.
    The sum of its logits times factors (B,) has the gradient of the loss.
    """

    images: Tensor
    shares: Tensor
    factors: Tensor


def stand_ins(seen: Observed, slopes: Tensor, pulls: Tensor) -> StandIns:
    """Return images whose affine pass has the gradient of a loss and of penalties on |g|^2.

    Args:
        seen: the recorded pass over B images.
        slopes: (B,) derivatives of the loss by the logits; 0 leaves the penalty alone.
        pulls: (B,) factors p of the penalties p / 2 |g|^2.
    """
    # Divided by their size: in half precision a confident discriminator's slopes would vanish.
    sizes = slopes.abs() + pulls * seen.gradients.abs().amax((1, 2, 3))
    factors = sizes.clamp(min=torch.finfo(sizes.dtype).tiny)
    shares, shifts = slopes / factors, pulls * factors.reciprocal()
    images = (
        shares[:, None, None, None] * seen.images + shifts[:, None, None, None] * seen.gradients
    )
    return StandIns(images, shares, factors)
