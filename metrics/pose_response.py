"""Estimate the cameras of photos from guesses whose errors are measured on generated images.

A guess of an angle is blurred and drawn towards the mean. On generated images, whose angles are
known, guess = slope * angle + offset + noise is fitted; on photos this is undone.

Legend: N images.
"""

import math
from typing import NamedTuple

from torch import Tensor

LEAST_SHARE = 0.5  # of the guesses' variance; below it they say too little


class Response(NamedTuple):
    """Guesses of one angle as a function of the true one.

    noise: variance of what is left of the guesses. share: R^2, explained by the true angle.
    """

    slope: float
    offset: float
    noise: float
    share: float

    @property
    def is_clear(self) -> bool:
        """Return whether the guesses say enough of the angle."""
        return self.share >= LEAST_SHARE


def fit_response(guesses: Tensor, angles: Tensor) -> Response:
    """Fit guesses (N,) to true angles (N,) by least squares; equal angles have share 0."""
    guesses, angles = guesses.double(), angles.double()
    spread = float(angles.var(correction=0))
    total = float(guesses.var(correction=0))
    if spread <= 0 or not 0 < total < math.inf:
        return Response(0.0, 0.0, 0.0, 0.0)
    both = (guesses - guesses.mean()) * (angles - angles.mean())
    slope = float(both.mean()) / spread
    noise = max(0.0, total - slope**2 * spread)
    offset = float(guesses.mean()) - slope * float(angles.mean())
    return Response(slope, offset, noise, 1 - noise / total)


def true_moments(guesses: Tensor, response: Response) -> tuple[float, float]:
    """Return mean and standard deviation of the true angles behind guesses (N,).

    mean = (mean(guesses) - offset) / slope, variance = (var(guesses) - noise) / slope^2, or 0 if
    the guesses vary less than their noise. The response must be clear.
    """
    guesses = guesses.double()
    variance = float(guesses.var(correction=0)) - response.noise
    mean = (float(guesses.mean()) - response.offset) / response.slope
    return mean, math.sqrt(max(0.0, variance)) / abs(response.slope)
