"""The terms of the adversarial game.

Legend: B images, L width of the latent.
Source: pi-GAN (Chan et al. 2021), section 3.3; top-k training from Sinha et al. 2020; the identity
terms come with the published code. R1 is in gradient_penalty.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from discriminators.discriminators import Verdict
from generators.cameras import Poses


def logistic(logits: Tensor, *, is_real: bool) -> Tensor:
    """Non-saturating logistic loss, the mean of softplus(-logits) for real, softplus(logits) else.

    The generator's loss is that of a fake judged as if real.
    """
    return F.softplus(-logits if is_real else logits).mean()


def half_transparency(opacities: Tensor) -> Tensor:
    """Mean of 4 o (1 - o) over opacities o in [0, 1]; 0 where every ray is clear or opaque.

    A toy or a head has a surface; fog and stray specks around it are half-transparent. The gradient
    only clears: where o is over a half it is zero, as it would make specks opaque, and what is
    opaque hardly learns any more (dw/dsigma falls like exp(-sigma delta)).
    """
    clearing = torch.where(opacities < 0.5, opacities, opacities.detach())
    return 4 * (clearing * (1 - clearing)).mean()


def top_k(logits: Tensor, share: float) -> Tensor:
    """The ceil(share * B) largest of logits (B,): the fakes that look most real."""
    # Rounded first: 0.6 * 5 is a little more than 3 in floating point.
    count = math.ceil(round(share * len(logits), 9))
    return logits.topk(max(1, count)).values


def identity(
    verdict: Verdict, latents: Tensor, poses: Poses, *, z_lambda: float, pos_lambda: float
) -> Tensor:
    """Squared errors of the guessed latent and pose of fakes, mean over all numbers.

    The pose is [pitch, yaw] in radians as rendered. Zero where the discriminator has no such heads.
    """
    loss = verdict.logits.new_zeros(())
    if verdict.latent is not None and z_lambda > 0:
        loss = loss + z_lambda * F.mse_loss(verdict.latent, latents)
    if verdict.pose is not None and pos_lambda > 0:
        loss = loss + pos_lambda * F.mse_loss(verdict.pose, torch.stack(poses, dim=1))
    return loss
