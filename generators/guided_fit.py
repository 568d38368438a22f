"""Fit a photo from an encoder's guess instead of a random search.

Descends in the encoder's coordinates and in FiLM offsets at once, on small pictures first. A guess
may mistake the back of an object for its front, so the turned one is tried too.

Legend: B guesses, K coordinates, F FiLM features, H = W pixels.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from generators.cameras import FAMILIAR, Poses, angles_to_nearest, familiar_poses
from generators.encoder import Encoder
from generators.inversion import (
    LATENT_PRIOR,
    OFFSET_PRIOR,
    Cameras,
    FitTask,
    Guess,
    Photo,
    descend,
    photo_losses,
    render_guess,
)
from siren.film import Film

QUARTERS = 4  # of a full turn of yaw, in each of which a fit starts
TURNS = (0.0, 0.3, -0.3, 0.6, -0.6)  # radians of yaw from the middle of a quarter
SMALLEST = 16  # pixels per side
AMBIGUOUS = 3  # times the lowest loss: a start that is worse is given up
OFFSET_RATE = 0.3  # learning rate of offsets, as a share of that of coordinates


class Pass(NamedTuple):
    """One descent: its name, pixels per side, steps, learning rates, and how many go on at most.

    finer: times the samples per ray of training. With few samples FiLM offsets fit their noise.
    """

    name: str
    size: int
    steps: int
    rate: float
    pose_rate: float
    kept: int = 1
    finer: int = 1


def passes(size: int) -> list[Pass]:
    """Return the descents of a fit to a photo of size x size pixels."""
    smallest, half = min(SMALLEST, size), size // 2
    return [
        Pass("small", smallest, 20, 0.12, 0.03, kept=2),
        Pass("both", smallest, 40, 0.12, 0.03, kept=2),
        *([Pass("half", half, 60, 0.06, 0.02)] if half > SMALLEST else []),
        Pass("film", size, 150, 0.12, 0.02, finer=2),
    ]


def num_steps(size: int) -> int:
    """Return how many steps a fit to a photo of size x size pixels takes."""
    return sum(each.steps for each in passes(size))


@torch.no_grad()
def first_guesses(task: FitTask, encoder: Encoder, photo: Photo) -> tuple[Tensor, Guess]:
    """Return a guess for each quarter of a turn, the best first, and coordinates (B, K).

    Each is the best of some turns of the encoder's guess, compared with the photo at SMALLEST
    pixels. Quarters in which none of the expected cameras is near are left out. The angle of view
    is the guessed one if it is to be fitted, else that of the options.
    """
    options = task.options
    coordinates, guess = encoder.guess(photo.at(encoder.image_size).image[None])
    if not task.effort.fits_fov:
        guess = replace(guess, fov_degrees=torch.full_like(guess.fov_degrees, options.fov_degrees))
    quarter = math.tau / QUARTERS
    turns = guess.poses.yaw.new_tensor(
        [[turn + index * quarter for index in range(QUARTERS)] for turn in TURNS]
    )
    first = torch.zeros(turns.numel(), dtype=torch.long, device=turns.device)
    turned = guess[first]
    turned = replace(turned, poses=Poses(turned.poses.pitch, turned.poses.yaw + turns.flatten()))
    seen = render_guess(task.generator, turned, options, SMALLEST)
    losses = photo_losses(*seen, photo.at(SMALLEST))
    off = angles_to_nearest(familiar_poses(task.poses), turned.poses)
    losses = losses.where(off <= FAMILIAR, math.inf)
    losses, best = losses.view(turns.shape).min(0)
    chosen = (QUARTERS * best + torch.arange(QUARTERS, device=best.device))[losses.argsort()]
    chosen = chosen[: max(1, int(losses.isfinite().sum()))]
    return coordinates.expand(len(chosen), -1).clone(), turned[chosen]


def fit_from_guess(
    task: FitTask, encoder: Encoder, photo: Photo, *, is_instant: bool = False
) -> tuple[Guess, float]:
    """Fit a photo; return the best guess (B = 1) and its loss.

    is_instant: return the encoder's guess as it is.
    """
    options = task.options
    coordinates, guess = first_guesses(task, encoder, photo)
    if is_instant:
        with torch.no_grad():
            seen = render_guess(task.generator, guess[:1], options, photo.image.shape[-1])
        return guess[:1], float(photo_losses(*seen, photo))
    coordinates = coordinates.requires_grad_()
    offsets = torch.zeros(len(coordinates), len(encoder.mean), device=coordinates.device)
    offsets = offsets.requires_grad_()
    scale = OFFSET_RATE * encoder.spread()

    def film() -> tuple[Film, Tensor]:
        prior = LATENT_PRIOR * coordinates.square().mean(1)
        prior = prior + OFFSET_PRIOR * (OFFSET_RATE * offsets).square().mean(1)
        return encoder.film(coordinates, offsets * scale), prior

    for name, size, steps, rate, pose_rate, kept, finer in passes(photo.image.shape[-1]):
        cameras = Cameras(guess.poses, guess.fov_degrees, options.fov_degrees)
        of_pass = replace(
            task,
            options=replace(options, num_steps=finer * options.num_steps),
            effort=replace(task.effort, pose_rate=pose_rate),
        )
        losses, guess = descend(
            of_pass, [photo.at(size)], cameras, film, [coordinates, offsets],
            name=name, rate=rate, steps=steps,
        )  # fmt: skip
        best = losses.argsort()[:kept]
        best = best[losses[best] <= AMBIGUOUS * losses[best[0]]]
        guess = guess[best]
        coordinates, offsets = (
            part.detach()[best].requires_grad_() for part in (coordinates, offsets)
        )
    return guess, float(losses[0])
