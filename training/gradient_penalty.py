"""R1 without a second derivative: the gradient of a penalty on a piecewise linear network.

Legend: B images x, l their logits, g = grad l their gradients, s = d softplus(-l) / dl.

Around each image the discriminator is an affine map a(x) = A x + b, and g is a row of A. The loss
mean softplus(-l) + strength * mean |g|^2 has, with g and s held fixed where they stand here, the
parameters' gradient of

    1 / B * sum (s l + 2 strength <g, grad l>) = 1 / B * sum (A (s x + 2 strength g) + s b),

which is one pass of that affine map, over images that no one has seen, and its ordinary gradient.
Automatic differentiation of g takes more convolutions, and some in layouts that are slow.

Source of the penalty: Mescheder et al. 2018, equation 9; strength is its gamma / 2.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from discriminators.discriminators import PyramidDiscriminator
from discriminators.linearized import Watched
from training import losses


class PenalizedReals(NamedTuple):
    """What the affine map is asked, and the loss's terms at the real images, without a graph.

    images (B, 3, H, W) and shares (B,) of the constants go in; the sum of what comes out, times
    factors (B,), has the gradient of the loss. The images are of the size of one.
    """

    images: Tensor
    shares: Tensor
    factors: Tensor
    watched: Watched
    logistic: Tensor
    penalty: Tensor


def penalized_reals(
    discriminator: PyramidDiscriminator,
    real: Tensor,
    alpha: float,
    *,
    strength: float,
    scale: Tensor | None = None,
) -> PenalizedReals:
    """The loss mean softplus(-l) + strength * mean |g|^2 at images real (B, 3, H, W).

    Args:
        discriminator: under the autocast now in force.
        real: not in need of a gradient.
        alpha: share of the newest level.
        strength: factor on the mean squared gradient.
        scale: what to multiply logits by before differentiation, and gradients by its inverse;
            keeps half-precision gradients from vanishing.
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
        logistic=losses.logistic(logits, is_real=True),
        penalty=strength * gradients.flatten(1).square().sum(1).mean(),
    )
