"""Loss terms of both networks.

Legend: B images, L width of the latent.
Source: pi-GAN (Chan et al. 2021), section 3.3; top-k training from Sinha et al. 2020; the identity
terms come with the published code.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from discriminators.discriminators import Verdict
from discriminators.linearized import Watched
from generators.cameras import Poses, moved

Critic = Callable[..., Verdict]  # a discriminator: its arguments are those of its forward


def logistic(logits: Tensor, *, is_real: bool) -> Tensor:
    """Return the mean of softplus(-logits) for real images, of softplus(logits) for fakes.

    The generator's non-saturating loss is that of its fakes with is_real=True.
    """
    return F.softplus(-logits if is_real else logits).mean()


def half_transparency(opacities: Tensor) -> Tensor:
    """Return the mean of 4 o (1 - o) over opacities o in [0, 1]; 0 if all are 0 or 1.

    A toy or a head has a surface; fog and stray specks around it are half-transparent. The gradient
    only removes density: it is zero for o over a half, where it would make specks opaque, and
    opaque samples hardly learn any more (dw/dsigma falls like exp(-sigma delta)).
    """
    clearing = torch.where(opacities < 0.5, opacities, opacities.detach())
    return 4 * (clearing * (1 - clearing)).mean()


def top_k(logits: Tensor, share: float) -> Tensor:
    """Return the ceil(share * B) largest of logits (B,): those of the best fakes."""
    # Rounded first: 0.6 * 5 is a little more than 3 in floating point.
    count = math.ceil(round(share * len(logits), 9))
    return logits.topk(max(1, count)).values


def identity(
    verdict: Verdict, latents: Tensor, poses: Poses, *, z_lambda: float, pos_lambda: float
) -> Tensor:
    """Return the mean squared errors of the predicted latent and pose of fakes, weighted.

    The pose is [pitch, yaw] in radians as rendered. Zero where the discriminator has no such heads.
    """
    loss = verdict.logits.new_zeros(())
    if verdict.latent is not None and z_lambda > 0:
        loss = loss + z_lambda * F.mse_loss(verdict.latent, latents)
    if verdict.pose is not None and pos_lambda > 0:
        target = moved(torch.stack(poses, dim=1), verdict.pose.device)
        loss = loss + pos_lambda * F.mse_loss(verdict.pose, target)
    return loss


class PenalizedReals(NamedTuple):
    """Inputs of the frozen affine pass, whose gradient is the loss's, and the loss's terms.

    Legend: x images, l their logits, g = grad l their gradients, s = d softplus(-l) / dl.

    Around each image the discriminator is an affine map a(x) = A x + b, and g is a row of A. With g
    and s held fixed, the parameters' gradient of the loss is that of

        1 / B * sum (s l + 2 strength <g, grad l>) = 1 / B * sum (A (s x + 2 strength g) + s b),

    which is one pass of the affine map over other images, and its ordinary gradient. Automatic
    differentiation of g takes more convolutions, and some in layouts that are slow.

    The affine pass takes images (B, 3, H, W), scaled to about 1, and shares (B,) of the constants.
    The sum of its logits times factors (B,) has the gradient of the loss.
    """

    images: Tensor
    shares: Tensor
    factors: Tensor
    watched: Watched
    logistic: Tensor
    penalty: Tensor


def penalized_reals(
    discriminator: Critic,
    real: Tensor,
    alpha: float,
    *,
    strength: float,
    scale: Tensor | None = None,
) -> PenalizedReals:
    """Prepare the gradient of mean softplus(-l) + strength * mean |g|^2, as PenalizedReals says.

    Source of the penalty: Mescheder et al. 2018, equation 9; strength is its gamma / 2.

    Args:
        discriminator: a PyramidDiscriminator; runs under the caller's autocast.
        real: images (B, 3, H, W).
        alpha: share of the newest level.
        strength: factor on the mean squared gradient.
        scale: factor on the logits before differentiation, divided out of the gradients
            afterwards; keeps half-precision gradients from vanishing. None is 1.
    """
    watched = Watched()
    wanted = real.detach().requires_grad_()
    logits = discriminator(wanted, alpha, watched).logits
    outputs = logits.sum() if scale is None else logits.sum() * scale
    (gradients,) = torch.autograd.grad(outputs, wanted)
    gradients = gradients if scale is None else gradients / scale
    logits = logits.detach()
    slopes = -torch.sigmoid(-logits) / len(logits)
    pull = 2 * strength / len(logits)
    # Divided by their size: in half precision a confident discriminator's slopes would vanish.
    sizes = slopes.abs() + pull * gradients.abs().amax((1, 2, 3))
    factors = sizes.clamp(min=torch.finfo(sizes.dtype).tiny)
    shares, pulls = slopes / factors, pull / factors
    return PenalizedReals(
        images=shares[:, None, None, None] * real + pulls[:, None, None, None] * gradients,
        shares=shares,
        factors=factors,
        watched=watched,
        logistic=logistic(logits, is_real=True),
        penalty=strength * gradients.flatten(1).square().sum(1).mean(),
    )
