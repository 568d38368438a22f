"""Colors of toy cars: paint, windows, lights and wheels under a fixed light.

No color depends on the viewing direction.

Legend: (...) any number of points, each with the geometry of its car.
"""

import torch
from torch import Tensor

from scenes.toy_cars import Geometry, cabin_planes, part_distances

PILLAR = 0.011  # frame around the windows, scene units
CENTER_PILLAR = 0.005  # half of the one between a side's windows
WINDOW_SILL, WINDOW_HEAD = 0.007, 0.013  # from the belt and from the roof
TRIM_HEIGHT = 0.013  # dark strip above the underside
HUB_SHARE = 0.56  # of the wheel's radius
HEADLIGHT_RADIUS = 0.014
TAILLIGHT_HALF_SIZE = (0.009, 0.016)  # up and across

GLASS = (0.10, 0.14, 0.20)
TYRE = (0.10, 0.10, 0.11)
HUB = (0.82, 0.83, 0.86)
TRIM = (0.20, 0.20, 0.22)
HEADLIGHT = (1.00, 0.94, 0.66)
TAILLIGHT = (0.78, 0.04, 0.06)

LIGHT = (0.42, 0.80, 0.43)  # unit length, towards the light
AMBIENT = 0.46  # share of the light that comes from everywhere


def car_albedo(car: Geometry, paint: Tensor, points: Tensor) -> Tensor:
    """Return unshaded colors (3, ...) in [0, 1] of surface points (..., 3); paint is (3, ...)."""
    shell, wheels = part_distances(car, points)
    x, y, z = points.unbind(-1)
    z = z.abs()
    is_wheel = wheels < shell
    along, up = x.abs() - car.axle_x, y - car.axle_y
    is_hub = along * along + up * up < (HUB_SHARE * car.wheel_radius).square()
    up, across = y - 0.45 * car.floor - 0.55 * car.belt, z - 0.66 * car.half_width
    is_end = x.abs() > 0.86 * car.half_length
    is_round = up * up + across * across < HEADLIGHT_RADIUS**2
    half_up, half_across = TAILLIGHT_HALF_SIZE
    is_square = (up.abs() < half_up) & (across.abs() < half_across)
    layers = (
        (_is_window(car, x, y, z), GLASS),
        (y < car.floor + TRIM_HEIGHT, TRIM),
        (is_end & (x > 0) & is_round, HEADLIGHT),
        (is_end & (x < 0) & is_square, TAILLIGHT),
        (is_wheel, TYRE),
        (is_wheel & is_hub, HUB),
    )
    channels = []
    for channel, color in enumerate(paint):
        for is_here, layer in layers:
            color = color.masked_fill(is_here, layer[channel])
        channels.append(color)
    return torch.stack(channels)


def _is_window(car: Geometry, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Return whether points on the cabin at z > 0 are glass: all but corners, sill and roof."""
    ends, side = cabin_planes(car, x, y - car.belt, z)
    is_between = (y > car.belt + WINDOW_SILL) & (y < car.half_height - WINDOW_HEAD)
    middle = (car.cabin_front + car.cabin_rear) / 2
    is_end_window = side < -PILLAR
    is_side_window = (ends < -PILLAR) & ((x - middle).abs() > CENTER_PILLAR)
    return is_between & (is_end_window | is_side_window)


def brightness(normals: Tensor) -> Tensor:
    """Return the light (...) in [0, 1] that a matte surface with normals (..., 3) reflects."""
    x, y, z = normals.unbind(-1)
    # A soft cosine law: ambient light alone only where the surface faces straight away.
    facing = 0.5 + 0.5 * (x * LIGHT[0] + y * LIGHT[1] + z * LIGHT[2])
    return AMBIENT + (1 - AMBIENT) * facing * facing
