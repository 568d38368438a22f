"""The generator: latent codes and camera poses in, images out."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from generators.cameras import Poses, Rays, cast_rays, moved
from generators.fields import TwofoldField, chunked
from generators.occupancy import (
    Occupancy,
    OccupancyMemory,
    find_occupancy,
    has_empty_space,
    rays_that_may_hit,
    skipping,
)
from generators.volumetric_rendering import (
    Rendering,
    RenderOptions,
    rays_that_hit,
    render_rays,
)
from siren.film import Film, at_least_float32
from siren.siren import FilmSiren


class View(NamedTuple):
    """images (B, 3, H, W) in [-1, 1], depths (B, H, W) in scene units, opacities (B, H, W)."""

    images: Tensor
    depths: Tensor
    opacities: Tensor


class ImplicitGenerator3d(nn.Module):
    """A conditioned radiance field and the camera that looks at it.

    field_dtype: what the field's products round their operands to; None is the field's own
    precision, or that of an autocast around the call. Everything else stays as it is.
    skips_empty_space: pictures without randomness leave out what generators.occupancy finds empty.
    It is found once per object, so the parameters must not change any more.
    """

    def __init__(self, siren: FilmSiren) -> None:
        super().__init__()
        self.siren = siren
        self.field_dtype: torch.dtype | None = None
        self.skips_empty_space = False
        self._remembered = OccupancyMemory()

    @property
    def z_dim(self) -> int:
        """Width of the latent."""
        return self.siren.z_dim

    def mapping(self, z: Tensor) -> Film:
        """FiLM conditioning of latents z (B, z_dim)."""
        film: Film = self.siren.mapping_network(z)
        return film

    @torch.no_grad()
    def average_film(self, latents: Tensor) -> Film:
        """The center of truncation (1, F): the mean over latents (N, z_dim)."""
        film = self.mapping(latents.to(next(self.parameters()).device))
        return Film(film.frequencies.mean(0, keepdim=True), film.phase_shifts.mean(0, keepdim=True))

    def field(self, film: Film, *, points_per_chunk: int | None = None) -> TwofoldField:
        """The radiance field of the objects that film describes."""

        def evaluate(points: Tensor, directions: Tensor, *, skips_clear: bool = False) -> Tensor:
            with self._field_precision():
                samples: Tensor = self.siren(points, directions, film, skips_clear=skips_clear)
            return at_least_float32(samples)  # the integral's tail overflows float16

        visible = partial(evaluate, skips_clear=True)
        return TwofoldField(*(chunked(each, points_per_chunk) for each in (evaluate, visible)))

    def _occupancies(
        self, film: Film, options: RenderOptions, *, points_per_chunk: int
    ) -> list[Occupancy]:
        """Where each object of film may hold density; nothing where all of space has to be seen."""
        if not self.skips_empty_space or not has_empty_space(options):
            return []
        found = []
        for thing in (film[i : i + 1] for i in range(len(film))):
            density = self.density(thing, points_per_chunk=points_per_chunk)
            find = partial(find_occupancy, density, options, film.frequencies.device)
            found.append(self._remembered.recall(thing, options, find))
        return found

    def _field_precision(self) -> AbstractContextManager[Any]:
        if self.field_dtype is None:
            return nullcontext()
        device = next(self.parameters()).device.type
        return torch.autocast(device, dtype=self.field_dtype)

    def density(
        self, film: Film, *, points_per_chunk: int | None = None
    ) -> Callable[[Tensor], Tensor]:
        """Raw densities (P,) at points (P, 3) on any device, of the one object of film (1, F)."""

        @torch.no_grad()
        def evaluate(points: Tensor) -> Tensor:
            parts = points.to(film.frequencies)[None].split(points_per_chunk or len(points), dim=1)
            with self._field_precision():
                found = torch.cat([self.siren.density(part, film)[0] for part in parts])
            return at_least_float32(found).to(points.device)

        return evaluate

    def render(
        self,
        film: Film,
        poses: Poses,
        options: RenderOptions,
        *,
        rng: torch.Generator | None = None,
        points_per_chunk: int | None = None,
        fov_degrees: Tensor | None = None,
        report: Callable[[int], object] = lambda num_rays: None,
    ) -> View:
        """Images, depths and opacities of B objects, each from its pose.

        Args:
            film: conditioning of B objects.
            poses: B camera poses; moved to the device of film.
            options: how rays become pixels.
            rng: the stream of the per-sample draws; None renders without randomness.
            points_per_chunk: the most points in one call of the field; None is all. The picture
                does not depend on it. Without a stream it bounds everything else too.
            fov_degrees: (B,) angles of view; None is the options' for all.
            report: called with the number of rays that are done since the last time.
        """
        frequencies = film.frequencies
        on_device = Poses(*(angle.to(frequencies) for angle in poses))
        fov = options.fov_degrees if fov_degrees is None else fov_degrees.to(frequencies)
        rays = cast_rays(on_device, options.image_size, fov)
        shape = (options.image_size, options.image_size)
        field = self.field(film, points_per_chunk=points_per_chunk)
        if points_per_chunk is None or rng is not None:  # a stream is drawn for whole pictures
            hits = None
            if rays.origins.is_cuda and options.scene_radius is not None and fov_degrees is None:
                hits = moved(rays_that_hit(options), rays.origins.device)
            whole = render_rays(field, rays, options, rng=rng, hits=hits)
            report(whole.depth.numel())
            return as_view(whole, shape)
        parts = []
        for part in self.render_parts(film, rays, options, points_per_chunk=points_per_chunk):
            parts.append(part)
            report(part.depth.numel())
        return as_view(join(parts), shape)

    def render_parts(
        self, film: Film, rays: Rays, options: RenderOptions, *, points_per_chunk: int
    ) -> Iterator[Rendering]:
        """The pixels of rays (B, R, 3), a part of the rays at a time, without randomness.

        A part has at most points_per_chunk samples. Who stops asking for parts saves their work.
        """
        occupancies = self._occupancies(film, options, points_per_chunk=points_per_chunk)
        if occupancies:
            things = (film[i : i + 1] for i in range(len(film)))
            fields = [self.field(thing, points_per_chunk=points_per_chunk) for thing in things]
            field = TwofoldField(
                skipping([each.whole for each in fields], occupancies),
                skipping([each.visible for each in fields], occupancies),
            )
        else:
            field = self.field(film, points_per_chunk=points_per_chunk)
        rays_per_part = max(1, points_per_chunk // (len(film) * options.num_steps))
        for ends in zip(*(ends.split(rays_per_part, 1) for ends in rays), strict=True):
            part = Rays(*ends)
            hits = rays_that_may_hit(occupancies, part, options) if occupancies else None
            yield render_rays(field, part, options, rng=None, hits=hits)

    def forward(
        self,
        z: Tensor,
        poses: Poses,
        options: RenderOptions,
        *,
        rng: torch.Generator | None = None,
    ) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] of latents z (B, z_dim)."""
        return self.render(self.mapping(z), poses, options, rng=rng).images


def join(parts: Iterable[Rendering]) -> Rendering:
    """One rendering of the rays of several, in their order."""
    return Rendering(*(torch.cat(pieces, dim=1) for pieces in zip(*parts, strict=True)))


def as_view(rendering: Rendering, shape: tuple[int, int]) -> View:
    """The pictures of shape (H, W) whose pixels were rendered."""
    return View(
        rendering.rgb.unflatten(1, shape).permute(0, 3, 1, 2) * 2 - 1,
        rendering.depth.unflatten(1, shape),
        rendering.opacity.unflatten(1, shape),
    )
