"""Camera paths are as documented, and closed."""

import math

import pytest

from generators import trajectories
from generators.trajectories import Camera

USUAL = Camera(1.2, 0.4, 12.0)
HALF, QUARTER = math.pi / 2, math.pi / 4
QUARTERS = {  # pitch, yaw and fov at each quarter of the way
    "front": ([HALF + 0.2, HALF, HALF - 0.2, HALF], [HALF, HALF + 0.4, HALF, HALF - 0.4],
              [17, 22, 17, 12]),
    "orbit": ([QUARTER] * 4, [0, HALF, math.pi, 3 * HALF], [12] * 4),
    "nodding_orbit": ([QUARTER + 0.2, QUARTER, QUARTER - 0.2, QUARTER],
                      [0, HALF, math.pi, 3 * HALF], [12] * 4),
    "around": ([1.2] * 4, [0.4, 0.9, 0.4, -0.1], [12] * 4),
}  # fmt: skip


@pytest.mark.parametrize("name", QUARTERS)
def test_quarters_of_the_way_and_its_end_is_its_beginning(name):
    move = getattr(trajectories, name)
    for i, camera in enumerate(zip(*QUARTERS[name], strict=True)):
        assert move(i / 4, USUAL) == pytest.approx(camera)
    first, last = move(0.0, USUAL), move(1.0, USUAL)
    turns = (last.yaw - first.yaw) / math.tau
    assert turns == pytest.approx(round(turns))
    assert last._replace(yaw=0) == pytest.approx(first._replace(yaw=0))


def test_around_a_camera_near_the_pole_stays_off_it():
    near_pole = Camera(0.06, 0.0, 12.0)
    pitches = [trajectories.around(i / 36, near_pole).pitch for i in range(36)]
    assert min(pitches) == trajectories.POLE_DISTANCE


def test_cameras_turn_the_shorter_way():
    start, end = Camera(1.0, 0.1, 10.0), Camera(2.0, math.tau - 0.1, 20.0)
    assert start.lerp(end, 0.5) == pytest.approx((1.5, 0.0, 15.0))
    assert start.lerp(end, 0.0) == start
    assert math.cos(start.lerp(end, 1.0).yaw) == pytest.approx(math.cos(end.yaw))
