"""Fit a photo from an encoder's guess instead of a random search.

Descends in the encoder's coordinates and in FiLM offsets at once, on small pictures first. A guess
may mistake the back of an object for its front, so the turned one is tried too.

Legend: B guesses, K coordinates, F FiLM features, H = W pixels.
"""

import math
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from generators.cameras import Poses
from generators.encoder import Encoder
from generators.generators import ImplicitGenerator3d
from generators.inversion import (
    LATENT_PRIOR,
    OFFSET_PRIOR,
    Cameras,
    FitOptions,
    Guess,
    Photo,
    Report,
    descend,
    photo_losses,
    render_guess,
)
from generators.volumetric_rendering import RenderOptions
from siren.film import Film

TURNS = (
    0.0,
    0.3,
    -0.3,
    0.8,
    -0.8,
)  # radians of yaw from the guess, and from the guess turned by half
SMALLEST = 16  # pixels per side
OFFSET_RATE = 0.75  # learning rate of offsets, as a share of that of coordinates


class Pass(NamedTuple):
    """One descent: its name, pixels per side, steps and learning rates."""

    name: str
    size: int
    steps: int
    rate: float
    pose_rate: float


def passes(size: int) -> list[Pass]:
    """Return the descents of a fit to a photo of size x size pixels."""
    small = Pass("small", min(SMALLEST, size), 30, 0.08, 0.03)
    if size <= 2 * SMALLEST:
        return [small, Pass("film", size, 100, 0.06, 0.02)]
    return [small, Pass("half", size // 2, 80, 0.06, 0.02), Pass("film", size, 60, 0.04, 0.01)]


def num_steps(size: int) -> int:
    """Return how many steps a fit to a photo of size x size pixels takes."""
    return sum(each.steps for each in passes(size))


@torch.no_grad()
def first_guesses(
    encoder: Encoder,
    generator: ImplicitGenerator3d,
    photo: Photo,
    options: RenderOptions,
    *,
    fits_fov: bool = True,
) -> tuple[Tensor, Guess]:
    """Return the encoder's guess and its back side, the better one first; coordinates (2, K).

    Each is the best of some turns, compared with the photo at SMALLEST pixels. fits_fov: take the
    guessed angle of view, not that of options.
    """
    coordinates, guess = encoder.guess(photo.at(encoder.image_size).image[None])
    if not fits_fov:
        guess = replace(guess, fov_degrees=torch.full_like(guess.fov_degrees, options.fov_degrees))
    turns = guess.poses.yaw.new_tensor([[turn, turn + math.pi] for turn in TURNS])
    first = torch.zeros(turns.numel(), dtype=torch.long, device=turns.device)
    turned = guess[first]
    turned = replace(turned, poses=Poses(turned.poses.pitch, turned.poses.yaw + turns.flatten()))
    seen = render_guess(generator, turned, options, SMALLEST)
    losses, best = photo_losses(*seen, photo.at(SMALLEST)).view(turns.shape).min(0)
    both = (2 * best + torch.arange(2, device=best.device))[losses.argsort()]
    return coordinates.expand(2, -1).clone(), turned[both]


def fit_from_guess(
    encoder: Encoder,
    generator: ImplicitGenerator3d,
    photo: Photo,
    options: RenderOptions,
    *,
    fits_fov: bool,
    is_instant: bool = False,
    report: Report,
) -> tuple[Guess, float]:
    """Fit a photo; return the best guess (B = 1) and its loss. Arguments as inversion.fit_photo's.

    is_instant: return the encoder's guess as it is.
    """
    options = replace(options, density_noise=0.0)
    coordinates, guess = first_guesses(encoder, generator, photo, options, fits_fov=fits_fov)
    if is_instant:
        with torch.no_grad():
            seen = render_guess(generator, guess[:1], options, photo.image.shape[-1])
        return guess[:1], float(photo_losses(*seen, photo))
    coordinates = coordinates.requires_grad_()
    offsets = torch.zeros(2, len(encoder.mean), device=coordinates.device, requires_grad=True)
    scale = OFFSET_RATE * encoder.spread()

    def film() -> tuple[Film, Tensor]:
        prior = LATENT_PRIOR * coordinates.square().mean(1)
        prior = prior + OFFSET_PRIOR * (OFFSET_RATE * offsets).square().mean(1)
        return encoder.film(coordinates, offsets * scale), prior

    for name, size, steps, rate, pose_rate in passes(photo.image.shape[-1]):
        cameras = Cameras(guess.poses, guess.fov_degrees, options.fov_degrees)
        fit = FitOptions(fits_fov=fits_fov, pose_rate=pose_rate)
        losses, guess = descend(
            film, [coordinates, offsets], rate, cameras, generator, [photo.at(size)], options, fit,
            steps=steps, report=partial(report, name),
        )  # fmt: skip
        best = losses.argmin()[None]
        guess = guess[best]
        coordinates, offsets = (
            part.detach()[best].requires_grad_() for part in (coordinates, offsets)
        )
    return guess, float(losses[0])
