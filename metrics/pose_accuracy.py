"""How well a discriminator's pose head knows the camera.

Legend: B images.
"""

import math
from typing import NamedTuple

from torch import Tensor

from generators.cameras import Poses


class PoseErrors(NamedTuple):
    """Absolute errors (B,) in degrees, each in [0, 180]."""

    pitch: Tensor
    yaw: Tensor


def pose_errors(predicted: Tensor, poses: Poses) -> PoseErrors:
    """Errors of predicted [pitch, yaw] (B, 2), radians, against the known poses.

    |wrapped difference| * 180 / pi, wrapped into [-180, 180): yaw is an angle around a circle.
    The head of the published encoders (Chan et al. 2021, supplement) learns raw radians, so that
    half a turn to either side of +-pi is far away for it and not for us.
    """

    def error(guess: Tensor, true: Tensor) -> Tensor:
        difference = guess.double() - true.to(guess.device).double()
        return ((difference + math.pi).remainder(2 * math.pi) - math.pi).abs().rad2deg()

    return PoseErrors(error(predicted[:, 0], poses.pitch), error(predicted[:, 1], poses.yaw))
