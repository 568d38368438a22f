"""Random toy cars as signed distance fields.

A car stands upright with its bounding box centered at the origin, heads along +x and is symmetric
in z. Lengths are scene units (the camera is at distance 1). Its surface is a combination of planes
and a cylinder by sharp and smooth minima and maxima, none of which changes faster than its parts:
the signed distance never overestimates.

Legend: N cars, P points per car.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

NUM_DRAWS = 24  # uniform numbers that make a car
NORMAL_STEP = 4e-4  # scene units; of the finite differences of normals

WHEEL_BLEND = 0.012
WHEEL_OVERHANG = 0.003  # of the wheels over the body's sides
ARCH_GAP = 0.006  # between a wheel and the body around it
ARCH_BLEND = 0.006
CABIN_BLEND = 0.012  # of the crease between cabin and body
CABIN_CORNER_BLEND = 0.030
ROOF_BLEND = 0.025
HOOD_BLEND = 0.020


class Geometry(NamedTuple):
    """Parameters of a car's shape: (N,) each in ToyCars, else of any shape that fits the points.

    A surface that leans inwards as it rises is given by the cosine and sine of its angle to the
    vertical. The hood's are those of its angle to the horizontal.
    """

    half_length: Tensor  # at the floor
    half_width: Tensor
    half_height: Tensor  # from the middle to the roof, or to the ground
    floor: Tensor  # y of the body's underside
    belt: Tensor  # y of the body's upper side, on which the cabin stands
    corner_blend: Tensor  # rounding of the body as seen from above
    edge_blend: Tensor  # rounding of the body's upper and lower edges
    axle_x: Tensor  # center of the wheel at x, z > 0
    axle_y: Tensor
    axle_z: Tensor
    wheel_radius: Tensor
    half_wheel_width: Tensor
    cabin_front: Tensor  # x of the windscreen's foot, where the hood begins to fall
    cabin_rear: Tensor  # x of the rear window's foot
    half_cabin_width: Tensor  # at the belt
    end_cos: Tensor  # body at both ends
    end_sin: Tensor
    hood_cos: Tensor
    hood_sin: Tensor
    front_cos: Tensor  # windscreen
    front_sin: Tensor
    rear_cos: Tensor  # rear window
    rear_sin: Tensor
    side_cos: Tensor  # side windows
    side_sin: Tensor


@dataclass(frozen=True, eq=False)
class ToyCars:
    """Geometry, (N,) each, and paint (N, 3) in [0, 1] of N cars."""

    geometry: Geometry
    paint: Tensor

    def __len__(self) -> int:
        """Return the number of cars."""
        return len(self.paint)

    def __getitem__(self, index: Tensor | slice) -> "ToyCars":
        """Index the cars as the first axis of a tensor."""
        return ToyCars(Geometry(*(numbers[index] for numbers in self.geometry)), self.paint[index])


def cars_from_uniform(draws: Tensor) -> ToyCars:
    """Build cars from uniform random numbers (N, NUM_DRAWS) in [0, 1)."""
    columns = iter(draws.unbind(1))

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * next(columns)

    half_length, half_width = between(0.165, 0.198), between(0.080, 0.095)
    wheel_radius, half_wheel_width = between(0.031, 0.041), between(0.014, 0.020)
    clearance = wheel_radius * between(0.45, 0.70)
    belt = 2 * wheel_radius + between(0.012, 0.032)  # above the ground
    cabin_height = between(0.044, 0.066)
    half_height = (belt + cabin_height) / 2
    cabin_length = 2 * half_length * between(0.44, 0.74)
    behind = (2 * half_length - cabin_length) * between(0.06, 0.62)
    slant = cabin_length / cabin_height * between(0.12, 0.40)  # of both cabin ends together
    front_share = between(0.5, 0.85)
    geometry = Geometry(
        half_length,
        half_width,
        half_height,
        clearance - half_height,
        belt - half_height,
        between(0.035, 0.075),
        between(0.020, 0.050),
        half_length * between(0.55, 0.62),
        wheel_radius - half_height,
        half_width + WHEEL_OVERHANG - half_wheel_width,
        wheel_radius,
        half_wheel_width,
        behind + cabin_length - half_length,
        behind - half_length,
        half_width * between(0.86, 0.94),
        *_cos_sin(between(0.00, 0.22)),
        *_cos_sin(between(0.02, 0.16)),
        *_cos_sin(slant * front_share),
        *_cos_sin(slant * (1 - front_share)),
        *_cos_sin(between(0.12, 0.34)),
    )
    return ToyCars(geometry, _rgb(next(columns), between(0.45, 0.95), between(0.65, 0.98)))


def _cos_sin(slope: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of the angle whose tangent is slope."""
    cos = 1 / (1 + slope * slope).sqrt()
    return cos, slope * cos


def _rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Convert hue, saturation and value, each (N,) in [0, 1], to colors (N, 3)."""
    turns = hue[:, None] + torch.tensor([0.0, 2 / 3, 1 / 3])
    ramp = ((turns.remainder(1) * 6 - 3).abs() - 1).clamp(0, 1)
    return value[:, None] * (1 - saturation[:, None] * (1 - ramp))


def _smooth_max(a: Tensor, b: Tensor, blend: Tensor | float) -> Tensor:
    """Return the maximum, rounded where a and b differ by less than blend."""
    return torch.maximum(a, b) + _rounding(a, b, blend)


def _smooth_min(a: Tensor, b: Tensor, blend: Tensor | float) -> Tensor:
    """Return the minimum, rounded where a and b differ by less than blend."""
    return torch.minimum(a, b) - _rounding(a, b, blend)


def _rounding(a: Tensor, b: Tensor, blend: Tensor | float) -> Tensor:
    """Return the rounding of a crease: a parabola, blend / 4 high where a and b are equal."""
    overlap = ((a - b).abs() - blend).clamp(max=0)
    return overlap * overlap * (0.25 / blend)


def _wheel_distance(car: Geometry, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Return the signed distance to the wheel at x, z > 0, a rounded cylinder."""
    along, up = x - car.axle_x, y - car.axle_y
    square = along * along + up * up
    # rsqrt, because torch would split sqrt among threads, which takes longer than the root.
    radius = square * square.clamp(min=1e-12).rsqrt()
    axial = (z - car.axle_z).abs() - car.half_wheel_width
    return _smooth_max(radius - car.wheel_radius, axial, WHEEL_BLEND)


def cabin_planes(car: Geometry, x: Tensor, rise: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return signed distances to the cabin's nearer end and to its side, at z > 0."""
    front = (x - car.cabin_front) * car.front_cos + rise * car.front_sin
    rear = (car.cabin_rear - x) * car.rear_cos + rise * car.rear_sin
    side = (z - car.half_cabin_width) * car.side_cos + rise * car.side_sin
    return torch.maximum(front, rear), side


def _shell_distance(car: Geometry, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Return the signed distance to body and cabin at z > 0, without wheel arches."""
    rise, height = y - car.belt, y - car.floor
    ends = (x.abs() - car.half_length) * car.end_cos + height * car.end_sin
    around = _smooth_max(ends, z - car.half_width, car.corner_blend)
    hood = rise * car.hood_cos + (x - car.cabin_front) * car.hood_sin
    above = _smooth_max(rise, hood, HOOD_BLEND)
    body = _smooth_max(around, torch.maximum(above, -height), car.edge_blend)
    cabin_ends, cabin_side = cabin_planes(car, x, rise, z)
    cabin = _smooth_max(cabin_ends, cabin_side, CABIN_CORNER_BLEND)
    cabin = _smooth_max(cabin, torch.maximum(y - car.half_height, -CABIN_BLEND - rise), ROOF_BLEND)
    return _smooth_min(body, cabin, CABIN_BLEND)


def part_distances(car: Geometry, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return signed distances to the shell and to the wheels."""
    x, y, z = points.unbind(-1)
    z = z.abs()
    wheels = _wheel_distance(car, x.abs(), y, z)
    return _smooth_max(_shell_distance(car, x, y, z), ARCH_GAP - wheels, ARCH_BLEND), wheels


def car_distance(car: Geometry, points: Tensor) -> Tensor:
    """Return signed distances (...), negative inside, of points (..., 3) to cars (...)."""
    return torch.minimum(*part_distances(car, points))


def car_normals(car: Geometry, points: Tensor) -> Tensor:
    """Return unit normals (..., 3): gradients of car_distance over a small tetrahedron."""
    x, y, z = points.unbind(-1)
    total = torch.zeros(3, *x.shape)
    for signs in ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)):
        moved = [at + NORMAL_STEP * sign for at, sign in zip((x, y, z), signs, strict=True)]
        distance = car_distance(car, torch.stack(moved).movedim(0, -1))
        total += torch.stack([distance * sign for sign in signs])
    x, y, z = total
    return (total * (x * x + y * y + z * z).clamp(min=1e-24).rsqrt()).movedim(0, -1)
