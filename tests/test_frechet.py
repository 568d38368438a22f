"""The Fréchet distance against closed forms and other ways to compute it."""

import numpy as np
import pytest
import torch

from metrics.frechet import Gaussian, fitted_gaussian, frechet_distance


def gaussian_of(seed, dim, count):
    rng = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=rng)
    return fitted_gaussian(torch.randn(count, dim, generator=rng) @ mixing + seed)


def test_diagonal_covariances_have_a_closed_form():
    one, other = torch.rand(2, 9, dtype=torch.float64) + 0.1
    means = torch.randn(2, 9, dtype=torch.float64)
    distance = frechet_distance(Gaussian(means[0], one.diag()), Gaussian(means[1], other.diag()))
    closed = (means[0] - means[1]).square().sum() + (one.sqrt() - other.sqrt()).square().sum()
    assert distance == pytest.approx(float(closed), rel=1e-12)


def test_a_shift_counts_squared_and_nothing_else():
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(500, 20, generator=rng)
    distance = frechet_distance(fitted_gaussian(features), fitted_gaussian(features + 0.5))
    assert distance == pytest.approx(20 * 0.25, rel=1e-5)
    assert frechet_distance(*[fitted_gaussian(features)] * 2) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("count", [200, 12])  # more and fewer features than dimensions
def test_equals_the_matrix_square_root(count):
    linalg = pytest.importorskip("scipy.linalg", reason="compares with SciPy, which is not here")
    one, other = gaussian_of(1, 40, count), gaussian_of(2, 40, count)
    product = one.covariance @ other.covariance
    root = linalg.sqrtm((product + 1e-12 * torch.eye(40)).numpy())
    gap = float((one.mean - other.mean).square().sum())
    expected = gap + float(one.covariance.trace() + other.covariance.trace())
    expected -= 2 * np.trace(root).real
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(other, one) == pytest.approx(expected, rel=1e-6)


def test_means_and_covariances_equal_those_of_numpy():
    features = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    gaussian = fitted_gaussian(features)
    np.testing.assert_allclose(gaussian.mean, features.double().numpy().mean(0))
    np.testing.assert_allclose(gaussian.covariance, np.cov(features.double().numpy().T))
    with pytest.raises(ValueError, match="at least 2"):
        fitted_gaussian(features[:1])
