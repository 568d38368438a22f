"""The dataset ToyCars: image i shows car i from pose i, both functions of (seed, i) alone.

Legend: B images.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from generators.cameras import PoseDistribution, Poses, sample_poses
from scenes.rendering import render_cars
from scenes.toy_cars import NUM_DRAWS, ToyCars, cars_from_uniform

FOV_DEGREES = 30.0
NEAR, FAR = 0.7, 1.3  # depths between which every car lies
QUARTER_BAND = math.pi / 4 * 85 / 90  # the poses reach from straight above almost to the horizon
TOY_CAR_POSES = PoseDistribution(
    kind="spherical_uniform",
    yaw_mean=math.pi / 2,
    yaw_spread=math.pi,
    pitch_mean=QUARTER_BAND,
    pitch_spread=QUARTER_BAND,
)
PIXELS_AT_ONCE = 2**20  # enough to outweigh overhead; takes some 300 MB of memory


class ToyCarBatch(NamedTuple):
    """Images (B, 3, H, W), uint8 on white, their camera poses and the B cars."""

    images: Tensor
    poses: Poses
    cars: ToyCars


def toy_car_scenes(
    indices: Sequence[int], *, seed: int, poses: PoseDistribution = TOY_CAR_POSES
) -> tuple[ToyCars, Poses]:
    """Return cars and camera poses of images of the dataset; poses is that of the cameras."""
    draws, angles = [], []
    for index in indices:
        rng = _stream(seed, index)
        draws.append(torch.rand(NUM_DRAWS, generator=rng))
        angles.append(sample_poses(poses, 1, rng=rng))
    pitch, yaw = (torch.cat(angle) for angle in zip(*angles, strict=True))
    return cars_from_uniform(torch.stack(draws)), Poses(pitch=pitch, yaw=yaw)


def toy_car_images(
    indices: Sequence[int], image_size: int, *, seed: int, supersampling: int = 3
) -> ToyCarBatch:
    """Render images of the dataset; an image has the same bytes in every batch.

    indices are the numbers of the images, at least one, for example range(1000, 2000); H = W =
    image_size pixels; seed is that of the dataset, supersampling as in render_cars.
    """
    cars, angles = toy_car_scenes(indices, seed=seed)
    images = torch.empty(len(cars), 3, image_size, image_size, dtype=torch.uint8)
    for part in torch.arange(len(cars)).split(max(1, PIXELS_AT_ONCE // image_size**2)):
        some = Poses(*(angle[part] for angle in angles))
        views = render_cars(cars[part], some, image_size, FOV_DEGREES, supersampling=supersampling)
        images[part] = (views.images * 255 + 0.5).to(torch.uint8)
    return ToyCarBatch(images, angles, cars)


def _stream(seed: int, index: int) -> torch.Generator:
    """Return the random stream of one image.

    PyTorch's CPU generator uses 32 bits of its seed. The stride is odd, so that all 2**32 are used
    before one repeats: within a dataset no two images are equal by collision.
    """
    start = (seed * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**64 >> 32
    return torch.Generator().manual_seed((start + index * 0x9E3779B1) % 2**32)
