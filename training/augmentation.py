"""Augment real and generated pictures before the discriminator, for datasets of few pictures.

A discriminator learns few pictures by heart, and then tells the generator nothing about others.
Random colors, small shifts and cut-outs prevent that. None of them turns, scales or mirrors a
picture, so the distribution of the cameras stays as it is.

Legend: B images of H x W pixels.
Source: the transformations are those of Zhao et al. 2020 (DiffAugment), with integer shifts; their
probability follows Karras et al. 2020 (ADA), equation 1, with pictures that are held out.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from config.schema import Settings
from generators.sampling import Purpose, stream

FEW = 5000  # pictures below which "auto" augments
MOST_HELD_OUT, HELD_OUT_PERCENT = 64, 10  # of the pictures; the smaller number counts
INTERVAL = 8  # steps between two looks at the pictures that are held out
STEPS_TO_ONE = 500  # in which the probability can rise from 0 to 1
HIGHEST = 0.5  # probability; from 0.8 on generated pictures may look augmented (ADA, section 2.2)
TARGET = 0.5  # overfitting that is kept: 0 is none, at 1 pictures held out look like generated ones
BRIGHTNESS, CONTRAST, SATURATION = 0.25, 0.25, 0.5  # greatest changes; colors are in [-1, 1]
SHIFT, CUT = 1 / 8, 1 / 3  # greatest shift, and side of the square cut out, as shares of the side
NUM_DRAWS = 10  # random numbers of a picture

Augment = Callable[[Tensor], Tensor]  # of images (B, 3, H, W)


def unchanged(images: Tensor) -> Tensor:
    """Return images."""
    return images


def augmented(images: Tensor, draws: Tensor, probability: Tensor) -> Tensor:
    """Return images with their colors changed, shifted, and with a square cut out, each by chance.

    Differentiable, and linear in the colors of each image. A probability of 0 changes nothing.

    Args:
        images: (B, 3, H, W) in [-1, 1], H = W.
        draws: (B, NUM_DRAWS), uniform in [0, 1).
        probability: (), with which each of the three transformations is applied to an image.
    """
    chances, strengths, shifts, centers = draws.split([3, 3, 2, 2], dim=1)
    is_colored, is_shifted, is_cut = (chances < probability).split(1, dim=1)
    return _cut(
        _shifted(_colored(images, (2 * strengths - 1) * is_colored), shifts, is_shifted),
        centers,
        is_cut,
    )


def _colored(images: Tensor, strengths: Tensor) -> Tensor:
    """Change brightness, contrast and saturation by strengths (B, 3) in [-1, 1]; 0 is no change.

    x -> contrast (saturation x + (1 - saturation) mean of the colors of x) + brightness.
    """
    brightness, contrast, saturation = strengths[..., None, None].unbind(1)  # (B, 1, 1) each
    saturation = SATURATION * saturation
    one = torch.eye(3, dtype=images.dtype, device=images.device)
    matrix = (1 + CONTRAST * contrast) * ((1 + saturation) * one - saturation / 3)  # (B, 3, 3)
    return torch.baddbmm(BRIGHTNESS * brightness, matrix, images.flatten(2)).view_as(images)


def _shifted(images: Tensor, places: Tensor, is_shifted: Tensor) -> Tensor:
    """Shift images by whole pixels; what comes in from outside repeats the border.

    places: (B, 2) in [0, 1), down and to the right.
    """
    size = images.shape[-1]
    most = round(SHIFT * size)
    offsets = ((2 * most + 1) * places).floor().sub(most) * is_shifted  # (B, 2)
    pixels = torch.arange(size, device=images.device, dtype=images.dtype)
    sources = (pixels - offsets[..., None]).clamp(0, size - 1)  # (B, 2, size)
    # As products with matrices of ones and zeros, whose gradients need no atomic additions.
    rows, columns = (sources[..., None] == pixels).to(images.dtype)[:, :, None].unbind(1)
    return rows @ images @ columns.transpose(-1, -2)


def _cut(images: Tensor, centers: Tensor, is_cut: Tensor) -> Tensor:
    """Make a square gray, at centers (B, 2) in [0, 1) of which it may reach over the border."""
    size = images.shape[-1]
    half = round(CUT * size / 2)
    pixels = torch.arange(size, device=images.device)
    distances = pixels - (size * centers).floor()[..., None]  # (B, 2, size)
    rows, columns = ((distances >= -half) & (distances < half)).unbind(1)
    gone = rows[:, None, :, None] & columns[:, None, None, :] & is_cut[..., None, None]
    return images.masked_fill(gone, 0)


class HeldOut(NamedTuple):
    """Numbers of the pictures that the discriminator learns from, and of those held out."""

    learned: NDArray[np.int64]
    held_out: NDArray[np.int64]


def hold_out(num_images: int) -> HeldOut:
    """Hold out a tenth of the pictures, at most MOST_HELD_OUT; the same ones in every run."""
    order = np.random.default_rng(num_images).permutation(num_images)
    count = min(MOST_HELD_OUT, HELD_OUT_PERCENT * num_images // 100)
    return HeldOut(np.sort(order[count:]), np.sort(order[:count]))


class Augmentation:
    """Transformations of a run with their probability, which may follow the overfitting.

    Args:
        probability: (), float32 on the device of the images; changed in place.
        is_adaptive: whether it follows what `adapt` is told.
    """

    def __init__(self, probability: Tensor, *, is_adaptive: bool) -> None:
        self.probability = probability
        self.is_adaptive = is_adaptive

    def of_step(self, seed: int, rank: int, step: int) -> Augment:
        """Return the augmentation of images in one training step on one rank."""
        device = self.probability.device
        rng = stream(seed, rank, step, Purpose.AUGMENTATION, device=device)
        return partial(self.apply, rng=rng)

    def apply(self, images: Tensor, *, rng: torch.Generator) -> Tensor:
        """Return images (B, 3, H, W), augmented by the draws of rng, a stream of their device."""
        draws = torch.rand(len(images), NUM_DRAWS, generator=rng, device=images.device)
        changed = augmented(images, draws, self.probability)
        return changed.contiguous(memory_format=torch.channels_last)

    def is_due(self, step: int) -> bool:
        """Return whether the step needs pictures that are held out."""
        return self.is_adaptive and step % INTERVAL == 0

    @torch.no_grad()
    def adapt(self, learned: Tensor, fake: Tensor, held_out: Tensor) -> dict[str, Tensor]:
        """Raise the probability if the discriminator overfits, else lower it; return both gaps.

        It overfits if pictures that are held out are as far from those that it has learned as
        TARGET of the way to generated ones. Both distances stay if a constant is added to all
        logits, of which the relativistic loss knows only differences.

        learned, fake and held_out (): mean logits of pictures that the discriminator learns from,
        of generated ones, and of those held out.
        """
        gap, whole = learned - held_out, learned - fake
        change = INTERVAL / STEPS_TO_ONE
        is_overfit = (gap > TARGET * whole).to(self.probability)
        self.probability.add_(change * (2 * is_overfit - 1)).clamp_(0, HIGHEST)
        return {"d_gap_held_out": gap, "d_gap_fake": whole}


def augmentation_of(
    settings: Settings, num_images: int, *, is_built_in: bool, device: torch.device
) -> tuple[Augmentation | None, str]:
    """Return the augmentation of a run, or None, and a line about it that may be empty.

    is_built_in: the pictures are the built-in toy cars, which are never few.
    """
    wanted, is_few = settings.augment, num_images < FEW and not is_built_in
    about = f"{num_images} pictures are fewer than {FEW}"
    if wanted == "auto" and is_few:
        count = len(hold_out(num_images).held_out)
        start = torch.full((), 0.0 if count else HIGHEST, device=device)
        how = f"{count} are held out to measure overfitting" if count else "too few to hold any out"
        line = f"augmentation: on, because {about}; {how} (--set augment=0 turns it off)"
        return Augmentation(start, is_adaptive=count > 0), line
    if wanted == "auto" or wanted == 0:
        hint = f"augmentation: off, though {about}; --set augment=auto turns it on"
        return None, hint if wanted == 0 and is_few else ""
    probability = torch.full((), wanted, device=device)
    return Augmentation(probability, is_adaptive=False), f"augmentation: probability {wanted:g}"
