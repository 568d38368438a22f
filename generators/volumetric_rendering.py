"""Render rays through a field: sample positions and the volume rendering integral.

Legend: B images, R rays, S samples per ray. Depths are distances along unit-length rays, in scene
units.

Randomness: rng is a stream or None. With None nothing is random: depths are evenly spaced,
importance samples are evenly spaced quantiles, and there is no density noise. With a stream the
order of the draws is fixed (jitter, coarse noise even at deviation 0, quantiles, fine noise), so
that a CPU stream in the same state gives the picture of the published code.

Sources: pi-GAN (Chan et al. 2021), section 3.2; NeRF (Mildenhall et al. 2020), sections 4 and 5.2.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from generators import fast_rays
from generators.cameras import Poses, Rays, cast_rays, moved
from generators.fields import Field, TwofoldField
from siren.surface import Surface

TAIL_LENGTH = 1e10  # scene units; the last sample stands for the rest of the ray (NeRF, section 4)
WEIGHT_FLOOR = 1e-5  # added twice before the distribution function, as published
Rng = torch.Generator | None
LOCKED_DIRECTION = (0.0, 0.0, -1.0)  # direction of every ray under lock_view_dependence


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderOptions:
    """Options of volume rendering. Distances are scene units from a camera at radius 1.

    background: color of the light that passes all samples: "black", "white", or "last_sample", the
    color of the farthest sample.
    lock_view_dependence: the field gets the same direction for every ray.
    scene_radius: the scene is empty outside a ball of this radius around the origin; None is no
    bound. Samples then lie inside the ball, rays that miss it cost nothing, and the last sample
    ends at the ball instead of standing for the rest of the ray.
    spreads_weights: fine samples are drawn by spread_weights of the coarse ones, which finds a
    surface between two coarse samples; the published code draws by the weights as they are.
    surface_width: that of the field, if it has one; with spreads_weights, fine samples are drawn by
    the bins of surface_bins then.
    shares_jitter: with a stream, one random number moves all coarse samples of a ray, and one all
    quantiles of its fine samples, so that they stay evenly spaced; the published code moves each.
    Raises ValueError where the numbers describe no ray.
    """

    image_size: int
    fov_degrees: float
    near: float
    far: float
    num_steps: int
    hierarchical: bool = True
    density_activation: Literal["relu", "softplus"] = "relu"
    density_noise: float = 0.0
    background: Literal["black", "white", "last_sample"] = "black"
    lock_view_dependence: bool = False
    scene_radius: float | None = None
    spreads_weights: bool = False
    surface_width: float | None = None
    shares_jitter: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.near < self.far:
            raise ValueError(f"need 0 <= near < far, got near={self.near}, far={self.far}")
        if self.num_steps < 3:
            raise ValueError(f"need at least 3 samples per ray, got {self.num_steps}")
        if not 0 < self.fov_degrees < 180:
            raise ValueError(f"need 0 < fov < 180 degrees, got {self.fov_degrees}")
        if self.image_size < 1:
            raise ValueError(f"need an image of at least 1 pixel, got {self.image_size}")
        if self.scene_radius is None:
            return
        if not 0 < self.scene_radius < 1:
            raise ValueError(f"need 0 < scene_radius < 1, got {self.scene_radius}")
        if self.background == "last_sample":
            raise ValueError("need a black or white background around a scene_radius")

    @property
    def visible_side(self) -> float:
        """Return the side of the cube around the origin that contains what cameras see.

        In a bounded scene that is the ball; else the ray range, and at least the ball that is in
        every camera's picture. For the published curricula it is the ray range: 0.24 for faces.
        """
        if self.scene_radius is not None:
            return 2 * self.scene_radius
        in_picture = math.sin(math.radians(self.fov_degrees) / 2)
        return 2 * max(1 - self.near, self.far - 1, in_picture)

    @property
    def hides_clear(self) -> bool:
        """Return whether samples of non-positive raw density have exactly zero weight and gradient.

        The farthest sample is an exception if the background takes its color.
        """
        return self.density_activation == "relu" and self.density_noise == 0


class Rendering(NamedTuple):
    """rgb (B, R, 3) in [0, 1], depth (B, R) in scene units, opacity (B, R) in [0, 1].

    opacity is the share of light that samples absorb, without any background; depth is the sum of
    weighted depths, with the background's share on the last sample under "last_sample".
    """

    rgb: Tensor
    depth: Tensor
    opacity: Tensor


def uniform(shape: tuple[int, ...], like: Tensor, rng: torch.Generator) -> Tensor:
    """Draw numbers in [0, 1) from a stream of any device, with the device and type of like."""
    return torch.rand(shape, generator=rng, device=rng.device).to(like)


def _jitter(
    shape: tuple[int, ...], like: Tensor, options: RenderOptions, rng: torch.Generator
) -> Tensor:
    """Draw numbers in [0, 1) for samples of that shape, with the last axis 1 if they share them."""
    shape = (*shape[:-1], 1) if options.shares_jitter else shape
    return uniform(shape, like, rng)


def _normal(shape: tuple[int, ...], like: Tensor, rng: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=rng, device=rng.device).to(like)


@torch.no_grad()  # sample positions need no gradient; that of sqrt is infinite at the ball's rim
def depth_range(rays: Rays, options: RenderOptions) -> tuple[Tensor, Tensor]:
    """Return the near and far depths (B, R) of each ray; equal where it misses the scene's ball."""
    near, far = (torch.full_like(rays.origins[..., 0], end) for end in (options.near, options.far))
    if options.scene_radius is None:
        return near, far
    closest = -(rays.origins * rays.directions).sum(-1)  # depth at which the ray passes the origin
    past = (rays.origins + closest[..., None] * rays.directions).square().sum(-1)
    half_chord = (options.scene_radius**2 - past).clamp(min=0).sqrt()
    near = torch.maximum(near, closest - half_chord)
    return near, torch.maximum(near, torch.minimum(far, closest + half_chord))


def stratified_depths(rays: Rays, options: RenderOptions, *, rng: Rng) -> Tensor:
    """Return depths (B, R, S), evenly spaced, jittered by up to half a spacing.

    The first and the last are near and far, as published. In a bounded scene, where the last sample
    stands for no more than the others, each is in the middle of its interval. Each is moved by a
    number of its own, or all of a ray by the same (shares_jitter).

    Sources: NeRF, section 4; systematic sampling (Cochran 1977, chapter 8), whose estimates vary
    less than stratified ones where neighbouring samples are alike.
    """
    shape = (*rays.origins.shape[:2], options.num_steps)
    like = rays.origins
    if options.scene_radius is None:
        steps = torch.linspace(
            options.near, options.far, options.num_steps, device=like.device, dtype=like.dtype
        )
        spacing, depths = steps[1] - steps[0], steps.expand(shape)
    else:
        near, far = (end[..., None] for end in depth_range(rays, options))
        spacing = (far - near) / options.num_steps
        middles = torch.arange(options.num_steps, device=like.device, dtype=like.dtype) + 0.5
        depths = near + spacing * middles
    if rng is None:
        return depths
    return depths + (_jitter(shape, depths, options, rng) - 0.5) * spacing


def query(field: Field, rays: Rays, depths: Tensor, options: RenderOptions) -> Tensor:
    """Evaluate the field's colors and raw densities (B, R, S, 4) at depths (B, R, S)."""
    directions = rays.directions
    points = rays.origins[..., None, :] + directions[..., None, :] * depths[..., None]
    if options.lock_view_dependence:
        locked = moved(torch.tensor(LOCKED_DIRECTION, dtype=directions.dtype), directions.device)
        directions = locked.expand(len(directions), 1, 3)
    return field(points.flatten(1, 2), directions).unflatten(1, depths.shape[1:])


def activated_density(samples: Tensor, options: RenderOptions, *, rng: Rng) -> Tensor:
    """Return densities (B, R, S) >= 0 per scene unit: activated raw density plus noise.

    Noise is drawn even at deviation 0, so that the stream does not depend on the training step.
    """
    raw = samples[..., 3]
    if rng is not None:
        raw = raw + options.density_noise * _normal(raw.shape, raw, rng)
    return clamped_density(raw, options)


def clamped_density(raw: Tensor, options: RenderOptions) -> Tensor:
    """Return densities >= 0 per scene unit of raw densities of any shape."""
    return F.relu(raw) if options.density_activation == "relu" else F.softplus(raw)


def compositing_weights(density: Tensor, depths: Tensor, *, end: Tensor | None = None) -> Tensor:
    """Return each sample's share of its ray's color, w_i = T_i (1 - exp(-sigma_i delta_i)).

    T_i = exp(-sum_{j<i} sigma_j delta_j) is the light that reaches sample i. It is summed in the
    exponent: a running product is slower and loses its gradient once a sample is opaque.

    Args:
        density: (..., S), non-negative, per scene unit.
        depths: (..., S), ascending along the last axis, scene units.
        end: depths (...,) at which the last sample ends; None is TAIL_LENGTH behind it.

    Returns:
        (..., S) weights in [0, 1] that add up to at most 1.

    Source: NeRF (Mildenhall et al. 2020), equation 3.
    """
    if end is None:
        tail = torch.full_like(depths[..., :1], TAIL_LENGTH)
    else:
        tail = (end[..., None] - depths[..., -1:]).clamp(min=0)
    optical_depth = density * torch.cat([depths.diff(dim=-1), tail], dim=-1)
    before = F.pad(optical_depth[..., :-1].cumsum(dim=-1), (1, 0))
    return torch.exp(-before) * -torch.expm1(-optical_depth)


def spread_weights(weights: Tensor) -> Tensor:
    """Spread the weights (B, R, S) of coarse samples over their neighbours, for importance_depths.

    The first sample inside an opaque surface absorbs all light, and the surface is anywhere between
    it and the sample before. Its own bin begins half-way between the two, so the bin before gets as
    much weight, and the bin behind, in which a softer surface ends, half as much.

    Source: ours, after mip-NeRF (Barron et al. 2021), equation 18, which averages the maxima of
    both pairs of neighbours.
    """
    return F.pad(weights[..., :-1], (1, 0)) / 2 + weights + F.pad(weights[..., 1:], (0, 1))


def surface_bins(density: Tensor, depths: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """Return edges (B, R, 2 S - 1) of bins along rays, and the weights (B, R, 2 S - 2) of the bins.

    Between two of the coarse samples, with densities and depths (B, R, S), the signed distance to a
    surface of this width changes nearly linearly, which density does not: half-way it is the mean
    of theirs. So the weights, light that bins between samples and these middles absorb, are known
    twice as finely as the field was evaluated. Each is averaged with both neighbors, because
    surfaces bend.
    """
    surface = Surface(width, 0.0)
    edges, distances = (_with_middles(x) for x in (depths, surface.inverse(density)))
    density = surface.densities_at(distances).clamp(min=0)
    absorbed = (density[..., 1:] + density[..., :-1]) / 2 * edges.diff(dim=-1)
    light = torch.exp(-F.pad(absorbed.cumsum(dim=-1), (1, 0)))
    weights = F.pad(-light.diff(dim=-1), (1, 1))
    return edges, (weights[..., :-2] + weights[..., 1:-1] + weights[..., 2:]) / 3


def _with_middles(x: Tensor) -> Tensor:
    """Return x (..., S) with the mean of each pair of neighbors between them, (..., 2 S - 1)."""
    middles = F.pad((x[..., 1:] + x[..., :-1]) / 2, (0, 1))
    return torch.stack([x, middles], dim=-1).flatten(-2)[..., :-1]


def fine_quantiles(
    like: Tensor, count: int, options: RenderOptions, *, rng: torch.Generator
) -> Tensor:
    """Draw quantiles (B, R, count) in [0, 1] of fine samples, for rays of like (B, R, S).

    Each is uniform, as published; with shares_jitter they are evenly spaced, moved together.
    """
    drawn = _jitter((*like.shape[:-1], count), like, options, rng)
    if not options.shares_jitter:
        return drawn
    return (torch.arange(count, device=like.device) + drawn) / count


def importance_depths(
    depths: Tensor, weights: Tensor, count: int, *, quantiles: Tensor | None
) -> Tensor:
    """Return depths (B, R, count) at quantiles of the distribution of the coarse weights.

    The bins lie between the mid-points of the coarse depths (B, R, S) and have the inner weights.
    quantiles (B, R, count) are in [0, 1], evenly spaced if None.

    Source: NeRF (Mildenhall et al. 2020), section 5.2; floors and search side as published.
    """
    edges = (depths[..., 1:] + depths[..., :-1]) / 2  # (B, R, S - 1)
    return depths_at_quantiles(edges, weights[..., 1:-1], count, quantiles=quantiles)


def depths_at_quantiles(
    edges: Tensor, weights: Tensor, count: int, *, quantiles: Tensor | None
) -> Tensor:
    """Do as importance_depths, for bins with edges (B, R, N + 1) and weights (B, R, N)."""
    mass = weights + 2 * WEIGHT_FLOOR
    mass = mass / mass.sum(dim=-1, keepdim=True)
    cdf = F.pad(mass.cumsum(dim=-1), (1, 0))  # (B, R, N + 1)
    u = quantiles
    if u is None:
        u = ((torch.arange(count, device=edges.device) + 0.5) / count).to(edges)
        u = u.expand(*edges.shape[:-1], count)
    above = torch.searchsorted(cdf, u.contiguous())
    below = (above - 1).clamp(min=0)
    above = above.clamp(max=cdf.shape[-1] - 1)
    cdf_below = cdf.gather(-1, below)
    edge_below = edges.gather(-1, below)
    bin_mass = cdf.gather(-1, above) - cdf_below
    bin_mass = torch.where(bin_mass < WEIGHT_FLOOR, torch.ones_like(bin_mass), bin_mass)
    return edge_below + (u - cdf_below) / bin_mass * (edges.gather(-1, above) - edge_below)


def merge(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Merge two sets to depths (B, R, S1 + S2) and samples (B, R, S1 + S2, 4), sorted by depth."""
    depths, order = torch.cat([first[0], second[0]], dim=-1).sort(dim=-1)
    samples = torch.cat([first[1], second[1]], dim=-2)
    return depths, samples.gather(-2, order[..., None].expand_as(samples))


def composite(
    samples: Tensor, depths: Tensor, options: RenderOptions, *, rng: Rng, end: Tensor | None = None
) -> Rendering:
    """Blend samples (B, R, S, 4) at ascending depths (B, R, S) into pixels; end (B, R) or None."""
    weights = compositing_weights(activated_density(samples, options, rng=rng), depths, end=end)
    opacity = weights.sum(dim=-1)  # (B, R)
    missing = 1 - opacity
    if options.background == "last_sample":
        weights = torch.cat([weights[..., :-1], weights[..., -1:] + missing[..., None]], dim=-1)
    rgb = (weights[..., None] * samples[..., :3]).sum(dim=-2)  # (B, R, 3)
    if options.background == "white":
        rgb = rgb + missing[..., None]
    return Rendering(rgb, (weights * depths).sum(dim=-1), opacity)


def rays_that_hit(options: RenderOptions) -> Tensor:
    """Return indices, on the CPU, of the rays of a picture that hit the scene's ball.

    They are the same for every camera: all look at the ball's center from the same distance.
    """
    quarter = torch.full((1,), math.pi / 2)
    rays = cast_rays(Poses(quarter, quarter), options.image_size, options.fov_degrees)
    near, far = depth_range(rays, options)
    return (far > near)[0].nonzero()[:, 0]


def render_rays(
    field: Field, rays: Rays, options: RenderOptions, *, rng: Rng, hits: Tensor | None = None
) -> Rendering:
    """Render rays through field, coarse to fine (NeRF, section 5.2).

    hits: indices of the rays to render; the others show a black or white background. None renders
    all, or in a bounded scene those that hit it, for which the host waits for a CUDA device.
    """
    near, far = depth_range(rays, options)
    if options.scene_radius is not None and hits is None:  # in any image: angles of view differ
        hits = (far > near).any(dim=0).nonzero()[:, 0]
    if hits is None:
        return _render_hits(field, rays, None, options, rng=rng)
    end = far[:, hits] if options.scene_radius is not None else None
    seen = Rays(rays.origins[:, hits], rays.directions[:, hits])
    rendering = _render_hits(field, seen, end, options, rng=rng)
    background = 1.0 if options.background == "white" else 0.0
    rgb = torch.full_like(rays.origins, background).index_copy(1, hits, rendering.rgb)
    empty = torch.zeros_like(near)
    return Rendering(rgb, *(empty.index_copy(1, hits, part) for part in rendering[1:]))


def _render_hits(
    field: Field, rays: Rays, end: Tensor | None, options: RenderOptions, *, rng: Rng
) -> Rendering:
    """Render rays coarse to fine; end (B, R) is where they leave a bounded scene, or None."""
    depths = stratified_depths(rays, options, rng=rng)  # (B, R, S)
    samples = _coarse_samples(field, rays, depths, options)  # (B, R, S, 4)
    field = _visible(field, options)
    if not options.hierarchical:
        return _blend((depths, samples), None, options, rng=rng, end=end)
    fine_depths = _fine_depths(samples, depths, options, rng=rng, end=end)
    fine_samples = query(field, rays, fine_depths, options)
    return _blend((fine_depths, fine_samples), (depths, samples), options, rng=rng, end=end)


@torch.no_grad()
def _fine_depths(
    samples: Tensor, depths: Tensor, options: RenderOptions, rng: Rng, end: Tensor | None
) -> Tensor:
    """Draw the fine depths (B, R, S) by the weights of coarse samples (B, R, S, 4)."""
    count, noise, quantiles = options.num_steps, None, None
    width = options.surface_width if options.spreads_weights and options.hides_clear else None
    if width is not None:
        if rng is not None:
            quantiles = fine_quantiles(depths, count, options, rng=rng)
        bins = surface_bins(samples[..., 3], depths, width)
        return depths_at_quantiles(*bins, count, quantiles=quantiles)
    if not fast_rays.is_supported(samples):
        density = activated_density(samples, options, rng=rng)
        weights = compositing_weights(density, depths, end=end)
        weights = spread_weights(weights) if options.spreads_weights else weights
        if rng is not None:
            quantiles = fine_quantiles(depths, count, options, rng=rng)
        return importance_depths(depths, weights, count, quantiles=quantiles)
    if rng is not None:
        noise = _normal(depths.shape, depths, rng)
        quantiles = fine_quantiles(depths, count, options, rng=rng)
    return fast_rays.importance_depths(
        samples, depths, count, options, noise=noise, quantiles=quantiles, end=end
    )


def _blend(
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor, Tensor] | None,
    options: RenderOptions,
    rng: Rng,
    end: Tensor | None,
) -> Rendering:
    """Merge one or two sets of depths and samples, and blend them into pixels."""
    if not fast_rays.is_supported(first[1]):
        depths, merged = first if second is None else merge(first, second)  # (B, R, 2S)
        return composite(merged, depths, options, rng=rng, end=end)
    depths, order = first[0], None
    if second is not None:
        depths, order = torch.cat([depths, second[0]], dim=-1).sort(dim=-1)
    noise = None if rng is None else _normal(depths.shape, depths, rng)
    samples = (first[1],) if second is None else (first[1], second[1])
    return Rendering(*fast_rays.composite(samples, order, depths, options, noise=noise, end=end))


def _visible(field: Field, options: RenderOptions) -> Field:
    """Return the field without colors of zero weight, where options allow to skip them."""
    if isinstance(field, TwofoldField) and options.hides_clear:
        return field.visible
    return field


def _coarse_samples(field: Field, rays: Rays, depths: Tensor, options: RenderOptions) -> Tensor:
    """Evaluate samples (B, R, S, 4) at depths (B, R, S), with a color at the last if needed."""
    visible = _visible(field, options)
    if visible is field or options.background != "last_sample":
        return query(visible, rays, depths, options)
    near, far = depths.split([options.num_steps - 1, 1], dim=-1)  # fine samples are before the last
    samples = query(visible, rays, near, options)
    return torch.cat([samples, query(field, rays, far, options)], dim=-2)
