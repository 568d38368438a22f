"""Estimate the cameras of photos from guesses whose errors are measured on generated images.

A guess of an angle is blurred and drawn towards the mean. On generated images, whose angles are
known, guess = slope * angle + offset + noise is fitted; on photos this is undone.

Legend: N images.
"""

import math
from typing import NamedTuple

import torch
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


def fit_response(guesses: Tensor, angles: Tensor, weights: Tensor | None = None) -> Response:
    """Fit guesses (N,) to true angles (N,) by least squares; equal angles have share 0.

    weights: (N,), positive; None counts all alike.
    """
    guesses, angles = guesses.double(), angles.double()
    shares = torch.ones_like(angles) if weights is None else weights.double()
    shares = shares / shares.sum()

    def mean(values: Tensor) -> Tensor:
        return (shares * values).sum()

    middle, center = mean(guesses), mean(angles)
    total = float(mean((guesses - middle) ** 2))
    spread = float(mean((angles - center) ** 2))
    if spread <= 0 or not 0 < total < math.inf:
        return Response(0.0, 0.0, 0.0, 0.0)
    slope = float(mean((guesses - middle) * (angles - center))) / spread
    noise = max(0.0, total - slope**2 * spread)
    return Response(slope, float(middle) - slope * float(center), noise, 1 - noise / total)


def true_moments(guesses: Tensor, response: Response) -> tuple[float, float]:
    """Return mean and standard deviation of the true angles behind guesses (N,).

    mean = (mean(guesses) - offset) / slope, variance = (var(guesses) - noise) / slope^2, or 0 if
    the guesses vary less than their noise. The response must be clear.
    """
    guesses = guesses.double()
    variance = float(guesses.var(correction=0)) - response.noise
    mean = (float(guesses.mean()) - response.offset) / response.slope
    return mean, math.sqrt(max(0.0, variance)) / abs(response.slope)
