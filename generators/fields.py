"""Radiance fields, and their evaluation in chunks.

Legend: B images, P points, G directions, each for P / G consecutive points.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

CPU_CHUNK, CUDA_CHUNK = 2**17, 2**19  # points per call of the field; bounds the memory


def default_chunk(device: torch.device) -> int:
    """Return the points per call of the field that bound its memory on a device."""
    return CUDA_CHUNK if device.type == "cuda" else CPU_CHUNK


# Points (B, P, 3) and directions (B, G, 3) to colors in [0, 1] and raw densities (B, P, 4).
Field = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class TwofoldField:
    """A field in two versions; visible may return black where the raw density is not positive."""

    whole: Field
    visible: Field

    def __call__(self, points: Tensor, directions: Tensor) -> Tensor:
        """Evaluate the whole field, with every color."""
        return self.whole(points, directions)


def chunked(field: Field, points_per_chunk: int | None) -> Field:
    """Return the same field, evaluated in chunks that keep the points of a direction together."""
    if points_per_chunk is None:
        return field

    def evaluate(points: Tensor, directions: Tensor) -> Tensor:
        num_objects, num_points, _ = points.shape
        num_directions = directions.shape[1]
        limit = max(1, points_per_chunk // max(1, num_objects))
        if num_directions == 1:
            return torch.cat([field(part, directions) for part in points.split(limit, 1)], dim=1)
        share = num_points // num_directions
        per_chunk = max(1, limit // share)
        parts = zip(points.split(per_chunk * share, 1), directions.split(per_chunk, 1), strict=True)
        return torch.cat([field(p, d) for p, d in parts], dim=1)

    return evaluate
