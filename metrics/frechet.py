"""Fréchet distance between two sets of features, the mathematics of FID.

Legend: N features of D numbers each.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Gaussian(NamedTuple):
    """Mean (D,) and covariance (D, D) of a set of features, float64."""

    mean: Tensor
    covariance: Tensor


def fitted_gaussian(features: Tensor) -> Gaussian:
    """Return mean and unbiased covariance of features (N, D) in float64; ValueError if N < 2."""
    if len(features) < 2:
        raise ValueError(f"a covariance needs at least 2 features, got {len(features)}")
    values = features.double()
    mean = values.mean(0)
    centered = values - mean
    return Gaussian(mean, centered.T @ centered / (len(values) - 1))


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """Return the squared Wasserstein-2 distance of two Gaussians, no unit.

    |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2)). The eigenvalues of C1 C2 are those of the
    symmetric, non-negative C1^(1/2) C2 C1^(1/2). So the last trace needs no square root of an
    unsymmetric matrix, which is slow and, with fewer features than D, unstable; pytorch-fid
    computes it by a call that current SciPy no longer has.

    Source: Heusel et al. 2017, section 3 (FID); Dowson and Landau 1982.
    """
    values, vectors = torch.linalg.eigh(one.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = root @ other.covariance @ root
    common = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    gap = (one.mean - other.mean).square().sum()
    distance = gap + one.covariance.trace() + other.covariance.trace() - 2 * common
    return max(0.0, float(distance))  # only rounding makes it negative
