"""Fit one object to several photos, each with a camera of its own.

Legend: K guesses, N photos, L width of a latent.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from generators import inversion
from generators.cameras import PoseDistribution, Poses
from generators.generators import ImplicitGenerator3d
from generators.inversion import FitOptions, Guess, Photo, Report, photo_losses, render_guess
from generators.sampling import LatentKind
from generators.volumetric_rendering import RenderOptions
from siren.film import Film

POSES_OF_PHOTO = 32  # the best ones of each photo, which every latent tries


def fit_photos(
    generator: ImplicitGenerator3d,
    photos: Sequence[Photo],
    poses: PoseDistribution,
    options: RenderOptions,
    fit: FitOptions,
    *,
    kind: LatentKind,
    guessed_poses: Sequence[Poses | None],
    rng: torch.Generator,
    report: Report,
) -> tuple[Guess, float]:
    """Fit N photos of one object; return the guess, with N cameras, and the mean of their losses.

    guessed_poses has one for each photo; the photos are of one size. The other arguments are those
    of inversion.fit_photo.
    """
    if len(photos) == 1:
        return inversion.fit_photo(
            generator, photos[0], poses, options, fit,
            kind=kind, guessed_pose=guessed_poses[0], rng=rng, report=report,
        )  # fmt: skip
    options = replace(options, density_noise=0.0)
    start = search_together(
        generator, photos, poses, options, fit,
        kind=kind, guessed_poses=guessed_poses, rng=rng, report=report,
    )  # fmt: skip
    return inversion.fit_from(
        generator, photos, *start, options, fit, kind=kind, rng=rng, report=report
    )


@torch.no_grad()
def search_together(
    generator: ImplicitGenerator3d,
    photos: Sequence[Photo],
    poses: PoseDistribution,
    options: RenderOptions,
    fit: FitOptions,
    *,
    kind: LatentKind,
    guessed_poses: Sequence[Poses | None],
    rng: torch.Generator,
    report: Report,
) -> tuple[Tensor, Poses]:
    """Return latents (K, L) for N photos of one object, and a pose of each for each photo (N * K).

    Each photo is searched as by search. The best latents of each photo in turn are taken; for each
    of them every photo takes the best pose of its own search.
    """
    found = []
    wider = replace(fit, num_starts=max(POSES_OF_PHOTO, fit.num_starts))
    for index, (photo, guessed) in enumerate(zip(photos, guessed_poses, strict=True)):

        def shifted(name: str, step: int, loss: float, index: int = index) -> None:
            report(name, index * fit.num_candidates + step, loss)

        found.append(
            inversion.search(generator, photo, poses, options, wider, kind=kind,
                             guessed_pose=guessed, rng=rng, report=shifted)
        )  # fmt: skip
    latents = torch.stack([best for best, _ in found], dim=1).flatten(0, 1)[: fit.num_starts]
    film = generator.mapping(latents)
    chosen = [
        _best_poses(generator, film, own, photo.at(fit.search_size), options)
        for photo, (_, own) in zip(photos, found, strict=True)
    ]
    return latents, Poses(*(torch.cat(angles) for angles in zip(*chosen, strict=True)))


def _best_poses(
    generator: ImplicitGenerator3d, film: Film, poses: Poses, photo: Photo, options: RenderOptions
) -> Poses:
    """Return for each of K objects that one of some poses (M,) which fits the photo best, (K,)."""
    cameras = Poses(*(angle.to(photo.image.device) for angle in poses))
    fov_degrees = torch.full_like(cameras.yaw, options.fov_degrees)
    best = []
    for index in range(len(film)):
        same = film[torch.full((len(fov_degrees),), index)]
        guess = Guess(same, cameras, fov_degrees)
        seen = render_guess(generator, guess, options, photo.image.shape[-1])
        best.append(photo_losses(*seen, photo).argmin().cpu())
    return Poses(*(angle[torch.stack(best)] for angle in poses))
