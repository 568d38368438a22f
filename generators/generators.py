"""The generator: from latent codes and camera poses to images."""

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
    """A conditioned radiance field and its renderer.

    points_per_chunk: the most points in one call of the field in render and density; None is all.
    field_dtype: precision to which the field's products round their operands; None is the field's
    own, or that of an autocast around the call. Everything else keeps its precision.
    skips_empty_space: renders without randomness skip the cells that generators.occupancy finds
    empty. They are found once per object, so the parameters must not change afterwards.
    """

    def __init__(self, siren: FilmSiren) -> None:
        super().__init__()
        self.siren = siren
        self.points_per_chunk: int | None = None
        self.field_dtype: torch.dtype | None = None
        self.skips_empty_space = False
        self._remembered = OccupancyMemory()

    @property
    def z_dim(self) -> int:
        """Return the width of the latent."""
        return self.siren.z_dim

    @property
    def device(self) -> torch.device:
        """Return the device of the parameters."""
        return next(self.parameters()).device

    def mapping(self, z: Tensor) -> Film:
        """Map latents z (B, z_dim), from any device, to FiLM conditioning."""
        film: Film = self.siren.mapping_network(z.to(self.device))
        return film

    @torch.no_grad()
    def average_film(self, latents: Tensor) -> Film:
        """Return the center of truncation (1, F): the mean conditioning of latents (N, z_dim)."""
        film = self.mapping(latents)
        return Film(film.frequencies.mean(0, keepdim=True), film.phase_shifts.mean(0, keepdim=True))

    def field(self, film: Film, *, points_per_chunk: int | None = None) -> TwofoldField:
        """Return the radiance field of the objects of film."""
        prepared = self.siren.prepared(film)

        def evaluate(points: Tensor, directions: Tensor, *, skips_clear: bool = False) -> Tensor:
            with self._field_precision():
                samples: Tensor = self.siren(
                    points, directions, film, prepared=prepared, skips_clear=skips_clear
                )
            return at_least_float32(samples)  # the integral's tail overflows float16

        visible = partial(evaluate, skips_clear=True)
        return TwofoldField(*(chunked(each, points_per_chunk) for each in (evaluate, visible)))

    def _occupancies(
        self, film: Film, options: RenderOptions, points_per_chunk: int
    ) -> list[Occupancy]:
        """Return the occupancy of each object of film; none where no space may be skipped."""
        if not self.skips_empty_space or options.density_activation != "relu":  # it is never zero
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
        return torch.autocast(self.device.type, dtype=self.field_dtype)

    def density(
        self, film: Film, *, points_per_chunk: int | None = None
    ) -> Callable[[Tensor], Tensor]:
        """Return a function from points (P, 3) anywhere to raw densities (P,) of one object."""
        chunk = points_per_chunk or self.points_per_chunk

        @torch.no_grad()
        def evaluate(points: Tensor) -> Tensor:
            parts = points.to(film.frequencies)[None].split(chunk or len(points), dim=1)
            prepared = self.siren.prepared(film)
            with self._field_precision():
                found = [self.siren.density(part, film, prepared=prepared)[0] for part in parts]
            return at_least_float32(torch.cat(found)).to(points.device)

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
        """Render images, depths and opacities of B objects, each from its pose.

        Args:
            film: conditioning of B objects.
            poses: B camera poses, on the CPU or on the device of film.
            options: how rays become pixels.
            rng: stream of the draws per sample; None renders without randomness.
            points_per_chunk: that of one call, None is the generator's own. It does not change the
                picture. With rng None it bounds all memory, else the field's alone.
            fov_degrees: (B,) angles of view; None takes that of options.
            report: called with the number of rays rendered since the last call.
        """
        points_per_chunk = points_per_chunk or self.points_per_chunk
        like = film.frequencies
        fov = options.fov_degrees if fov_degrees is None else fov_degrees.to(like)
        typed = Poses(*(angle.to(like.dtype) for angle in poses))
        rays = cast_rays(typed, options.image_size, fov, device=like.device)
        shape = (options.image_size, options.image_size)
        if points_per_chunk is None or rng is not None:  # random draws are made for whole pictures
            field = self.field(film, points_per_chunk=points_per_chunk)
            is_known = like.is_cuda and options.scene_radius is not None and fov_degrees is None
            hits = moved(rays_that_hit(options), like.device) if is_known else None
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
        """Render rays (B, R, 3) without randomness, each part when it is asked for."""
        occupancies = self._occupancies(film, options, points_per_chunk)
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
        """Render images (B, 3, H, W) in [-1, 1] of latents z (B, z_dim)."""
        return self.render(self.mapping(z), poses, options, rng=rng).images


def join(parts: Iterable[Rendering]) -> Rendering:
    """Concatenate renderings along their rays."""
    return Rendering(*(torch.cat(pieces, dim=1) for pieces in zip(*parts, strict=True)))


def as_view(rendering: Rendering, shape: tuple[int, int]) -> View:
    """Reshape a rendering to pictures of shape (H, W)."""
    return View(
        rendering.rgb.unflatten(1, shape).permute(0, 3, 1, 2) * 2 - 1,
        rendering.depth.unflatten(1, shape),
        rendering.opacity.unflatten(1, shape),
    )
