"""Fit one object to several photos, each with a camera of its own.

Legend: K guesses, N photos, L width of a latent.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from generators import inversion
from generators.cameras import Poses
from generators.inversion import FitTask, Guess, Photo, photo_losses, render_guess
from siren.film import Film

POSES_OF_PHOTO = 32  # the best ones of each photo, which every latent tries


def fit_photos(
    task: FitTask, photos: Sequence[Photo], guessed_poses: Sequence[Poses | None]
) -> tuple[Guess, float]:
    """Fit N photos of one object; return the guess, with N cameras, and the mean of their losses.

    guessed_poses has one for each photo, as in inversion.search; the photos are of one size.
    """
    if len(photos) == 1:
        return inversion.fit_photo(task, photos[0], guessed_poses[0])
    return inversion.fit_from(task, photos, *search_together(task, photos, guessed_poses))


@torch.no_grad()
def search_together(
    task: FitTask, photos: Sequence[Photo], guessed_poses: Sequence[Poses | None]
) -> tuple[Tensor, Poses]:
    """Return latents (K, L) for N photos of one object, and a pose of each for each photo (N * K).

    Each photo is searched as by search. The best latents of each photo in turn are taken; for each
    of them every photo takes the best pose of its own search.
    """
    found, effort = [], task.effort
    wider = replace(effort, num_starts=max(POSES_OF_PHOTO, effort.num_starts))
    for index, (photo, guessed) in enumerate(zip(photos, guessed_poses, strict=True)):

        def shifted(name: str, step: int, loss: float, index: int = index) -> None:
            task.report(name, index * effort.num_candidates + step, loss)

        own_task = replace(task, effort=wider, report=shifted)
        found.append(inversion.search(own_task, photo, guessed))
    latents = torch.stack([best for best, _ in found], dim=1).flatten(0, 1)[: effort.num_starts]
    film = task.generator.mapping(latents)
    chosen = [
        _best_poses(task, film, own, photo.at(effort.search_size))
        for photo, (_, own) in zip(photos, found, strict=True)
    ]
    return latents, Poses(*(torch.cat(angles) for angles in zip(*chosen, strict=True)))


def _best_poses(task: FitTask, film: Film, poses: Poses, photo: Photo) -> Poses:
    """Return for each of K objects that one of some poses (M,) which fits the photo best, (K,)."""
    cameras = Poses(*(angle.to(photo.image.device) for angle in poses))
    fov_degrees = torch.full_like(cameras.yaw, task.options.fov_degrees)
    best = []
    for index in range(len(film)):
        same = film[torch.full((len(fov_degrees),), index)]
        guess = Guess(same, cameras, fov_degrees)
        seen = render_guess(task.generator, guess, task.options, photo.image.shape[-1])
        best.append(photo_losses(*seen, photo).argmin().cpu())
    return Poses(*(angle[torch.stack(best)] for angle in poses))
