"""Camera paths of videos: pure functions of t in [0, 1) that close at t = 1.

Pitch and yaw are the angles of generators.cameras, whatever the curriculum's distribution is.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from siren.film import Film

POLE_DISTANCE = 0.05  # radians that turned cameras keep from straight up and down


class Camera(NamedTuple):
    """Pitch and yaw in radians, the full angle of view in degrees."""

    pitch: float
    yaw: float
    fov_degrees: float

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
