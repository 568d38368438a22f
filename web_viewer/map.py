"""BOUNDARY: a small map of where training cameras stood and where the visitor's stands, as SVG."""

import math

import torch

from generators.cameras import PoseDistribution, Poses, camera_origins, sample_poses
from web_viewer.request import Eye

NUM_DOTS, NUM_CAMERAS = 300, 2000  # drawn; and asked whether a camera is among them
FAMILIAR = math.radians(8)  # from the nearest training camera at most
FRAME = "width:100%;display:block;border:1px solid #8886;border-radius:4px"
BLUE, GREEN, ORANGE = "#4dabf7", "#20c997", "#fd7e14"
WIDTH, HEIGHT = 240, 120  # of 360 degrees of yaw and 180 of pitch


class PoseMap:
    """The training cameras of a curriculum, seen from outside."""

    def __init__(self, distribution: PoseDistribution) -> None:
        poses = sample_poses(distribution, NUM_CAMERAS, rng=torch.Generator().manual_seed(0))
        self._places = camera_origins(poses)  # (NUM_CAMERAS, 3)
        self._middle = distribution.yaw_mean
        dots = zip(*(angles[:NUM_DOTS].tolist() for angles in poses), strict=True)
        self._dots = "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
            for x, y in (self._on_map(pitch, yaw) for pitch, yaw in dots)
        )

    def _on_map(self, pitch: float, yaw: float) -> tuple[float, float]:
        """Left to right as the camera moves to the picture's right: yaw falls (see cameras)."""
        turn = (self._middle - yaw + math.pi) % math.tau  # the middle is half way
        return WIDTH * turn / math.tau, HEIGHT * pitch / math.pi

    def is_familiar(self, eye: Eye) -> bool:
        """Whether a training camera stood about there."""
        pose = Poses(torch.tensor([eye.pitch]), torch.tensor([eye.yaw]))
        nearest = (self._places @ camera_origins(pose)[0]).max().clamp(-1, 1)
        return math.acos(float(nearest)) <= FAMILIAR

    def svg(self, eye: Eye) -> str:
        """The map with the camera of eye on it, and a line of words."""
        x, y = self._on_map(eye.pitch, eye.yaw)
        color, words = GREEN, "as in training"
        if not self.is_familiar(eye):
            color, words = ORANGE, "beyond the training cameras"
        pitch, yaw = (f"{math.degrees(angle):.0f}" for angle in (eye.pitch, eye.yaw))
        return (
            f'<div style="padding:0 1em"><svg viewBox="0 0 {WIDTH} {HEIGHT}" style="{FRAME}" '
            'role="img" aria-label="training cameras and this camera">'
            f'<g fill="{BLUE}" opacity="0.25">{self._dots}</g>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{color}" stroke="#fff" '
            'stroke-width="1.5"/></svg>'
            f'<div style="font-size:0.8em">pitch {pitch}°, yaw {yaw}°, angle of view '
            f'{eye.fov_degrees:.1f}°: <span style="color:{color}">{words}</span></div></div>'
        )
