"""Fit photos with a generator, and say why a fit is poor.

Legend: N photos of one object, H = W pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from checkpoint_io.checkpoints import SavedGenerator
from discriminators.discriminators import PyramidDiscriminator
from generators import guided_fit, joint_inversion
from generators.cameras import FAMILIAR, Poses, angles_to_nearest, familiar_poses
from generators.encoder import Encoder
from generators.generators import View
from generators.inversion import FitOptions, FitTask, Guess, Photo, Report
from generators.pictures import psnr
from generators.sampling import sample_latents
from generators.trajectories import Camera, SceneObject
from generators.tuning import Tuning, tune, tuned_film
from generators.volumetric_rendering import RenderOptions
from rendering import filming
from rendering.photos import Opened
from siren.film import Film
from system.errors import UsageError

BACKGROUNDS = {"white": 1.0, "black": -1.0, "last_sample": None}
NUM_RANDOM = 1000  # objects that a fit is compared with
# Standard deviations from the mean object. Random objects: 0.4 to 3.3, most 0.9; fits of held-out
# cars: 1.0 to 2.1; fits of faces, cats and noise with a generator of cars: 3.0 to 3.2.
MAX_DISTANCE = 2.5
MAX_ZOOM = 1.5  # times larger or smaller than in training; held-out cars: 1.2
POOR_GAIN = 6.0  # dB better than a single color: the error is a quarter of the photo's variance


def render_options(
    saved: SavedGenerator, *, size: int | None, fov_degrees: float | None, is_locked: bool
) -> RenderOptions:
    """Return the options of renders that are compared with photos: of training, not random.

    size in pixels and fov_degrees None take those of the curriculum's last stage. Raises UsageError
    for an angle of view that is none.
    """
    curriculum = saved.curriculum
    largest = max(stage.img_size for _, stage in curriculum.stages)
    options = curriculum.preview_render(saved.last_step, size or largest, is_locked=is_locked)
    fov = fov_degrees or options.fov_degrees
    try:
        return replace(options, fov_degrees=fov)
    except ValueError as error:
        raise UsageError(f"--fov {fov}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fitter:
    """Fits photos with one generator.

    Attributes:
        saved: the generator.
        options: of the renders that are compared with photos; image_size is that of the photos.
        effort: of a fit.
        critic: the discriminator of the generator if it predicts poses, else None.
        encoder: fits of one photo start from its guess, or from random objects if it is None.
        is_instant: fits are the encoder's guess as it is.
        tuning_steps: of tuning the generator to the photos, after the fit.
        seed: of the candidates, and of tuning.
    """

    saved: SavedGenerator
    options: RenderOptions
    effort: FitOptions
    critic: PyramidDiscriminator | None = None
    encoder: Encoder | None = None
    is_instant: bool = False
    tuning_steps: int = 0
    seed: int = 0

    @property
    def background(self) -> float | None:
        """Value in [-1, 1] that is rendered behind objects; None if the generator draws it."""
        return BACKGROUNDS[self.options.background]

    def num_steps(self, num_photos: int) -> int:
        """Return the number of steps that fit reports at most."""
        effort = self.effort
        if self.encoder is not None and num_photos == 1:
            return guided_fit.num_steps(self.options.image_size) + self.tuning_steps
        steps = effort.latent_steps + effort.film_steps + self.tuning_steps
        return num_photos * effort.num_candidates + steps

    def fit(self, opened: Sequence[Opened], report: Report) -> "Fit":
        """Fit one object to N opened photos of it, each with a camera of its own."""
        saved = self.saved
        own = [_on(one.photo, saved.generator.device) for one in opened]
        guess, loss = self._guess(own, report)
        angles = zip(*(part.tolist() for part in (*guess.poses, guess.fov_degrees)), strict=True)
        _, usual = saved.curriculum.poses().center()
        shots = [
            SceneObject(one.name, guess.film[:1], Camera(pitch, _within_a_turn(yaw, usual), fov))
            for one, (pitch, yaw, fov) in zip(opened, angles, strict=True)
        ]
        views = list(filming.views(saved, shots, self.options))
        found = Fit(opened=opened, photos=own, shots=shots, views=views, loss=loss)
        if not self.tuning_steps:
            return found
        tuning = tune(self._task(report), guess, own, steps=self.tuning_steps)
        film = tuned_film(saved.generator.siren, guess.film[:1], tuning)
        shots = [shot._replace(film=film) for shot in shots]
        tuned = list(filming.views(saved, shots, self.options))
        return replace(found, shots=shots, views=tuned, untuned=views, tuning=tuning)

    def _guess(self, own: Sequence[Photo], report: Report) -> tuple[Guess, float]:
        """Fit one object to its photos; return it with their cameras, and the loss."""
        task = self._task(report)
        if self.encoder is not None and len(own) == 1:
            instant = self.is_instant
            return guided_fit.fit_from_guess(task, self.encoder, own[0], is_instant=instant)
        guessed_poses = [self._guessed_pose(photo) for photo in own]
        return joint_inversion.fit_photos(task, own, guessed_poses)

    def _task(self, report: Report) -> FitTask:
        """Return what a fit, or tuning, begins with."""
        curriculum = self.saved.curriculum
        return FitTask(
            generator=self.saved.generator,
            poses=curriculum.poses(),
            options=self.options,
            effort=self.effort,
            kind=curriculum.settings.z_dist,
            rng=torch.Generator().manual_seed(self.seed),
            report=report,
        )

    def _guessed_pose(self, photo: Photo) -> Poses | None:
        """Return the camera that the discriminator predicts, if it has learned to."""
        if self.critic is None:
            return None
        size = self.saved.curriculum.stage_settings(self.saved.last_step).img_size  # trained last
        with torch.no_grad():
            pose = self.critic(photo.at(size).image[None], alpha=1.0).pose
        return None if pose is None else Poses(pose[:, 0], pose[:, 1])


def _within_a_turn(yaw: float, usual: float) -> float:
    """Return the same direction as yaw, at most half a turn from the usual one, radians."""
    return usual + math.remainder(yaw - usual, math.tau)


def _on(photo: Photo, device: torch.device) -> Photo:
    alpha = None if photo.alpha is None else photo.alpha.to(device)
    return Photo(photo.image.to(device), photo.weight.to(device), alpha)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fit:
    """An object that was fitted to N photos, and its views from their cameras.

    Attributes:
        opened: the photos as they were given.
        photos: their pixels on the generator's device.
        shots: the object, seen from the camera of each photo.
        views: renders of shots, each of one picture (1, 3, H, W).
        loss: mean of the photos' losses, before tuning.
        untuned, tuning: the views before tuning, and the changes of weights that shots have, if the
            fit was tuned.
    """

    opened: Sequence[Opened]
    photos: Sequence[Photo]
    shots: Sequence[SceneObject]
    views: Sequence[View]
    loss: float
    untuned: Sequence[View] = ()
    tuning: Tuning | None = None

    def psnrs(self) -> list[float]:
        """Return the PSNR of each photo, weighted, dB."""
        pairs = zip(self.views, self.photos, strict=True)
        return [weighted_psnr(view.images[0], photo) for view, photo in pairs]


def weighted_psnr(shown: Tensor, photo: Photo) -> float:
    """Return the PSNR of (3, H, W) against a photo, weighted by photo.weight, dB."""
    error = ((shown - photo.image) / 2).square().mean(0) * photo.weight
    return float(psnr(error.sum() / photo.weight.sum()))


def flat_psnr(photo: Photo) -> float:
    """Return the PSNR of the best single color, dB: its error is the photo's variance."""
    mean = (photo.image * photo.weight).sum((1, 2)) / photo.weight.sum()
    return weighted_psnr(mean[:, None, None].expand_as(photo.image), photo)


def poor_because(fitter: Fitter, fit: Fit) -> list[str]:
    """Return the reasons for which a fit is poor, a line each; none if it is good."""
    saved, reasons = fitter.saved, [one.fault for one in fit.opened if one.fault]
    gain = min(psnr - flat_psnr(photo) for psnr, photo in zip(fit.psnrs(), fit.photos, strict=True))
    if gain < POOR_GAIN:
        apart = f"{-gain:.1f} dB worse" if gain < 0 else f"only {gain:.1f} dB better"
        reasons.append(f"{apart} than a picture of one color (a good fit is at least "
                       f"{POOR_GAIN:g} dB better); look at fit.png")  # fmt: skip
    distance = _distance_to_learned(saved, fit.shots[0].film)
    if distance > MAX_DISTANCE:
        reasons.append(f"outside of what was learned: {distance:.1f} standard deviations from the "
                       f"mean object (more than {MAX_DISTANCE:g})")  # fmt: skip
    usual = math.tan(math.radians(saved.curriculum.settings.fov) / 2)
    for one, shot in zip(fit.opened, fit.shots, strict=True):
        size = usual / math.tan(math.radians(shot.camera.fov_degrees) / 2)
        if not 1 / MAX_ZOOM <= size <= MAX_ZOOM:
            advice = ": crop the photo otherwise, or --prepare it" if one.square is None else ""
            reasons.append(f"the object has {size:.0%} of its size in training ({1 / MAX_ZOOM:.0%} "
                           f"to {MAX_ZOOM:.0%} are usual){advice}")  # fmt: skip
    trained = familiar_poses(saved.curriculum.poses())
    turn = max(float(angles_to_nearest(trained, shot.camera.pose())) for shot in fit.shots)
    if turn > FAMILIAR:
        found, most = math.degrees(turn), math.degrees(FAMILIAR)
        reasons.append(f"the pose is beyond the training cameras: {found:.0f} degrees from the "
                       f"nearest (more than {most:.0f})")  # fmt: skip
    return reasons


@torch.no_grad()
def _distance_to_learned(saved: SavedGenerator, film: Film) -> float:
    """Return the distance of a film (1, F) from the mean of random ones.

    It is the root mean square over all features, each in standard deviations of random objects.
    """
    rng = torch.Generator().manual_seed(0)
    kind = saved.curriculum.settings.z_dist
    latents = sample_latents(NUM_RANDOM, saved.generator.z_dim, kind=kind, rng=rng)
    spread = saved.generator.mapping(latents)
    squares = [
        ((own - random.mean(0)) / random.std(0).clamp(min=1e-6)).square()
        for own, random in zip(
            (film.frequencies, film.phase_shifts),
            (spread.frequencies, spread.phase_shifts),
            strict=True,
        )
    ]
    return float(torch.cat(squares, dim=1).mean().sqrt())
