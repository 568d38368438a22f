"""Surface normals as colors, from where the rays of a picture end.

Legend: B images, H x W pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def surface_normals(points: Tensor) -> Tensor:
    """Unit normals (B, H, W, 3) of the surface that points (B, H, W, 3) lie on.

    They are cross products of the differences between neighbours, across and down the picture, and
    look to the camera where pixels run from the top left. Where two neighbours lie on one side the
    nearer pair counts, so that the rim of an object keeps its normal. A point that is NaN shows no
    surface; its normal, and that of a point without a neighbour, is NaN.
    """
    across = _nearer_difference(points, dim=2)
    down = _nearer_difference(points, dim=1)
    return F.normalize(torch.linalg.cross(down, across), dim=-1)


def _nearer_difference(points: Tensor, *, dim: int) -> Tensor:
    """The shorter of the steps from and to each point along dim; NaN where there is neither."""
    steps = points.diff(dim=dim)
    gap = torch.full_like(points.narrow(dim, 0, 1), torch.nan)
    onward, behind = torch.cat([steps, gap], dim=dim), torch.cat([gap, steps], dim=dim)
    lengths = [step.norm(dim=-1, keepdim=True).nan_to_num(torch.inf) for step in (onward, behind)]
    return torch.where(lengths[0] <= lengths[1], onward, behind)


def normal_pictures(normals: Tensor, rotations: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] of normals (B, H, W, 3), as the camera sees them.

    Red is to the right, green up, blue towards the camera; rotations (B, 3, 3) are the cameras'.
    Pixels without a surface (NaN) are black.
    """
    seen = (normals[..., None, :] * rotations.transpose(1, 2)[:, None, None]).sum(-1)
    return seen.nan_to_num(-1.0).permute(0, 3, 1, 2)
