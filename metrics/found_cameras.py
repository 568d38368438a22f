"""Turn means and spreads that a search found into the distribution of training cameras."""

import math
from dataclasses import replace
from typing import NamedTuple

import torch

from generators.cameras import DEVIATIONS, PoseDistribution, PoseKind
from metrics.pose_response import LEAST_SHARE

MOST_CHANGE = 1.5  # factor of one step of learned spreads
FLAT = (0.5, 2.0)  # flatness that is taken for a uniform distribution; more is noise
LEAST_EXPLAINED = 0.2  # of the variance of the guesses on photos


class Found(NamedTuple):
    """Mean and standard deviation of an angle, radians, and its form.

    A spread that goes all around the circle is infinite. flatness: 0 if guesses are spread like
    those of normal angles, 1 like those of uniform ones. share: R^2 of the guesses on renders;
    explained: share of the variance of the guesses on photos that the spread explains; the rest is
    noise. An angle is clear, that is found, if both are large enough.
    """

    mean: float
    spread: float
    flatness: float
    share: float
    explained: float

    @property
    def is_clear(self) -> bool:
        """Return whether the angle was found."""
        return self.share >= LEAST_SHARE and self.explained >= LEAST_EXPLAINED


def _kind(pitch: Found, yaw: Found) -> PoseKind:
    """Return the kind of distribution, that of yaw where it is clear: it varies most."""
    if math.isinf(yaw.spread):
        return "spherical_uniform"
    flatness = (yaw if yaw.is_clear else pitch).flatness
    return "uniform" if FLAT[0] < flatness < FLAT[1] else "gaussian"


def distribution(pitch: Found, yaw: Found, before: PoseDistribution) -> PoseDistribution:
    """Return the distribution that was found; angles that are not clear stay as before."""
    moments = [
        (each.mean, each.spread) if each.is_clear else own
        for each, own in zip((pitch, yaw), before.moments(), strict=True)
    ]
    kind = _kind(pitch, yaw)
    if kind != "spherical_uniform":
        return with_moments(kind, *moments)
    middle, half = _band(*moments[0])
    return replace(before, kind=kind, pitch_mean=middle, pitch_spread=half, yaw_spread=math.pi)


def with_moments(
    kind: PoseKind, pitch: tuple[float, float], yaw: tuple[float, float]
) -> PoseDistribution:
    """Return the distribution of a kind that has these means and standard deviations."""
    scale = DEVIATIONS[kind]
    return PoseDistribution(
        kind=kind,
        yaw_mean=yaw[0],
        yaw_spread=yaw[1] / scale,
        pitch_mean=pitch[0],
        pitch_spread=pitch[1] / scale,
    )


def step_towards(found: tuple[Found, Found], before: PoseDistribution) -> PoseDistribution:
    """Return what was found, of the kind of before, with spreads changed by at most MOST_CHANGE.

    Angles that are not clear stay, as do spreads of 0. So does the mean yaw: turning cameras and
    objects alike changes no image, so that it would wander.
    """
    pitch, yaw = before.moments()
    mean = found[0].mean if found[0].is_clear else pitch[0]
    spreads = []
    for each, (_, spread) in zip(found, (pitch, yaw), strict=True):
        is_known = each.is_clear and math.isfinite(each.spread) and spread > 0
        factor = each.spread / spread if is_known else 1.0
        spreads.append(spread * min(MOST_CHANGE, max(1 / MOST_CHANGE, factor)))
    return with_moments(before.kind, (mean, spreads[0]), (yaw[0], spreads[1]))


def _band(mean: float, spread: float) -> tuple[float, float]:
    """Return pitch_mean and pitch_spread of the band of the sphere with these moments of pitch."""
    ends = torch.linspace(0, 1, 101, dtype=torch.float64)
    low, high = torch.cartesian_prod(ends, ends).T
    shares = torch.linspace(0, 1, 101, dtype=torch.float64)
    angles = torch.arccos(1 - 2 * (low[:, None] + (high - low)[:, None] * shares))
    errors = (angles.mean(1) - mean) ** 2 + (angles.std(1, correction=0) - spread) ** 2
    best = errors.masked_fill(high <= low, math.inf).argmin()
    middle, half = (low + high) / 2, (high - low) / 2
    return math.pi * float(middle[best]), math.pi * float(half[best])
