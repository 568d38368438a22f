"""Camera paths of videos: pure functions of t in [0, 1) that close at t = 1.

Pitch and yaw are the angles of generators.cameras, whatever the curriculum's distribution is.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from generators.cameras import Poses, Rays, camera_origins, camera_rotations, rays_from
from siren.film import Film

POLE_DISTANCE = 0.05  # radians that turned cameras keep from straight up and down


class Camera(NamedTuple):
    """A camera at distance 1 from its target, the point that it looks at.

    pitch, yaw: direction from the target to the camera, radians. fov_degrees: angle of view over
    the picture's shorter side. target: scene units; that of training cameras is the origin.
    """

    pitch: float
    yaw: float
    fov_degrees: float
    target: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def pose(self) -> Poses:
        """Return pitch and yaw as tensors (1,)."""
        return Poses(torch.tensor([self.pitch]), torch.tensor([self.yaw]))

    def placed(self) -> tuple[Tensor, Tensor]:
        """Return the camera's place (1, 3) and its rotation (1, 3, 3) from camera to world."""
        pose = self.pose()
        return camera_origins(pose) + torch.tensor([self.target]), camera_rotations(pose)

    def rays(self, shape: tuple[int, int]) -> Rays:
        """Return the rays of a picture of shape (H, W)."""
        return rays_from(*self.placed(), shape, self.fov_degrees)

    def distance(self) -> float:
        """Return the origin's distance along the camera's axis; 1 unless target moved it."""
        place, rotation = self.placed()
        return float((place * rotation[..., 2]).sum())

    def turned(self, pitch: float, yaw: float) -> "Camera":
        """Return the camera turned by pitch and yaw, radians, kept off the poles."""
        lowest, highest = POLE_DISTANCE, math.pi - POLE_DISTANCE
        return self._replace(
            pitch=min(max(self.pitch + pitch, lowest), highest), yaw=self.yaw + yaw
        )

    def lerp(self, end: "Camera", weight: float) -> "Camera":
        """Interpolate from self at weight 0 to end at 1; yaw turns the shorter way."""
        turn = (end.yaw - self.yaw + math.pi) % math.tau - math.pi
        return Camera(
            self.pitch + weight * (end.pitch - self.pitch),
            self.yaw + weight * turn,
            self.fov_degrees + weight * (end.fov_degrees - self.fov_degrees),
        )


class SceneObject(NamedTuple):
    """An object seen from a camera: its name in file names and its conditioning (1, F)."""

    name: str
    film: Film
    camera: Camera

    def seen_from(self, camera: Camera) -> "SceneObject":
        """Return the same object seen from another camera."""
        return self._replace(camera=camera)


Trajectory = Callable[[float, Camera], Camera]  # from t and the usual camera of the object


def front(t: float, usual: Camera) -> Camera:
    """Sway in front of the object and zoom, as published."""
    turn = math.tau * t
    return Camera(
        math.pi / 2 + 0.2 * math.cos(turn),
        math.pi / 2 + 0.4 * math.sin(turn),
        usual.fov_degrees + 5 + 5 * math.sin(turn),
    )


def orbit(t: float, usual: Camera) -> Camera:
    """Circle the object once at 45 degrees, as published."""
    return Camera(math.pi / 4, math.tau * t, usual.fov_degrees)


def nodding_orbit(t: float, usual: Camera) -> Camera:
    """Circle the object while moving up and down: the published path of interpolations."""
    return Camera(math.pi / 4 + 0.2 * math.cos(math.tau * t), math.tau * t, usual.fov_degrees)


def around(t: float, usual: Camera) -> Camera:
    """Trace a horizontal figure eight that begins at the usual camera."""
    return usual.turned(0.15 * math.sin(2 * math.tau * t), 0.5 * math.sin(math.tau * t))


# Their names on the command line: in videos of one object and in interpolations.
TRAJECTORIES: dict[str, Trajectory] = {"front": front, "orbit": orbit, "around": around}
INTERPOLATION_TRAJECTORIES: dict[str, Trajectory] = {**TRAJECTORIES, "orbit": nodding_orbit}
