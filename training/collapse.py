"""Detect signs of a collapsed run in the means of the loss terms and in small renders.

The means are those that the log reads anyway, so no step waits for its device.

Legend: K objects, R rays, S samples per ray.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, NamedTuple

import torch

from config.stage import Stage
from generators.cameras import PoseDistribution, Poses, cast_rays
from generators.generators import ImplicitGenerator3d
from generators.volumetric_rendering import (
    RenderOptions,
    activated_density,
    depth_range,
    query,
    stratified_depths,
)
from siren.film import Film
from training.losses import LOSSES

Sign = Literal["loss", "blind", "heads", "empty", "full", "alike", "cameras"]
Axis = Literal["pitch", "yaw"]

PROBE_SIZE = 16  # pixels per side
NOTHING, MATTER = 1e-3, 0.5  # opacity of a sample below which it is air, above which it is solid
ALMOST_ALL = 0.999  # share of the samples
ALIKE = 0.5 / 255  # deviation between objects, of colors in [0, 1]: half a step of a png
LOSS_AT_ZERO = 1e-2  # sum of the discriminator's terms
GUESSING = 0.998  # share of the loss of a discriminator that only guesses
DIVERGED = 3.0  # times the error of heads that answer 0 to everything
PATIENCE: dict[Sign, int] = {
    "loss": 500,
    "blind": 1000,
    "heads": 500,
    "empty": 1000,
    "full": 500,
    "alike": 1000,
    "cameras": 500,
}
REPEAT_STEPS = 2000  # between two lines about the same sign

_TEXTS: dict[Sign, str] = {
    "loss": "the discriminator's loss has been near zero ({value:.1e}) for {steps} steps: the "
    "generator learns little from it; raise r1_lambda (and r2_lambda) or lower disc_lr, or train "
    "with more pictures: few are learned by heart",
    "blind": "the discriminator has only guessed for {steps} steps (its loss is {value:.2%} of "
    "chance): the generator learns little from it; lower r1_lambda (and r2_lambda) or raise "
    "disc_lr",
    "heads": "the discriminator's guesses of latent and pose have been {value:.1f} times worse "
    "than answering zero for {steps} steps; lower disc_lr or pos_lambda",
    "empty": "space has been empty for {steps} steps ({value:.1%} of the samples have no density); "
    "lower gen_lr or, without surface_width, raise density_scale",
    "full": "space has been full for {steps} steps ({value:.1%} of the samples are opaque); lower "
    "gen_lr or, without surface_width, density_scale",
    "alike": "all objects have looked alike for {steps} steps (they differ by {value:.1e} of the "
    "color range); lower gen_lr, or raise topk_v",
    "cameras": "{value}, for {steps} steps now; cameras that fit make better shapes",
}


class Probe(NamedTuple):
    """Shares of empty and of solid samples, and the deviation of colors between objects."""

    empty: float
    full: float
    deviation: float


@torch.no_grad()
def probe(
    generator: ImplicitGenerator3d, film: Film, center: tuple[float, float], options: RenderOptions
) -> Probe:
    """Measure K objects from the camera at center (pitch, yaw): filled space and differences.

    A sample's opacity is that of its share of the ray. Rays that miss a bounded scene do not count.
    """
    options = replace(options, image_size=PROBE_SIZE)
    frequencies = film.frequencies
    poses = Poses(*(frequencies.new_full((len(frequencies),), angle) for angle in center))
    rays = cast_rays(poses, PROBE_SIZE, options.fov_degrees)
    depths = stratified_depths(rays, options, rng=None)
    samples = query(generator.field(film), rays, depths, options)  # (K, R, S, 4)
    near, far = depth_range(rays, options)
    spacing = ((far - near) / options.num_steps)[..., None]
    opacities = -torch.expm1(-activated_density(samples, options, rng=None) * spacing)
    opacities = opacities[far > near]
    images = generator.render(film, poses, options).images
    return Probe(
        empty=float((opacities < NOTHING).float().mean()),
        full=float((opacities > MATTER).float().mean()),
        deviation=float(images.std(dim=0).mean()) / 2,  # images span 2
    )


class CollapseWatch:
    """Warns of signs that last; remembers since when each has been seen."""

    def __init__(self) -> None:
        self._since: dict[tuple[Sign, str], int] = {}
        self._told: dict[tuple[Sign, str], int] = {}

    def losses(self, step: int, means: Mapping[str, float], stage: Stage) -> list[str]:
        """Return warnings from the means of the loss terms over the steps before step."""
        lines = []
        if chance := LOSSES[stage.gan_loss].chance:
            critic = sum(means[name] for name in chance)
            share = critic / sum(chance.values())
            lines += self._note("loss", step, critic, is_seen=critic < LOSS_AT_ZERO)
            is_guessing = GUESSING < share < 2 - GUESSING  # far above, it is wrong, and learns
            lines += self._note("blind", step, share, is_seen=is_guessing)
        zero_answer = stage.z_lambda + stage.pos_lambda * mean_square(stage.poses)
        if zero_answer > 0:
            ratio = means["d_identity"] / zero_answer
            lines += self._note("heads", step, ratio, is_seen=ratio > DIVERGED)
        return lines

    def probed(self, step: int, probe: Probe) -> list[str]:
        """Return warnings from a probe after step."""
        return [
            *self._note("empty", step, probe.empty, is_seen=probe.empty >= ALMOST_ALL),
            *self._note("full", step, probe.full, is_seen=probe.full >= ALMOST_ALL),
            *self._note("alike", step, probe.deviation, is_seen=probe.deviation < ALIKE),
        ]

    def compared(self, step: int, differences: Mapping[str, str | None]) -> list[str]:
        """Return warnings from a comparison of the photos' cameras with the curriculum's.

        A text lasts while its key has one: guesses that waver around the truth differ both ways.
        """
        return [
            line
            for key, text in differences.items()
            for line in self._note("cameras", step, text or "", is_seen=text is not None, key=key)
        ]

    def _note(
        self, sign: Sign, step: int, value: float | str, *, is_seen: bool, key: str = ""
    ) -> list[str]:
        if not is_seen:
            self._since.pop((sign, key), None)
            return []
        steps = step - self._since.setdefault((sign, key), step)
        told = self._told.get((sign, key))
        if steps < PATIENCE[sign] or (told is not None and step - told < REPEAT_STEPS):
            return []
        self._told[sign, key] = step
        return [_TEXTS[sign].format(value=value, steps=steps)]


def mean_square(poses: PoseDistribution) -> float:
    """Estimate the mean of squared pitch and yaw, the error of a head that always answers 0."""
    pitch, yaw = poses.center()
    spreads = poses.pitch_spread**2 + poses.yaw_spread**2
    return (pitch**2 + yaw**2 + spreads) / 2
