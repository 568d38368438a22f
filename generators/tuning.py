"""Tune a generator's field to a photo whose object and camera were found, for that object alone.

The found conditioning and camera stay. Changes of low rank are added to the weights of the FiLM
layers, so that the render shows what no conditioning can. Meanwhile two kinds of renders are kept
as they were: the same object from other sides, with its depths, and objects near to it. Where
another side shows a surface that the photo shows, it gets the photo's colors.

Legend: H hidden width, r rank, W numbers of all weights of FiLM layers.
Source: pivotal tuning (Roich et al. 2021); changes of low rank as in LoRA (Hu et al. 2021).
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from generators.cameras import Poses, cast_rays, project, sample_poses
from generators.generators import ImplicitGenerator3d, View, as_view
from generators.inversion import FitTask, Guess, Photo, photo_losses, render_guess
from generators.sampling import sample_latents
from generators.volumetric_rendering import RenderOptions, render_rays
from siren.film import Film, concatenated
from siren.siren import FilmSiren

RANK, MAX_RANK = 32, 256
RATE = 5e-4  # Adam's learning rate of factors
# Weights of the renders to be kept, against the photo's loss: of their opacities and depths, of
# their colors, and of the photo's colors where they show the same surface.
KEEPING_SHAPE, KEEPING, KEEPING_SEEN = 3.0, 0.1, 0.2
NEAR = 0.6  # radians of yaw from the photo's camera, of one of the views to be kept
NEIGHBORS = 0.5  # share of the way to other objects at which they are kept
SMALLEST = 16  # pixels per side of the renders to be kept: half of the photo's, or that
FINER = 2  # times the samples per ray of training; with fewer, weights fit their noise
SAME_DEPTH = 0.02  # of the depth range: difference within which two points are one surface


class Tuning(NamedTuple):
    """Changes of the FiLM layers' weights as products of two factors each.

    factors: (N,) numbers. For each layer of FilmSiren.film_layers(), the left factor (H, r), then
    the right one (r, in); r is rank, or the smaller side of the weight.
    """

    rank: int
    factors: Tensor


def _shapes(siren: FilmSiren, rank: int) -> list[tuple[int, int]]:
    """Return the shapes of all factors."""
    shapes = []
    for layer in siren.film_layers():
        inner = min(rank, *layer.weight.shape)
        shapes += [(layer.out_features, inner), (inner, layer.in_features)]
    return shapes


def num_factors(siren: FilmSiren, rank: int) -> int:
    """Return N, the count of numbers of a tuning of that rank."""
    return sum(height * width for height, width in _shapes(siren, rank))


def weight_changes(siren: FilmSiren, tuning: Tuning) -> Tensor:
    """Return the changes (1, W) of a tuning, as Film takes them; differentiable."""
    shapes = _shapes(siren, tuning.rank)
    parts = tuning.factors.float().split([height * width for height, width in shapes])
    factors = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
    products = [left @ right for left, right in zip(factors[::2], factors[1::2], strict=True)]
    return torch.cat([product.flatten() for product in products])[None]


def tuned_film(siren: FilmSiren, film: Film, tuning: Tuning) -> Film:
    """Return the conditioning (1, F) of an object with a tuning's changes of weights."""
    return replace(film, weight_changes=weight_changes(siren, tuning))


def _first(siren: FilmSiren, rng: torch.Generator) -> Tensor:
    """Draw factors whose products are zero: right ones are random, left ones zero."""
    parts = []
    for index, (height, width) in enumerate(_shapes(siren, RANK)):
        scale = math.sqrt(1 / width) if index % 2 else 0.0
        parts.append(scale * torch.randn(height * width, generator=rng))
    return torch.cat(parts).to(next(siren.parameters()).device)


def _view(
    generator: ImplicitGenerator3d, guess: Guess, options: RenderOptions, changes: Tensor | None
) -> View:
    """Render B guesses with the same changes of weights (1, W), or none."""
    film = guess.film
    if changes is not None:
        film = replace(film, weight_changes=changes.expand(len(film), -1))
    size = options.image_size
    rays = cast_rays(guess.poses, size, guess.fov_degrees)
    return as_view(render_rays(generator.field(film), rays, options, rng=None), (size, size))


@torch.no_grad()
def _to_keep(task: FitTask, found: Guess) -> Guess:
    """Draw what must not change: two views of the object, one of a neighbor of it."""
    generator, rng, device = task.generator, task.rng, found.fov_degrees.device
    z = sample_latents(1, generator.z_dim, kind=task.kind, rng=rng)
    share = NEIGHBORS * float(torch.rand(1, generator=rng))
    neighbor = found.film.lerp(generator.mapping(z), share)
    aside = NEAR * (2 * torch.rand(1, generator=rng) - 1).to(device)
    pitch, yaw = (angle.to(device) for angle in sample_poses(task.poses, 2, rng=rng))
    return Guess(
        concatenated([found.film, found.film, neighbor]),
        Poses(torch.cat([found.poses.pitch, pitch]), torch.cat([found.poses.yaw + aside, yaw])),
        found.fov_degrees.expand(3),
    )


def seen_in(
    front: View, found: Guess, there: View, guess: Guess, options: RenderOptions
) -> tuple[Tensor, Tensor]:
    """Return which pixels (B, H, W) of views show a surface that the photo shows, and where.

    front is the object from the photo's camera, found; there are views of it from guess's cameras.
    Places (B, H, W, 2) in the photo are in [-1, 1], as grid_sample takes them.
    """
    size, fov = there.depths.shape[-1], float(found.fov_degrees)
    rays = cast_rays(guess.poses, size, guess.fov_degrees)
    points = rays.origins + rays.directions * there.depths.flatten(1)[..., None]
    camera = Poses(*(angle.expand(len(points)) for angle in found.poses))
    places, distances = project(points, camera, fov)
    depths = F.grid_sample(
        front.depths[None].expand(len(points), -1, -1, -1),
        places[:, None],
        padding_mode="border",
        align_corners=True,
    )[:, 0, 0]
    is_same = (depths - distances).abs() < SAME_DEPTH * (options.far - options.near)
    is_inside = (places.abs() <= 1).all(-1)
    is_seen = (is_same & is_inside).unflatten(1, (size, size)) & (there.opacities > 0.5)
    return is_seen, places.unflatten(1, (size, size))


@torch.no_grad()
def _wanted(
    fronts: Sequence[View],
    each: Sequence[Guess],
    photos: Sequence[Photo],
    old: View,
    kept: Guess,
    options: RenderOptions,
) -> tuple[Tensor, Tensor]:
    """Return colors (B, 3, H, W) that the kept views shall have, and their weights (B, H, W).

    They are those of the photos where these show the surface, else the old ones. The last view is
    of another object.
    """
    colors, weight = old.images.clone(), torch.full_like(old.opacities, KEEPING)
    for front, one, photo in zip(fronts, each, photos, strict=True):
        is_seen, places = seen_in(front, one, old, kept, options)
        taken = torch.cat([photo.image, photo.weight[None]])[None].expand(len(places), -1, -1, -1)
        taken = F.grid_sample(taken, places, padding_mode="border", align_corners=True)
        is_seen &= taken[:, 3] > 0.5
        is_seen[-1] = False
        colors = torch.where(is_seen[:, None], taken[:, :3], colors)
        weight = torch.where(is_seen, KEEPING_SEEN, weight)
    return colors, weight


def _keeping_loss(
    new: View, old: View, wanted: tuple[Tensor, Tensor], options: RenderOptions
) -> Tensor:
    """Return the weighted sum over views of squared errors of color, opacity and depth.

    wanted: colors and their weights, as _wanted returns them.
    """
    colors = (new.images - wanted[0]).square().mean(1) * wanted[1]
    opacities = (new.opacities - old.opacities).square()
    depths = ((new.depths - old.depths) / (options.far - options.near)).square()
    shape = opacities + depths * (old.opacities > 0.5)
    return (colors + KEEPING_SHAPE * shape).mean((1, 2)).sum()


def tune(task: FitTask, found: Guess, photos: Sequence[Photo], *, steps: int) -> Tuning:
    """Tune the generator's field to photos; return the changes, rounded to float16.

    found: the object and the cameras of the N photos of it, (N,), which stay; the photos are of one
    size. The pass "tune" reports the mean of the losses.
    """
    generator, options, rng = task.generator, task.options, task.rng
    factors = _first(generator.siren, rng).requires_grad_()
    optimizer = torch.optim.Adam([factors], RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=0.0)
    each = [found[index : index + 1] for index in range(len(photos))]
    size = photos[0].image.shape[-1]
    options = replace(options, image_size=size, num_steps=FINER * options.num_steps)
    small = replace(options, image_size=max(size // 2, min(size, SMALLEST)))
    halves = [photo.at(small.image_size) for photo in photos]
    with torch.no_grad():
        fronts = [_view(generator, one, options, None) for one in each]
    for step in range(steps):
        changes = weight_changes(generator.siren, Tuning(RANK, factors))
        losses = []
        for one, photo in zip(each, photos, strict=True):
            tuned = replace(one, film=replace(one.film, weight_changes=changes))
            losses.append(photo_losses(*render_guess(generator, tuned, options, size), photo))
        loss = torch.cat(losses).mean()
        kept = _to_keep(task, each[0])
        with torch.no_grad():
            old = _view(generator, kept, small, None)
        wanted = _wanted(fronts, each, halves, old, kept, options)
        new = _view(generator, kept, small, changes)
        total = loss + _keeping_loss(new, old, wanted, options)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        schedule.step()
        task.report("tune", step + 1, float(loss.detach()))
    return Tuning(RANK, factors.detach().half())
