"""The folded field by PyTorch's own operations, on any device: one product and one sine a layer.

It serves where there is no kernel. Half precision is not used, because a product that comes back in
half precision would round the phases. Chunks bound the memory, forward and backward: a chunk's
layers are repeated when its gradient is due.

Legend: B objects, P points per object, G directions per object, H hidden width, n points of a
chunk.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from siren.fused.folded import FoldedField

CHUNK_NUMBERS = 2**26  # of one layer's output in one chunk: 256 MiB


def evaluate(field: FoldedField, encoded: Tensor, directions: Tensor) -> Tensor:
    """Colors in [0, 1] and raw densities (B, P, 4) in the points' precision, float32 at least.

    Args:
        field: folded weights of B objects.
        encoded: (B, P, in) what the first layer sees.
        directions: (B, G, 3); each serves P / G consecutive points.
    """
    num_objects, num_points, _ = encoded.shape
    share = num_points // max(1, directions.shape[1])
    with torch.autocast(encoded.device.type, enabled=False):
        encoded, directions = (_at_least_float32(t) for t in (encoded, directions))
        # What a direction adds to the color layer is the same for all points that it serves.
        color_bias = torch.baddbmm(
            field.color_bias[:, None], directions, field.direction_weight.transpose(1, 2)
        )  # (B, G, H)
        parts = []
        for start, part in _chunks(field, encoded):
            indices = torch.arange(start, start + part.shape[1], device=encoded.device)
            bias = color_bias[:, indices // share]  # (B, n, H)
            needs_graph = torch.is_grad_enabled()
            parts.append(
                checkpoint(_samples, field, part, bias, use_reentrant=False,
                           preserve_rng_state=False) if needs_graph else _samples(field, part, bias)
            )  # fmt: skip
        return torch.cat(parts, dim=1) if parts else encoded.new_empty(num_objects, 0, 4)


@torch.no_grad()
def density(field: FoldedField, encoded: Tensor) -> Tensor:
    """Raw densities (B, P) of encoded (B, P, in); not differentiable."""
    with torch.autocast(encoded.device.type, enabled=False):
        encoded = _at_least_float32(encoded)
        parts = [
            _head(_trunk(field, part), *field.density_head)[..., 0]
            for _, part in _chunks(field, encoded)
        ]
        return torch.cat(parts, dim=1) if parts else encoded.new_empty(encoded.shape[:2])


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _chunks(field: FoldedField, encoded: Tensor) -> list[tuple[int, Tensor]]:
    """Points by chunk, with the index of each chunk's first; none where there are no points."""
    if encoded.numel() == 0:
        return []
    size = max(1, CHUNK_NUMBERS // (len(encoded) * field.color_weight.shape[-1]))
    starts = range(0, encoded.shape[1], size)
    return list(zip(starts, encoded.split(size, dim=1), strict=True))


def _trunk(field: FoldedField, x: Tensor) -> Tensor:
    for weight, bias in zip(field.trunk_weights, field.trunk_biases, strict=True):
        x = torch.baddbmm(bias[:, None], x, weight.transpose(1, 2)).sin()
    return x


def _head(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, weight, bias)


def _samples(field: FoldedField, encoded: Tensor, color_bias: Tensor) -> Tensor:
    """Colors and densities (B, n, 4) of one chunk; color_bias (B, n, H) is the color layer's."""
    x = _trunk(field, encoded)
    density = _head(x, *field.density_head)
    features = torch.baddbmm(color_bias, x, field.color_weight.transpose(1, 2)).sin()
    return torch.cat([_head(features, *field.color_head).sigmoid(), density], dim=-1)
