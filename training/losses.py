"""Loss terms of both networks.

Legend: B images, L width of the latent.
Source: pi-GAN (Chan et al. 2021), section 3.3; top-k training from Sinha et al. 2020; the identity
terms come with the published code.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from config.stage import GanLoss
from discriminators.discriminators import Verdict
from generators.cameras import Poses, moved

ISLAND_CELLS = 32  # per side of an image in which islands are looked for
TURN = 0.01  # turns of normals by less cost less: radians


def logistic(logits: Tensor, *, is_real: bool) -> Tensor:
    """Return the mean of softplus(-logits) for real images, of softplus(logits) for fakes.

    The generator's non-saturating loss is that of its fakes with is_real=True.
    """
    return F.softplus(-logits if is_real else logits).mean()


def relativistic(logits: Tensor, others: Tensor) -> Tensor:
    """Return the mean of softplus(-(l - o)) over pairs of logits l (B,) and o (B,).

    The discriminator's loss takes those of reals and of fakes, the generator's those of fakes and
    of reals. Source: Jolicoeur-Martineau 2019; with R1 and R2 Huang et al. 2024 (R3GAN).
    """
    return F.softplus(others - logits).mean()


class AdversarialLoss:
    """The terms of both networks, by name, as functions of the discriminator's logits.

    compares_pairs: terms depend on pairs of a real and a fake, so both need logits together.
    chance: the discriminator's terms, by name, where it only guesses (all logits are 0). Warnings
    that it guesses or is too sure compare with them; without them there are none.
    """

    compares_pairs = False
    chance: Mapping[str, float] = {}

    def of_discriminator(self, on_real: Tensor, on_fake: Tensor) -> dict[str, Tensor]:
        """Return the discriminator's terms for logits of reals and fakes (B,)."""
        raise NotImplementedError

    def of_generator(
        self, on_fake: Tensor, on_real: Tensor, topk_share: float
    ) -> dict[str, Tensor]:
        """Return the generator's terms for logits of fakes (B,).

        on_real: logits (B,) of their partners; without meaning if pairs are not compared.
        topk_share: the share of fakes that counts, the best ones; of pairs all count.
        """
        raise NotImplementedError

    def slopes(self, on_real: Tensor, on_fake: Tensor) -> Tensor:
        """Return the derivatives (2 B,) of the discriminator's terms by all logits, reals first."""
        with torch.enable_grad():
            logits = [part.detach().requires_grad_() for part in (on_real, on_fake)]
            terms = self.of_discriminator(*logits).values()
            return torch.cat(torch.autograd.grad(sum(terms, on_real.new_zeros(())), logits))


class Logistic(AdversarialLoss):
    """The non-saturating loss of pi-GAN."""

    chance = {"d_real": math.log(2), "d_fake": math.log(2)}

    def of_discriminator(self, on_real: Tensor, on_fake: Tensor) -> dict[str, Tensor]:
        """Do as AdversarialLoss.of_discriminator."""
        return {
            "d_real": logistic(on_real, is_real=True),
            "d_fake": logistic(on_fake, is_real=False),
        }

    def of_generator(
        self, on_fake: Tensor, on_real: Tensor, topk_share: float
    ) -> dict[str, Tensor]:
        """Do as AdversarialLoss.of_generator."""
        return {"g_fake": logistic(top_k(on_fake, topk_share), is_real=True)}


class Relativistic(AdversarialLoss):
    """The loss of a fake beside a real; see relativistic."""

    compares_pairs = True
    chance = {"d_pair": math.log(2)}

    def of_discriminator(self, on_real: Tensor, on_fake: Tensor) -> dict[str, Tensor]:
        """Do as AdversarialLoss.of_discriminator."""
        return {"d_pair": relativistic(on_real, on_fake)}

    def of_generator(
        self, on_fake: Tensor, on_real: Tensor, topk_share: float
    ) -> dict[str, Tensor]:
        """Do as AdversarialLoss.of_generator."""
        return {"g_pair": relativistic(on_fake, on_real)}


LOSSES: dict[GanLoss, AdversarialLoss] = {
    "logistic": Logistic(),
    "relativistic": Relativistic(),
}


def half_transparency(opacities: Tensor) -> Tensor:
    """Return the mean of 4 o (1 - o) over opacities o in [0, 1]; 0 if all are 0 or 1.

    A toy or a head has a surface; fog and stray specks around it are half-transparent. The gradient
    only removes density: it is zero for o over a half, where it would make specks opaque, and
    opaque samples hardly learn any more (dw/dsigma falls like exp(-sigma delta)).
    """
    clearing = torch.where(opacities < 0.5, opacities, opacities.detach())
    return 4 * (clearing * (1 - clearing)).mean()


class Slopes(NamedTuple):
    """Signed distances (B, P) at points (B, P, 3) and their gradients (B, P, 3), differentiable."""

    points: Tensor
    distances: Tensor
    gradients: Tensor

    @classmethod
    def at(cls, points: Tensor, distances: Callable[[Tensor], Tensor]) -> "Slopes":
        """Return those at points, which gets gradients; distances is the function."""
        values = distances(points.requires_grad_())
        return cls(points, values, *torch.autograd.grad(values.sum(), points, create_graph=True))

    @property
    def normals(self) -> Tensor:
        """Return unit vectors (B, P, 3) into the object."""
        return F.normalize(self.gradients, dim=-1, eps=1e-3)

    def onto_surface(self) -> Tensor:
        """Return vectors (B, P, 3) from the points to the surface: one step of Newton's method.

        They are too short where the distance hardly changes.
        """
        squares = self.gradients.square().sum(-1).clamp(min=0.05)
        return (-self.distances / squares)[..., None] * self.gradients


def eikonal(slopes: Slopes) -> Tensor:
    """Return the mean of (|d'(x)| - 1)^2 over points x.

    A true distance d grows by one unit in each unit of length; waves and folds do not. Source:
    Gropp et al. 2020.
    """
    return (torch.linalg.vector_norm(slopes.gradients, dim=-1) - 1).square().mean()


def unevenness(
    distances: Callable[[Tensor], Tensor], slopes: Slopes, steps: Tensor, reach: float
) -> Tensor:
    """Return the mean of |n(x) - n(x + step)| over points x of the surface, n its normals.

    It flattens waves but allows edges, as the sum of the turns over an edge is the same whether it
    is sharp or round. Source: UNISURF (Oechsle et al. 2021), regularization of the surface.

    Args:
        distances: from points (B, 2 P, 3) to signed distances.
        slopes: at points around the object; those not farther from the surface than reach count,
            at the point of the surface next to them.
        steps: (B, P, 3) to neighboring points.
        reach: scene units.
    """
    moves = slopes.onto_surface().detach()
    start = slopes.points.detach() + moves
    normals = Slopes.at(torch.cat([start, start + steps], dim=1), distances).normals
    here, there = normals.chunk(2, dim=1)
    turns = ((here - there).square().sum(-1) + TURN**2).sqrt() - TURN
    counts = torch.linalg.vector_norm(moves, dim=-1) < reach
    return (turns * counts).sum() / counts.sum().clamp(min=1)


def on_islands(opacities: Tensor) -> Tensor:
    """Return the mean of opacities (B, H, W) where those that do not hit an island count as 0."""
    return (opacities * islands(opacities)).mean()


@torch.no_grad()
def islands(opacities: Tensor) -> Tensor:
    """Return which rays (B, H, W) hit an island: something opaque apart from the object.

    The object of an image is everything opaque that is connected with the place where most is. The
    image is seen in at most ISLAND_CELLS cells per side, and a gap of one cell does not disconnect.
    """
    # The images are the channels of one, whose memory lies innermost: three times as fast.
    opaque = (opacities > 0.5).to(opacities)[None].contiguous(memory_format=torch.channels_last)
    side = -(-opacities.shape[-1] // ISLAND_CELLS)
    cells = F.max_pool2d(opaque, side, ceil_mode=True)
    crowds = F.avg_pool2d(cells, 5, stride=1, padding=2) * cells
    start = crowds.flatten(2).argmax(2, keepdim=True)
    found = torch.zeros_like(cells).flatten(2).scatter(2, start, 1.0).view_as(cells)
    found = found.contiguous(memory_format=torch.channels_last)
    for _ in range(ISLAND_CELLS):  # each goes two cells farther; no value decides when to stop
        found = F.max_pool2d(found, 5, stride=1, padding=2) * cells
    is_apart = (cells > found).repeat_interleave(side, 2).repeat_interleave(side, 3)
    height, width = opacities.shape[1:]
    return is_apart[0, :, :height, :width] & (opaque[0] > 0)


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
