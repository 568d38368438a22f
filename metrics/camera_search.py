"""Find the cameras of photos by matching them with renders of a generator's objects.

The renders show a few objects from every camera of a grid of pitches and yaws. A photo's guess is
the mean of the posterior over the grid. Guesses of other renders, whose cameras are known, measure
how much guesses are blurred and drawn to the middle, and this is undone for the photos.

Legend: N images, K objects, G cameras of the grid, D features, H x W pixels.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from generators.cameras import PoseDistribution, Poses
from generators.generators import ImplicitGenerator3d
from generators.sampling import LatentKind, sample_latents
from generators.volumetric_rendering import RenderOptions
from metrics.found_cameras import Found
from metrics.pose_response import LEAST_SHARE, fit_response
from siren.film import Film

REACH = 2.5  # standard deviations of the curriculum that the grid covers on each side, at least
LEAST_PITCH_REACH, LEAST_YAW_REACH = 0.5, 1.0  # radians
POLE_DISTANCE = 0.05  # radians between the grid and the poles
ALL_AROUND = 2.2  # radians of reach in yaw from which the grid is a whole circle
PITCHES, YAWS = 9, 18  # of the grid
ROUNDS = 6  # of measuring the response where the photos seem to be
LEAST_WIDTH = 0.2  # of these weights, in deviations of the known angles
LEAST_FORM = 0.25  # of the same, the narrowest distribution whose form is told
FLAT_CIRCLE = 0.3  # length of the mean direction below which yaws are all around
PSI = 0.7  # truncation of the objects
MEAN_LATENTS = 2000  # latents whose mean is the center of truncation
POINTS_PER_CHUNK = 2**18  # bounds the memory; the result does not depend on it
NUM_PHOTOS = 2000  # at most


class Effort(NamedTuple):
    """Numbers of objects seen from every camera of the grid, and of renders of other objects."""

    objects: int
    others: int

    @property
    def renders(self) -> int:
        """Return the number of all renders."""
        return self.objects * PITCHES * YAWS + self.others


WHOLE, QUICK = Effort(40, 2000), Effort(8, 600)


class Grid(NamedTuple):
    """Cameras (G,) and whether their yaws go all around."""

    poses: Poses
    is_circle: bool


def grid_of(poses: PoseDistribution) -> Grid:
    """Return the cameras in which photos are searched: wider than the curriculum's."""
    (pitch, pitch_spread), (yaw, yaw_spread) = poses.moments()
    reach = max(LEAST_PITCH_REACH, REACH * pitch_spread)
    low, high = max(POLE_DISTANCE, pitch - reach), min(math.pi - POLE_DISTANCE, pitch + reach)
    pitches = torch.linspace(low, high, PITCHES)
    reach = max(LEAST_YAW_REACH, REACH * yaw_spread)
    is_circle = reach >= ALL_AROUND
    yaws = torch.linspace(yaw - reach, yaw + reach, YAWS)
    if is_circle:
        yaws = yaw + math.pi * (2 * torch.arange(YAWS) / YAWS - 1)
    pairs = torch.cartesian_prod(pitches, yaws)
    return Grid(Poses(pitch=pairs[:, 0], yaw=pairs[:, 1]), is_circle)


def spread_evenly(grid: Grid, count: int, *, rng: torch.Generator) -> Poses:
    """Draw cameras (count,) evenly from the range of the grid."""
    drawn = []
    for angles in grid.poses:
        low, high = angles.min(), angles.max()
        drawn.append(low + (high - low) * torch.rand(count, generator=rng))
    if grid.is_circle:
        drawn[1] = 2 * math.pi * torch.rand(count, generator=rng)
    return Poses(*drawn)


def outlines(images: Tensor) -> Tensor:
    """Return differences of neighboring pixels (N, 2, H - 1, W - 1) of images (N, 3, H, W).

    They show silhouettes and features, not the colors of skin, paint or light. Their deviation is 1
    in every image.
    """
    gray = images.double().mean(1)
    corner = gray[:, 1:, 1:]
    steps = torch.stack([corner - gray[:, 1:, :-1], corner - gray[:, :-1, 1:]], dim=1)
    return steps / (steps.std((1, 2, 3), keepdim=True) + 1e-3)


class Matcher:
    """Posterior over the cameras of a grid, p(camera | image) for a flat prior.

    p(image | camera) is normal around the mean over the objects seen from there. Its covariance is
    that of the objects, the same for all cameras, plus the noise floor: the mean squared distance
    of a photo from the nearest mean, in every direction.

    Args:
        renders: features (K, G, D) of K objects from each camera.
        photos: features (N, D).
    """

    def __init__(self, renders: Tensor, photos: Tensor) -> None:
        means = renders.mean(0)
        own = (renders - means).flatten(0, 1)
        covariance = own.T @ own / max(1, len(own) - len(means))
        floor = torch.cdist(photos, means).amin(1).square().mean() / means.shape[1]
        covariance.diagonal().add_(floor + 1e-9)
        self.root = torch.linalg.cholesky(covariance)
        self.means = self._whitened(means)

    def _whitened(self, features: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.root, features.T, upper=False).T

    def posterior(self, features: Tensor) -> Tensor:
        """Return probabilities (N, G) of the cameras for features (N, D)."""
        return torch.softmax(-0.5 * torch.cdist(self._whitened(features), self.means) ** 2, dim=1)


class Guesses(NamedTuple):
    """Guessed angles: from whole images (N,), and from their upper and lower halves (2, N)."""

    whole: Tensor
    halves: Tensor


def guess(grid: Grid, renders: Tensor, photos: Tensor, others: Tensor) -> list[list[Guesses]]:
    """Return guesses for photos (N, ...) and for others, each by axis.

    renders (K, G, ...), photos and others hold images' outlines (2, H - 1, W - 1).
    """
    half = photos.shape[-2] // 2
    parts = []
    for rows in (slice(None), slice(None, half), slice(half, None)):
        own, *images = (x[..., rows, :].flatten(-3) for x in (renders, photos, others))
        matcher = Matcher(own, images[0])
        parts.append([_angles(grid, matcher.posterior(features)) for features in images])
    return [
        [Guesses(whole, torch.stack(halves)) for whole, *halves in zip(*of_one, strict=True)]
        for of_one in zip(*parts, strict=True)
    ]


def _angles(grid: Grid, posterior: Tensor) -> tuple[Tensor, Tensor]:
    """Return the posterior's mean pitch and yaw, each (N,)."""
    pitch, yaw = (angles.double() for angles in grid.poses)
    if not grid.is_circle:
        return posterior @ pitch, posterior @ yaw
    return posterior @ pitch, torch.atan2(posterior @ yaw.sin(), posterior @ yaw.cos())


def near(angles: Tensor, found: Found) -> Tensor:
    """Return weights (M,) of known angles (M,) that follow what was found; all 1 if that is NaN.

    They are those of a normal distribution, which is no narrower than LEAST_WIDTH.
    """
    if math.isnan(found.spread):
        return torch.ones_like(angles)
    width = max(found.spread, LEAST_WIDTH * float(angles.std()))
    return torch.exp(-((angles - found.mean) ** 2) / (2 * width**2))


def find_angle(
    photos: Guesses, others: Guesses, angles: Tensor, weights: Tensor, beside: Tensor
) -> Found:
    """Return the distribution of an angle on the photos.

    others are guesses of renders with known angles (M,), float64. Their response, guess =
    slope * angle + offset + noise, is measured where the photos seem to be: with weights (M,) of
    the angle times those of the other angle, beside (M,). The errors of both halves of a photo are
    nearly independent, whatever makes photos harder than renders, so that

        variance = (cov(upper, lower) - cov(their noise)) / (slope of upper * slope of lower)
    """
    share = fit_response(others.whole, angles).share
    unclear = Found(math.nan, math.nan, math.nan, share, 0.0)
    total = float(photos.whole.var(correction=0))
    if share < LEAST_SHARE or total <= 0:
        return unclear
    weights = weights * beside
    whole = fit_response(others.whole, angles, weights)
    ends = [fit_response(part, angles, weights) for part in others.halves]
    if min(whole.slope, *(end.slope for end in ends)) <= 0:
        return unclear
    mean = (float(photos.whole.mean()) - whole.offset) / whole.slope
    left = [g - e.slope * angles - e.offset for g, e in zip(others.halves, ends, strict=True)]
    noise = float((weights * left[0] * left[1]).sum() / weights.sum())
    shared = float(torch.cov(photos.halves, correction=0)[0, 1]) - noise
    spread = math.sqrt(max(0.0, shared / (ends[0].slope * ends[1].slope)))
    explained = (whole.slope * spread) ** 2 / total
    if spread < LEAST_FORM * float(angles.std()):
        return Found(mean, spread, 0.0, share, explained)
    inside = beside * ((angles - mean).abs() <= math.sqrt(3) * spread)
    normal = _tails(others.halves, weights)
    flatness = (_tails(photos.halves) - normal) / (_tails(others.halves, inside) - normal)
    return Found(mean, spread, flatness, share, explained)


def find_angles(
    photos: list[Guesses], others: list[Guesses], known: Poses, *, is_circle: bool
) -> tuple[Found, Found]:
    """Return pitch and yaw of the photos, from renders with known cameras, in ROUNDS rounds.

    Each angle is found where the other seems to be, because one is guessed less well where the
    other is far from the middle.
    """
    pitches, yaws = known.pitch.double(), known.yaw.double()
    of_pitch, of_yaw = torch.ones_like(pitches), torch.ones_like(yaws)
    yaw = find_direction(photos[1], others[1], yaws) if is_circle else None
    for _ in range(ROUNDS):
        pitch = find_angle(photos[0], others[0], pitches, of_pitch, of_yaw)
        of_pitch = near(pitches, pitch)
        if not is_circle:
            yaw = find_angle(photos[1], others[1], yaws, of_yaw, of_pitch)
            of_yaw = near(yaws, yaw)
    assert yaw is not None  # for the type checker
    return pitch, yaw


def _tails(halves: Tensor, weights: Tensor | None = None) -> float:
    """Return the excess kurtosis that two halves (2, N) share: 0 if both follow a normal one.

    cov(u^2, l^2) / cov(u, l)^2 - 2, to which independent errors add nothing.
    """
    weights = torch.ones_like(halves[0]) if weights is None else weights
    shares = weights / weights.sum()
    upper, lower = halves - (shares * halves).sum(1, keepdim=True)
    both = (shares * upper * lower).sum()
    squares = (shares * upper**2 * lower**2).sum()
    squares = squares - (shares * upper**2).sum() * (shares * lower**2).sum()
    return float(squares / both**2) - 2


def find_direction(photos: Guesses, others: Guesses, angles: Tensor) -> Found:
    """Return the distribution of a yaw that may go all around, as find_angle does.

    Guesses turn the mean direction's length r by the blur of the guesses, which renders measure as
    the length of the mean of exp(i (guess - angle)). The spread is sqrt(-2 ln r), that of a wrapped
    normal distribution.
    """
    errors = torch.polar(torch.ones_like(angles).double(), (others.whole - angles).double()).mean()
    seen = torch.polar(torch.ones_like(photos.whole), photos.whole).mean()
    blur = float(errors.abs())
    length = min(1.0, float(seen.abs()) / max(blur, 1e-9))
    spread = math.inf if length < FLAT_CIRCLE else math.sqrt(-2 * math.log(length))
    mean = float((seen / errors).angle())
    return Found(mean, spread, float(math.isinf(spread)), blur**2, 1.0)


@torch.no_grad()
def search(
    generator: ImplicitGenerator3d,
    photos: Tensor,
    poses: PoseDistribution,
    options: RenderOptions,
    latent_kind: LatentKind,
    *,
    rng: torch.Generator,
    effort: Effort = WHOLE,
    report: Callable[[int], object] = lambda count: None,
) -> tuple[Found, Found]:
    """Return pitch and yaw of the cameras of photos (N, 3, H, W) in [-1, 1].

    The generator was trained with poses, of which the search covers more. photos have
    options.image_size pixels; options are those of renders without randomness. rng is a CPU stream.
    report is called with the number of renders since the last call.
    """
    grid = grid_of(poses)
    objects, others = effort
    size = (MEAN_LATENTS + objects + others, generator.z_dim)
    latents = sample_latents(*size, kind=latent_kind, rng=rng)
    middle = generator.average_film(latents[:MEAN_LATENTS])
    films = middle.lerp(generator.mapping(latents[MEAN_LATENTS:]), PSI)
    known = spread_evenly(grid, others, rng=rng)

    def rendered(film: Film, poses: Poses) -> Tensor:
        chunk = generator.points_per_chunk or POINTS_PER_CHUNK
        images = generator.render(film, poses, options, points_per_chunk=chunk).images
        report(len(images))
        return outlines(images.cpu())

    count = len(grid.poses.yaw)
    renders = [rendered(films[torch.full((count,), k)], grid.poses) for k in range(objects)]
    ahead = [
        rendered(films[objects + part], Poses(*(angles[part] for angles in known)))
        for part in torch.arange(others).split(count)
    ]
    on_photos, on_others = guess(
        grid, torch.stack(renders), outlines(photos.cpu()), torch.cat(ahead)
    )
    return find_angles(on_photos, on_others, known, is_circle=grid.is_circle)
