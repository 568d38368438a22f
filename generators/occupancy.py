"""Find empty space once per object with an occupancy grid, and skip it when rendering.

A density clamped by ReLU is exactly zero where its raw value is negative: in the air around an
object and often inside of it. Samples there need no evaluation of the field. The density is
evaluated at the corners of a grid's cells; a cell is empty where all corners of it and of its 26
neighbors are. Details smaller than a cell can be missed, so this is for fast pictures;
docs/speed.md measures the difference.

Legend: B objects, P points per object, G directions per object, C cells along each axis.
Source: occupancy grids of Instant NGP (Müller et al. 2022), section 5.1 and appendix E; here the
field itself says where it is empty, so no threshold and no running average is needed.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from generators.cameras import Rays
from generators.fields import Field
from generators.volumetric_rendering import RenderOptions, depth_range, stratified_depths
from siren.film import Film, at_least_float32

PIXELS_PER_CELL = 6  # of a picture that the cube fills
FEWEST_CELLS, MOST_CELLS = 40, 128  # along each axis: fewer miss things, more take time
WORTHWHILE = 0.9  # above this share of occupied cells, look-ups cost more than they save
MOST_KNOWN = 8  # objects whose occupancy is cached, at most 2 MB each
EMPTY = -1.0  # raw density of skipped samples; any negative number is no density


@dataclass(frozen=True, eq=False)
class Occupancy:
    """Occupancy grid: the cells of a cube around the origin that may hold density.

    cells: (C + 2, C + 2, C + 2) bool [ix, iy, iz]; the outermost ones stand for the space outside
    of the cube, which is not known to be empty. side: of the cube, scene units.
    """

    cells: Tensor
    side: float

    @functools.cached_property
    def is_full(self) -> bool:
        """Return whether no cell is known to be empty."""
        return bool(self.cells.all())

    def may_hold(self, points: Tensor) -> Tensor:
        """Return (...): False if a point of (..., 3) is known to be empty, else True."""
        count = len(self.cells)
        with torch.autocast(points.device.type, enabled=False):  # half precision counts to 2^11
            place = at_least_float32(points) * ((count - 2) / self.side) + count / 2
            place = place.floor_().clamp_(0, count - 1)
            # One number per cell: exact in float32, as there are fewer than 2^24 cells.
            index = place @ place.new_tensor((count**2, count, 1.0))
        return self.cells.view(-1)[index.long()]


def _num_cells(options: RenderOptions) -> int:
    wanted = math.ceil(options.image_size / PIXELS_PER_CELL)
    return min(max(wanted, FEWEST_CELLS), MOST_CELLS)


def find_occupancy(
    density: Callable[[Tensor], Tensor], options: RenderOptions, device: torch.device
) -> Occupancy:
    """Find the occupancy of one object, in cells a few pixels wide, on device.

    density returns raw densities (P,) of points (P, 3), whose activation by options is ReLU.
    """
    side = options.visible_side
    count = _num_cells(options)
    ends = (torch.arange(count + 1, device=device) / count - 0.5) * side
    corners = torch.stack(torch.meshgrid(ends, ends, ends, indexing="ij"), dim=-1)
    raw = torch.full((count + 1,) * 3, EMPTY, device=device)
    is_seen = torch.ones_like(raw, dtype=torch.bool)
    if options.scene_radius is not None:  # with the corners of cells that the ball cuts
        is_seen = corners.norm(dim=-1) <= options.scene_radius + math.sqrt(3) * side / count
    raw[is_seen] = density(corners[is_seen]).to(raw)
    holds = raw > 0
    if options.scene_radius is None:
        # The last sample of a ray stands for all space behind it, so the faintest density there is
        # opaque. It is at least this far from the origin for every camera.
        holds |= corners.norm(dim=-1) >= options.far - 1
    of_cells = F.max_pool3d(holds.float()[None, None], 2, stride=1)  # a cell's eight corners
    cells = F.max_pool3d(of_cells, 3, stride=1, padding=1)[0, 0] > 0
    cells |= cells.float().mean() > WORTHWHILE
    return Occupancy(F.pad(cells, (1,) * 6, value=True), side)


def rays_that_may_hit(
    occupancies: Sequence[Occupancy], rays: Rays, options: RenderOptions
) -> Tensor | None:
    """Return indices of the rays (B, R, 3) that pass occupied cells of any of B objects.

    The cells are looked up at the coarse samples and half-way between them. None is all rays: where
    the background takes its color from the last sample, empty rays have one too.
    """
    if options.background == "last_sample" or any(seen.is_full for seen in occupancies):
        return None
    between = replace(options, num_steps=2 * options.num_steps)
    depths = stratified_depths(rays, between, rng=None)[..., None]
    points = rays.origins[..., None, :] + rays.directions[..., None, :] * depths  # (B, R, 2S, 3)
    may_hit = [seen.may_hold(p).any(-1) for seen, p in zip(occupancies, points, strict=True)]
    near, far = depth_range(rays, options)
    return (torch.stack(may_hit) & (far > near)).any(0).nonzero()[:, 0]


def skipping(fields: Sequence[Field], occupancies: Sequence[Occupancy]) -> Field:
    """Return the field of B objects, each evaluated in its occupied cells only, empty elsewhere."""

    def evaluate(points: Tensor, directions: Tensor) -> Tensor:
        each = zip(fields, occupancies, points.split(1), directions.split(1), strict=True)
        return torch.cat([_evaluate_occupied(*of_one) for of_one in each])

    return evaluate


def _evaluate_occupied(
    field: Field, occupancy: Occupancy, points: Tensor, directions: Tensor
) -> Tensor:
    if occupancy.is_full:
        return field(points, directions)
    samples = F.pad(torch.zeros_like(points), (0, 1), value=EMPTY)  # (1, P, 4)
    index = occupancy.may_hold(points[0]).nonzero()[:, 0]
    if not len(index):
        return samples
    if directions.shape[1] > 1:  # each belongs to P / G consecutive points
        directions = directions[:, index // (points.shape[1] // directions.shape[1])]
    return samples.index_copy(1, index, field(points[:, index], directions))


class OccupancyMemory:
    """Cache of the occupancies of the last objects, so that a video finds each once."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], Occupancy] = {}  # the last used is the last

    def recall(
        self, film: Film, options: RenderOptions, find: Callable[[], Occupancy]
    ) -> Occupancy:
        """Return the cached occupancy of the object film (1, F), or call find for it."""
        parts = [film.frequencies, film.phase_shifts, film.weight_changes]
        numbers = torch.cat([part for part in parts if part is not None], dim=1)
        values = numbers.detach().cpu().numpy().tobytes()
        key = (values, _num_cells(options), options.visible_side)
        found = self._known.pop(key) if key in self._known else find()
        self._known[key] = found
        if len(self._known) > MOST_KNOWN:
            del self._known[next(iter(self._known))]
        return found
