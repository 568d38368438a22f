"""Radiance fields: FiLM-conditioned SIRENs that map a point and a direction to color and density.

Legend: B objects, G viewing directions per object, P points per object (P / G consecutive points
share a direction), H hidden width, F = H * (num_layers + 1) FiLM features.
Class and parameter names are those of the published checkpoints. They and their order must not
change: published files of averaged parameters store them by position.

Source: pi-GAN (Chan et al. 2021), section 3.1; SIREN (Sitzmann et al. 2020) for the initialisation.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siren.film import CustomMappingNetwork, Film, FiLMLayer
from siren.fused import fused_field
from siren.surface import Surface

SINE_FREQUENCY = 25.0  # assumed by the initialisation of every layer but the first
PUBLISHED_BOX_SIDE = 0.24  # scene units; points in this cube are scaled to [-1, 1]


def _init_uniform(linear: nn.Linear, bound: float) -> None:
    with torch.no_grad():
        linear.weight.uniform_(-bound, bound)


class FilmSiren(nn.Module):
    """A trunk of FiLM layers with a density head and a direction-dependent color head.

    Args:
        z_dim: width of the latent.
        hidden_dim: width H of the field; None is the class's published width.
        num_layers: FiLM layers of the trunk; None is the published 8.
        mapping_hidden_dim: width of the mapping network.
        box_side: side of the cube that is scaled to [-1, 1], scene units; None is the class's own.
        density_scale: factor on the density head's output. A surface in a scene much smaller than
            one unit needs a density of hundreds; without the factor the head takes thousands of
            steps to reach it. With a surface_width, it is a factor on distances in scene units.
        surface_width: with it the density head gives signed distances; see siren.surface. Objects
            begin as balls whose radius is a quarter of box_side, or 0.5 without one.
    """

    default_hidden_dim = 256
    default_box_side: float | None = None  # None: points are not scaled
    embedding_shape: tuple[int, int, float] | None = None  # channels, grid side, initial scale

    def __init__(
        self,
        *,
        z_dim: int = 256,
        hidden_dim: int | None = None,
        num_layers: int | None = None,
        mapping_hidden_dim: int = 256,
        box_side: float | None = None,
        density_scale: float = 1.0,
        surface_width: float | None = None,
    ) -> None:
        super().__init__()
        self.z_dim = z_dim
        self.density_scale = density_scale
        self.hidden_dim = width = hidden_dim or self.default_hidden_dim
        self.box_side = box_side or self.default_box_side
        self.unit = self.box_side / 2 if self.box_side else 1.0  # scene units
        self.surface = None
        if surface_width is not None:
            self.surface = Surface(surface_width, self.unit / 2)
        self.num_inputs = 3  # of the first layer
        if self.embedding_shape is not None:
            channels, side, scale = self.embedding_shape
            self.spatial_embeddings = nn.Parameter(
                torch.randn(1, channels, side, side, side) * scale
            )
            self.num_inputs += channels
        widths = [self.num_inputs] + [width] * (num_layers or 8)
        layers = [FiLMLayer(*pair) for pair in zip(widths[:-1], widths[1:], strict=True)]
        self.network = nn.ModuleList(layers)
        self.final_layer = nn.Linear(width, 1)
        self.color_layer_sine = FiLMLayer(width + 3, width)
        self.color_layer_linear = nn.Sequential(nn.Linear(width, 3), nn.Sigmoid())
        self.mapping_network = CustomMappingNetwork(
            z_dim, mapping_hidden_dim, (len(self.network) + 1) * width
        )
        self._initialize(layers[0])

    def _initialize(self, first: FiLMLayer) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and not name.startswith("mapping_network"):
                _init_uniform(module, math.sqrt(6 / module.in_features) / SINE_FREQUENCY)
        # The bound is that of three inputs, even if grid features are concatenated to the point.
        _init_uniform(first.layer, 1 / min(first.layer.in_features, 3))

    @property
    def num_features(self) -> int:
        """Return F, the width of frequencies and of phase shifts."""
        return (len(self.network) + 1) * self.hidden_dim

    def encode(self, points: Tensor) -> Tensor:
        """Return the first layer's inputs (B, P, 3 or 3 + channels) of points (B, P, 3)."""
        if self.box_side is not None:
            points = points * (2 / self.box_side)
        if self.embedding_shape is None:
            return points
        # All points as one row: a batch dimension would copy the grid and its gradient per object.
        row = points.reshape(1, 1, 1, -1, 3)
        features = F.grid_sample(
            self.spatial_embeddings, row, mode="bilinear", padding_mode="zeros", align_corners=True
        )  # (1, C, 1, 1, B * P); "bilinear" is trilinear on a volume
        beside = features[0, :, 0, 0].t().unflatten(0, points.shape[:2])
        return torch.cat([beside, points], dim=-1)

    def forward(
        self,
        points: Tensor,
        directions: Tensor,
        film: Film,
        *,
        prepared: fused_field.JoinedField | None = None,
        skips_clear: bool = False,
    ) -> Tensor:
        """Return colors in [0, 1] and raw densities, (B, P, 4).

        Uses the fast implementation if there is one for the device and precision.

        Args:
            points: (B, P, 3), scene units.
            directions: (B, G, 3) unit vectors; each serves P / G consecutive points.
            film: conditioning of the B objects.
            prepared: result of prepared(film); None computes it.
            skips_clear: points whose raw density is not positive may be left black, which saves
                their color layer.
        """
        encoded = self.encode(points)
        if not fused_field.is_supported(encoded):
            return self.reference(encoded, directions, film)
        field = self._fast(film) if prepared is None else prepared
        clear_below = self._clear_below() if skips_clear else None
        samples = fused_field.evaluate(field, encoded, directions, clear_below)
        return self._as_densities(encoded, samples)

    def reference(self, encoded: Tensor, directions: Tensor, film: Film) -> Tensor:
        """Compute forward layer by layer as in the paper; encoded is encode(points)."""
        x = self._trunk(encoded, film)
        density = self.final_layer(x) * self.density_scale
        share = encoded.shape[1] // max(directions.shape[1], 1)
        seen_from = directions.repeat_interleave(share, dim=1)  # (B, P, 3)
        color_film, change = film.layers(self.hidden_dim)[-1], self.weight_changes(film)[-1]
        features = self.color_layer_sine(torch.cat([seen_from, x], dim=-1), *color_film, change)
        samples = torch.cat([self.color_layer_linear(features), density], dim=-1)
        return self._as_densities(encoded, samples)

    def _clear_below(self) -> fused_field.ClearBelow:
        """Return the head's outputs that have no density."""
        if self.surface is None:
            return fused_field.ClearBelow()
        return fused_field.ClearBelow(self.surface.clear_at_center, self.unit)

    def _as_densities(self, encoded: Tensor, samples: Tensor) -> Tensor:
        """Return samples (..., 4) of encoded points with the head's raw outputs as densities."""
        if self.surface is None:
            return samples
        density = self.surface.densities(self._positions(encoded), samples[..., 3])
        return torch.cat([samples[..., :3], density[..., None]], dim=-1)

    def _positions(self, encoded: Tensor) -> Tensor:
        """Return the points (B, P, 3), in scene units, that were encoded."""
        return encoded[..., -3:] * self.unit

    def density(
        self, points: Tensor, film: Film, *, prepared: fused_field.JoinedField | None = None
    ) -> Tensor:
        """Return raw densities (B, P) of points (B, P, 3): forward without its color layer.

        Uses the fast implementation if there is one and no gradient is needed; prepared as in
        forward.
        """
        encoded = self.encode(points)
        if torch.is_grad_enabled() or not fused_field.is_supported(encoded):
            return self.reference_density(encoded, film)
        raw = fused_field.density(self._fast(film) if prepared is None else prepared, encoded)
        if self.surface is None:
            return raw
        return self.surface.densities(points, raw)

    def reference_density(self, encoded: Tensor, film: Film) -> Tensor:
        """Compute density layer by layer as in the paper; encoded is encode(points)."""
        raw = self._reference_raw(encoded, film)
        if self.surface is None:
            return raw
        return self.surface.densities(self._positions(encoded), raw)

    def distances(self, points: Tensor, film: Film) -> Tensor:
        """Return signed distances (B, P) of points (B, P, 3), differentiable twice.

        Raises:
            ValueError: the field has no surface_width, so that its head gives densities.
        """
        if self.surface is None:
            raise ValueError("a field without surface_width has no distances")
        return self.surface.distances(points, self._reference_raw(self.encode(points), film))

    def _reference_raw(self, encoded: Tensor, film: Film) -> Tensor:
        raw: Tensor = self.final_layer(self._trunk(encoded, film)) * self.density_scale
        return raw[..., 0]

    def _trunk(self, encoded: Tensor, film: Film) -> Tensor:
        """Return the features (B, P, H) that both heads use."""
        *trunk_film, _ = film.layers(self.hidden_dim)
        *changes, _ = self.weight_changes(film)
        x = encoded
        for layer, conditioning, change in zip(self.network, trunk_film, changes, strict=True):
            x = layer(x, *conditioning, change)  # (B, P, H)
        return x

    def film_layers(self) -> list[nn.Linear]:
        """Return the linear layers that FiLM modulates: the trunk's, then the color layer's."""
        return [module.layer for module in self.modules() if isinstance(module, FiLMLayer)]

    def weight_changes(self, film: Film) -> list[Tensor] | list[None]:
        """Return the changes (B, H, in) of the weights of film_layers() for the objects of film."""
        shapes = [layer.weight.shape for layer in self.film_layers()]
        if film.weight_changes is None:
            return [None] * len(shapes)
        parts = film.weight_changes.split([shape.numel() for shape in shapes], dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]

    def _weights(self, film: Film) -> list[Tensor]:
        """Return the weights (H, in) of film_layers(), or (B, H, in) where objects change them."""
        own = [layer.weight for layer in self.film_layers()]
        changes = self.weight_changes(film)
        return [
            weight if change is None else weight + change
            for weight, change in zip(own, changes, strict=True)
        ]

    def folded(self, film: Film) -> fused_field.FoldedField:
        """Fold FiLM into weights per object: f (W x + b) + p = (diag(f) W) x + (f b + p)."""
        weights, biases = [], []
        for layer, weight, (frequencies, phase_shifts) in zip(
            self.film_layers(), self._weights(film), film.layers(self.hidden_dim), strict=True
        ):
            weights.append(frequencies[..., None] * weight)  # (B, H, in)
            biases.append(frequencies * layer.bias + phase_shifts)  # (B, H)
        color = self.color_layer_linear[0]
        assert isinstance(color, nn.Linear)  # for the type checker
        return fused_field.FoldedField(
            trunk_weights=weights[:-1],
            trunk_biases=biases[:-1],
            direction_weight=weights[-1][..., :3],
            color_weight=weights[-1][..., 3:],
            color_bias=biases[-1],
            density_head=(
                self.final_layer.weight * self.density_scale,
                self.final_layer.bias * self.density_scale,
            ),
            color_head=(color.weight, color.bias),
        )

    def prepared(self, film: Film) -> fused_field.JoinedField | None:
        """Return weights for many calls of forward; None where each call folds its own."""
        return self.joined(film) if film.frequencies.is_cuda else None

    def _fast(self, film: Film) -> fused_field.FoldedField | fused_field.JoinedField:
        return self.joined(film) if film.frequencies.is_cuda else self.folded(film)

    def joined(self, film: Film) -> fused_field.JoinedField:
        """Do as folded in a few operations on all layers, which CUDA starts one by one."""
        width = self.hidden_dim
        first, *others, color = self._weights(film)
        head = self.color_layer_linear[0]
        assert isinstance(head, nn.Linear)  # for the type checker
        frequencies, phase_shifts = film.by_layer(width)  # (B, L + 1, H)
        of_direction, of_features = color.split([3, width], dim=-1)
        inner = torch.stack([*others, of_features], dim=-3)
        biases = torch.stack([layer.bias for layer in self.film_layers()])
        scale = self.density_scale
        return fused_field.JoinedField(
            first=frequencies[:, 0, :, None] * first,
            direction=frequencies[:, -1, :, None] * of_direction,
            inner=frequencies[:, 1:, :, None] * inner,
            biases=frequencies * biases + phase_shifts,
            heads=torch.cat([head.weight, self.final_layer.weight * scale]),
            head_biases=torch.cat([head.bias, self.final_layer.bias * scale]),
        )


class TALLSIREN(FilmSiren):
    """The paper's field; points enter in scene units."""


class SPATIALSIRENBASELINE(FilmSiren):
    """TALLSIREN whose points are scaled so that a cube of side 0.24 becomes [-1, 1]."""

    default_box_side = PUBLISHED_BOX_SIDE


class EmbeddingPiGAN128(FilmSiren):
    """A field 128 wide that also sees a learned 96^3 grid of 32 features."""

    default_hidden_dim = 128
    default_box_side = PUBLISHED_BOX_SIDE
    embedding_shape = (32, 96, 0.01)


class EmbeddingPiGAN256(FilmSiren):
    """A field 256 wide that also sees a learned 64^3 grid of 32 features."""

    default_box_side = PUBLISHED_BOX_SIDE
    embedding_shape = (32, 64, 0.1)


FIELDS: dict[str, type[FilmSiren]] = {
    cls.__name__: cls
    for cls in (TALLSIREN, SPATIALSIRENBASELINE, EmbeddingPiGAN128, EmbeddingPiGAN256)
}
