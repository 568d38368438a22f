"""Fit an object and a camera to a photo by gradient descent through the renderer.

Three passes, coarse to fine: a random search over objects and poses on thumbnails; descent of the
best few in latent space, which keeps them plausible; descent of the best one in FiLM space, which
holds more objects than the latents map to.

Legend: K guesses, N photos of one object, L width of a latent, F FiLM features, H = W pixels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from generators.cameras import POLE_MARGIN, PoseDistribution, Poses, cast_rays, sample_poses
from generators.generators import ImplicitGenerator3d
from generators.sampling import LatentKind, sample_latents
from generators.volumetric_rendering import RenderOptions, render_rays
from siren.film import Film

SMALLEST_LEVEL = 8  # pixels per side of the coarsest pyramid level
OPACITY_WEIGHT = 0.5  # of the difference between the opacity and the photo's alpha
LATENT_PRIOR = 1e-4  # times |z|^2 / L: the negative logarithm of the latent's density, scaled
OFFSET_PRIOR = 1e-4  # times the mean square of FiLM offsets, in standard deviations over latents
FOV_PRIOR = 1e-2  # times (log fov / given fov)^2: the object's size has nearly the same effect
PATIENCE, MIN_GAIN = 60, 0.01  # stop after so many steps without a gain of this share


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo to fit.

    image: (3, H, W) in [-1, 1], on the curriculum's background where it has an alpha.
    weight: (H, W) in [0, 1], weight of each pixel in the loss.
    alpha: (H, W) in [0, 1], opacity of the object; None if unknown.
    """

    image: Tensor
    weight: Tensor
    alpha: Tensor | None = None

    def at(self, size: int) -> "Photo":
        """Resize to size pixels per side by averaging areas."""

        def shrink(plane: Tensor) -> Tensor:
            return F.interpolate(plane[None], (size, size), mode="area")[0]

        alpha = None if self.alpha is None else shrink(self.alpha[None])[0]
        return Photo(shrink(self.image), shrink(self.weight[None])[0], alpha)


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions:
    """Effort and learning rates of a fit.

    num_candidates: of the random search, at search_size pixels. num_starts: how many of the best
    descend for latent_steps at half of the photo's size; the best one then descends for film_steps
    at its full size. fits_fov: fit the angle of view too. The rates are Adam's learning rates, of
    latents in standard deviations, angles in radians, FiLM offsets in standard deviations.
    """

    num_candidates: int = 1024
    num_starts: int = 8
    latent_steps: int = 150
    film_steps: int = 300
    search_size: int = 16
    fits_fov: bool = True
    latent_rate: float = 0.05
    pose_rate: float = 0.02
    film_rate: float = 0.02


@dataclass(frozen=True, eq=False)
class Guess:
    """K objects and their cameras, with gradients; fov_degrees (K,).

    For N photos N * K: all objects for the first photo, then for the next.
    """

    film: Film
    poses: Poses
    fov_degrees: Tensor

    def __getitem__(self, index: Tensor | slice) -> "Guess":
        poses = Poses(*(angle[index] for angle in self.poses))
        return Guess(self.film[index], poses, self.fov_degrees[index])


Report = Callable[[str, int, float], None]  # takes the pass's name, its steps so far, lowest loss


@dataclass(frozen=True, eq=False, kw_only=True)
class FitTask:
    """A generator, frozen, and how photos on its device are fitted with it.

    poses: distribution of the expected cameras. options: of the renders, in the photos' size. kind:
    of the latents. rng: CPU stream of the random draws. report: called after each step.
    """

    generator: ImplicitGenerator3d
    poses: PoseDistribution
    options: RenderOptions
    effort: FitOptions
    kind: LatentKind
    rng: torch.Generator
    report: Report


def render_guess(
    generator: ImplicitGenerator3d, guess: Guess, options: RenderOptions, size: int
) -> tuple[Tensor, Tensor]:
    """Render images (K, 3, size, size) in [-1, 1] and opacities (K, size, size) with gradients."""
    rays = cast_rays(guess.poses, size, guess.fov_degrees)
    rendering = render_rays(generator.field(guess.film), rays, options, rng=None)
    images = rendering.rgb.unflatten(1, (size, size)).permute(0, 3, 1, 2) * 2 - 1
    return images, rendering.opacity.unflatten(1, (size, size))


def photo_losses(images: Tensor, opacities: Tensor, photo: Photo) -> Tensor:
    """Return losses (K,) of images (K, 3, H, W) against the photo, averaged over an image pyramid.

    Each level's loss is the weighted mean squared difference. The coarse levels have a gradient
    towards the right camera where it is still far off; the fine ones have none there.
    """
    levels = []
    seen = torch.cat([images, opacities[:, None]], dim=1)
    wanted = photo.image if photo.alpha is None else torch.cat([photo.image, photo.alpha[None]])
    weight = photo.weight
    scale = images.new_tensor([1.0, 1.0, 1.0, OPACITY_WEIGHT])[: len(wanted), None, None]
    while True:
        error = scale * (seen[:, : len(wanted)] - wanted).square()
        levels.append((error.mean(1) * weight).sum((1, 2)) / weight.sum().clamp(min=1e-6))
        if seen.shape[-1] < 2 * SMALLEST_LEVEL:
            return torch.stack(levels).mean(0)
        weighted = F.avg_pool2d(torch.cat([wanted * weight, weight[None]])[None], 2)[0]
        seen_weighted = F.avg_pool2d(seen * weight, 2)
        weight = weighted[-1]
        filled = weight.clamp(min=1e-6)
        seen, wanted = seen_weighted / filled, weighted[:-1] / filled


@torch.no_grad()
def search(task: FitTask, photo: Photo, guessed_pose: Poses | None) -> tuple[Tensor, Poses]:
    """Return latents (K, L) and poses of the best of num_candidates random ones, best first.

    guessed_pose: a guess of the camera (1,), from the discriminator's pose head; every other
    candidate then starts near it, within some degrees.
    """
    generator, options, effort, rng = task.generator, task.options, task.effort, task.rng
    small, device = photo.at(effort.search_size), photo.image.device
    latents = sample_latents(effort.num_candidates, generator.z_dim, kind=task.kind, rng=rng)
    latents[::2] *= 0.5  # nearer to the mean object, which resembles most photos
    cameras = sample_poses(task.poses, effort.num_candidates, rng=rng)
    if guessed_pose is not None:
        for angle, guessed in zip(cameras, guessed_pose, strict=True):
            around = 0.1 * torch.randn(len(angle[::2]), generator=rng)
            angle[::2] = guessed.cpu() + around
        cameras.pitch.clamp_(POLE_MARGIN, math.pi - POLE_MARGIN)
    losses = []
    for start in range(0, effort.num_candidates, 32):
        part = slice(start, start + 32)
        film = generator.mapping(latents[part])
        guess = Guess(
            film,
            Poses(*(angle[part].to(device) for angle in cameras)),
            torch.full((len(film),), options.fov_degrees, device=device),
        )
        images, opacities = render_guess(generator, guess, options, effort.search_size)
        losses.append(photo_losses(images, opacities, small))
        done = min(start + 32, effort.num_candidates)
        task.report("search", done, float(torch.cat(losses).min()))
    best = torch.cat(losses).cpu().argsort()[: effort.num_starts]
    return latents[best], Poses(*(angle[best] for angle in cameras))


class Cameras:
    """Learnable pitch, yaw and angle of view of K guesses for each of N photos, (N * K,)."""

    def __init__(self, poses: Poses, fov_degrees: Tensor, given_fov: float) -> None:
        self.pitch, self.yaw = (angle.detach().clone().requires_grad_() for angle in poses)
        self.log_zoom = (fov_degrees / given_fov).log().detach().clone().requires_grad_()
        self.given_fov = given_fov

    def parameters(self, *, fits_fov: bool) -> list[Tensor]:
        """Return what is learned."""
        return [self.pitch, self.yaw, *([self.log_zoom] if fits_fov else [])]

    def guess(self, film: Film, part: slice = slice(None)) -> Guess:
        """Return film (K objects) seen by the cameras of part, which are K or N * K."""
        pitch = self.pitch[part].clamp(POLE_MARGIN, math.pi - POLE_MARGIN)
        repeats = (len(pitch) // len(film), 1)
        film = Film(film.frequencies.repeat(repeats), film.phase_shifts.repeat(repeats))
        fov_degrees = self.given_fov * self.log_zoom[part].exp()
        return Guess(film, Poses(pitch, self.yaw[part]), fov_degrees)


def _better(losses: Tensor, guess: Guess, lowest: Tensor, best: Guess) -> tuple[Tensor, Guess]:
    """Return for each of K guesses the one with the lower loss, and the loss, without gradients."""
    is_new = losses < lowest

    def choose(new: Tensor, old: Tensor) -> Tensor:
        is_chosen = is_new.repeat(len(new) // len(is_new)).view(-1, *[1] * (new.dim() - 1))
        return torch.where(is_chosen, new, old).detach()

    film = Film(
        choose(guess.film.frequencies, best.film.frequencies),
        choose(guess.film.phase_shifts, best.film.phase_shifts),
    )
    poses = Poses(*map(choose, guess.poses, best.poses))
    fov_degrees = choose(guess.fov_degrees, best.fov_degrees)
    return choose(losses, lowest), Guess(film, poses, fov_degrees)


def descend(
    task: FitTask,
    photos: Sequence[Photo],
    cameras: Cameras,
    film_of: Callable[[], tuple[Film, Tensor]],
    parameters: list[Tensor],
    *,
    name: str,
    rate: float,
    steps: int,
) -> tuple[Tensor, Guess]:
    """Descend with Adam on film_of's conditioning and prior; return lowest losses, guesses.

    The photos are rendered one after the other, so that memory does not grow with their number.
    """
    poses = cameras.parameters(fits_fov=task.effort.fits_fov)
    groups = [{"params": parameters, "lr": rate}, {"params": poses, "lr": task.effort.pose_rate}]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=0.0)
    best, reference, since = None, math.inf, 0  # since: step of the last gain of MIN_GAIN
    count = len(cameras.pitch) // len(photos)  # K
    lowest = torch.full_like(cameras.pitch[:count], math.inf, requires_grad=False)
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        losses = torch.zeros_like(lowest)
        for index, photo in enumerate(photos):
            film, prior = film_of()
            part = slice(index * count, (index + 1) * count)
            guess = cameras.guess(film, part)
            seen = render_guess(task.generator, guess, task.options, photo.image.shape[-1])
            own = photo_losses(*seen, photo)
            total = own + prior + FOV_PRIOR * cameras.log_zoom[part].square()
            (total.sum() / len(photos)).backward()
            losses = losses + own.detach() / len(photos)
        guess = cameras.guess(film)
        lowest, best = _better(losses, guess, lowest, best or guess)
        task.report(name, step + 1, float(lowest.min()))
        if lowest.min() < reference * (1 - MIN_GAIN):
            reference, since = float(lowest.min()), step
        if step - since > PATIENCE:
            break
        optimizer.step()
        schedule.step()
    assert best is not None  # steps is positive
    return lowest, best


def fit_photo(
    task: FitTask, photo: Photo, guessed_pose: Poses | None = None
) -> tuple[Guess, float]:
    """Fit a photo; return the best guess (K = 1) and its loss; guessed_pose as in search."""
    return fit_from(task, [photo], *search(task, photo, guessed_pose))


def fit_from(
    task: FitTask, photos: Sequence[Photo], latents: Tensor, poses: Poses
) -> tuple[Guess, float]:
    """Descend from latents (K, L) and poses (N * K,); return the best guess and its loss.

    The N photos, of one size, show one object: the guess is that object for each of their cameras,
    (N,), and the loss their mean.
    """
    device, fov, effort = photos[0].image.device, task.options.fov_degrees, task.effort
    z = latents.to(device).requires_grad_()
    given = torch.full((len(poses.yaw),), fov, device=device)
    cameras = Cameras(Poses(*(angle.to(device) for angle in poses)), given, fov)

    def film_of_latents() -> tuple[Film, Tensor]:
        return task.generator.mapping(z), LATENT_PRIOR * z.square().mean(1)

    size = max(effort.search_size, photos[0].image.shape[-1] // 2)
    small = [photo.at(size) for photo in photos]
    losses, best = descend(
        task, small, cameras, film_of_latents, [z],
        name="latent", rate=effort.latent_rate, steps=effort.latent_steps,
    )  # fmt: skip
    chosen = best[torch.arange(len(photos), device=device) * len(z) + losses.argmin()]
    return _refine(task, photos, chosen)


def _refine(task: FitTask, photos: Sequence[Photo], start: Guess) -> tuple[Guess, float]:
    """Descend in FiLM space from one object and its N cameras, at the photos' full size."""
    with torch.no_grad():
        latents = sample_latents(1000, task.generator.z_dim, kind=task.kind, rng=task.rng)
        spread = task.generator.mapping(latents)
    scales = [part.std(0, keepdim=True) for part in (spread.frequencies, spread.phase_shifts)]
    offsets = [torch.zeros_like(scale, requires_grad=True) for scale in scales]

    def film_of_offsets() -> tuple[Film, Tensor]:
        film = Film(
            start.film.frequencies[:1] + scales[0] * offsets[0],
            start.film.phase_shifts[:1] + scales[1] * offsets[1],
        )
        squares = torch.cat(offsets, dim=1).square().mean(1)
        return film, OFFSET_PRIOR * squares

    cameras = Cameras(start.poses, start.fov_degrees, task.options.fov_degrees)
    losses, best = descend(
        task, photos, cameras, film_of_offsets, offsets,
        name="film", rate=task.effort.film_rate, steps=task.effort.film_steps,
    )  # fmt: skip
    return best, float(losses[0])
