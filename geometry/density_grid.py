"""Evaluate densities on a cubic grid, everywhere or coarse to fine near an iso level.

Coarse to fine: a first pass evaluates every STEP-th voxel along each axis. Then the spacing is
halved again and again. At each spacing, blocks (two spacings wide) whose known and interpolated
values lie on both sides of the level are evaluated, and then the blocks around them, until no such
block is left. All other voxels are interpolated. Wherever the surface is found it therefore equals
that of the dense grid, and it is followed to its end, however thin. Only components that contain no
voxel of the first pass are lost; a component that holds a block of 4 x 4 x 4 voxels contains one.

Legend: N voxels along each axis, P points, K blocks.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Density = Callable[[Tensor], Tensor]  # points (P, 3) -> raw densities (P,)
Progress = Callable[[int, int], None]  # takes points evaluated and points needed so far

STEP = 4  # voxels between those of the first pass; more could lose a block of 4 x 4 x 4 voxels
COARSE = 64  # the first pass has this many intervals along each axis, where the grid has as many
CHUNK = 2**17  # points evaluated together; bounds the memory beside the grid itself
CORNERS = tuple(itertools.product((0, 1), repeat=3))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cube:
    """Cube of N x N x N voxels. The outermost voxels' centers lie on its faces, as published.

    center: (x, y, z), and side: scene units; resolution: N, at least 2.
    """

    side: float
    resolution: int
    center: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def spacing(self) -> float:
        """Return the distance between neighbouring voxels, scene units."""
        return self.side / (self.resolution - 1)

    @property
    def first(self) -> tuple[float, float, float]:
        """Return the center of voxel (0, 0, 0)."""
        x, y, z = (middle - self.side / 2 for middle in self.center)
        return x, y, z

    def points(self, voxels: Tensor) -> Tensor:
        """Return the centers (P, 3) of voxels (P, 3) [ix, iy, iz], float32."""
        first = torch.tensor(self.first, dtype=torch.float64)
        return (first + voxels.double() * self.spacing).float()


class DensityGrid:
    """Raw densities of a cube, partly evaluated.

    values (M, M, M), M >= N: axis order [ix, iy, iz]; the voxels of the cube come first, and M - 1
    is a multiple of the first pass's spacing. is_known (M, M, M) marks the evaluated ones.

    density returns raw densities (P,) of points (P, 3) on the CPU; it is not called outside a ball
    of this radius around the origin, where the scene is empty (None is no bound). progress is
    called after each evaluation.
    """

    def __init__(
        self, density: Density, cube: Cube, *, radius: float | None, progress: Progress
    ) -> None:
        self.cube, self.radius = cube, radius
        self.first_step = first_step(cube.resolution)
        size = 1 + self.first_step * math.ceil((cube.resolution - 1) / self.first_step)
        self.values = torch.zeros(size, size, size)
        self.is_known = torch.zeros(size, size, size, dtype=torch.bool)
        self._density, self._progress = density, progress
        self._cap: Callable[[Tensor, Tensor], Tensor] | None = None
        self._done = self._needed = 0

    @property
    def inside(self) -> Tensor:
        """Return the values (N, N, N) of the cube itself, a view."""
        return self.values[(slice(self.cube.resolution),) * 3]

    def evaluate_first(self) -> Tensor:
        """Evaluate the first pass and return its values, a view."""
        self._evaluate_all(self.first_step)
        step = self.first_step
        return self.values[::step, ::step, ::step]

    def evaluate_dense(self) -> None:
        """Evaluate every voxel of the cube that is not known yet."""
        self._evaluate_all(1)

    def end_at_ball(self, level: float) -> None:
        """Close the surface at the ball: outside of it, force values below the level."""
        if self.radius is None:
            return
        radius, known = self.radius, self.is_known.view(-1).nonzero()[:, 0]
        values = self.values.view(-1)
        slope = float(values[known].std()) / self.cube.spacing

        def cap(points: Tensor, inner: Tensor) -> Tensor:
            return torch.minimum(inner, level + slope * (radius - points.norm(dim=1)))

        self._cap = cap
        for part in known.split(CHUNK):
            values[part] = cap(self.cube.points(self._voxels(part)), values[part])

    def refine(self, level: float) -> None:
        """Evaluate all voxels near the surface at level and interpolate the rest."""
        step = self.first_step
        while step > 1:
            step //= 2
            self._interpolate(step)
            blocks = self._mixed_cells(2 * step, level)
            while len(blocks):
                flat = self._block_voxels(blocks, step).flatten()
                self._evaluate(flat[~self.is_known.view(-1)[flat]].unique())
                blocks = self._mixed_blocks(_around(blocks, self._count(step)), step, level)

    def _count(self, step: int) -> int:
        """Return the number of blocks, two spacings of step wide, along each axis."""
        return (len(self.values) - 1) // (2 * step)

    def _evaluate_all(self, step: int) -> None:
        """Evaluate every step-th voxel that is not known yet, some planes at a time."""
        axis = torch.arange(0, len(self.values) if step > 1 else self.cube.resolution, step)
        wanted = self.is_known[: axis[-1] + 1 : step, : axis[-1] + 1 : step, : axis[-1] + 1 : step]
        self._needed += int((~wanted).sum())
        for planes in axis.split(max(1, CHUNK // len(axis) ** 2)):
            flat = self._flat(torch.cartesian_prod(planes, axis, axis))
            self._evaluate(flat[~self.is_known.view(-1)[flat]], is_announced=True)

    def _flat(self, voxels: Tensor) -> Tensor:
        size = len(self.values)
        return (voxels[..., 0] * size + voxels[..., 1]) * size + voxels[..., 2]

    def _voxels(self, flat: Tensor) -> Tensor:
        size = len(self.values)
        return torch.stack([flat // size**2, flat // size % size, flat % size], dim=1)

    def _evaluate(self, flat: Tensor, *, is_announced: bool = False) -> None:
        """Evaluate the voxels of flat indices (P,)."""
        self._needed += 0 if is_announced else len(flat)
        for part in flat.split(CHUNK):
            points = self.cube.points(self._voxels(part))
            found = self._within_ball(points)
            self.values.view(-1)[part] = found if self._cap is None else self._cap(points, found)
            self.is_known.view(-1)[part] = True
            self._done += len(part)
            self._progress(self._done, self._needed)

    def _within_ball(self, points: Tensor) -> Tensor:
        """Return densities (P,) of points (P, 3); 0 far outside the ball, where none are needed."""
        if self.radius is None:
            return self._density(points).to(self.values)
        margin = math.sqrt(3) * self.first_step * self.cube.spacing  # a cell of the first pass
        needed = (points.norm(dim=1) <= self.radius + margin).nonzero()[:, 0]
        found = torch.zeros(len(points))
        found[needed] = self._density(points[needed]).to(found)
        return found

    def _interpolate(self, step: int) -> None:
        """Interpolate unknown voxels at multiples of step from those of 2 step, axis by axis."""
        fine = self.values[::step, ::step, ::step]
        is_known = self.is_known[::step, ::step, ::step]
        for axis in range(3):
            coarser = [slice(None, None, 2 if later > axis else 1) for later in range(3)]
            values, known = fine[tuple(coarser)].movedim(axis, 0), is_known[tuple(coarser)]
            known = known.movedim(axis, 0)
            for i in range(1, len(values), 2):  # a plane at a time bounds the memory
                mean = (values[i - 1] + values[i + 1]) / 2
                values[i] = torch.where(known[i], values[i], mean)

    def _mixed_cells(self, spacing: int, level: float) -> Tensor:
        """Return the cells (K, 3) of a lattice whose corners lie on both sides of the level."""
        is_inside = self.values[::spacing, ::spacing, ::spacing] > level
        size = len(is_inside) - 1
        corners = [is_inside[i : i + size, j : j + size, k : k + size] for i, j, k in CORNERS]
        some, every = corners[0].clone(), corners[0].clone()
        for corner in corners[1:]:
            some |= corner
            every &= corner
        return (some & ~every).nonzero()

    def _block_voxels(self, blocks: Tensor, step: int) -> Tensor:
        """Return flat indices (K, 27) of the voxels of blocks (K, 3), two spacings wide."""
        offsets = torch.cartesian_prod(*[torch.arange(3)] * 3)
        return self._flat((2 * blocks[:, None] + offsets) * step)

    def _mixed_blocks(self, blocks: Tensor, step: int, level: float) -> Tensor:
        """Select the blocks (K, 3) that are partly unknown and lie on both sides of the level."""
        flat = self._block_voxels(blocks, step)
        is_inside = self.values.view(-1)[flat] > level
        is_mixed = is_inside.any(1) & ~is_inside.all(1)
        return blocks[is_mixed & ~self.is_known.view(-1)[flat].all(1)]


def first_step(resolution: int) -> int:
    """Return the first pass's spacing in voxels: at most STEP, less where the grid is small."""
    step = STEP
    while step > 1 and resolution < COARSE * step:
        step //= 2
    return step


def _around(blocks: Tensor, count: int) -> Tensor:
    """Return blocks (K, 3) and their 26 neighbours within count blocks an axis, each once."""
    offsets = torch.cartesian_prod(*[torch.arange(-1, 2)] * 3)
    near = (blocks[:, None] + offsets).flatten(0, 1)
    near = near[((near >= 0) & (near < count)).all(1)]
    flat = ((near[:, 0] * count + near[:, 1]) * count + near[:, 2]).unique()
    return torch.stack([flat // count**2, flat // count % count, flat % count], dim=1)
