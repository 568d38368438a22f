"""Camera paths are as documented, and closed."""

import math

import pytest

from generators import trajectories
from generators.trajectories import Camera

USUAL = Camera(1.2, 0.4, 12.0)
ALL = [
    trajectories.front,
    trajectories.orbit,
    trajectories.nodding_orbit,
    trajectories.around,
]
HALF, QUARTER = math.pi / 2, math.pi / 4


@pytest.mark.parametrize(
    ("move", "expected"),
    [
        (
            trajectories.front,
            [
                (HALF + 0.2, HALF, 17),
                (HALF, HALF + 0.4, 22),
                (HALF - 0.2, HALF, 17),
                (HALF, HALF - 0.4, 12),
            ],
        ),
        (trajectories.orbit, [(QUARTER, i * HALF, 12) for i in range(4)]),
        (
            trajectories.nodding_orbit,
            [
                (QUARTER + 0.2, 0, 12),
                (QUARTER, HALF, 12),
                (QUARTER - 0.2, math.pi, 12),
                (QUARTER, 3 * HALF, 12),
            ],
        ),
        (trajectories.around, [(1.2, 0.4, 12), (1.2, 0.9, 12), (1.2, 0.4, 12), (1.2, -0.1, 12)]),
    ],
)
def test_quarters_of_the_way(move, expected):
    for i, camera in enumerate(expected):
        assert move(i / 4, USUAL)[:3] == pytest.approx(camera)


@pytest.mark.parametrize("move", ALL)
def test_the_end_is_the_beginning(move):
    first, last = move(0.0, USUAL), move(1.0, USUAL)
    assert last.pitch == pytest.approx(first.pitch)
    assert last.fov_degrees == pytest.approx(first.fov_degrees)
    assert math.cos(last.yaw) == pytest.approx(math.cos(first.yaw))
    assert math.sin(last.yaw) == pytest.approx(math.sin(first.yaw), abs=1e-9)


def test_around_a_camera_near_the_pole_stays_off_it():
    near_pole = Camera(0.06, 0.0, 12.0)
    pitches = [trajectories.around(i / 36, near_pole).pitch for i in range(36)]
    assert min(pitches) == trajectories.POLE_DISTANCE


def test_cameras_turn_the_shorter_way():
    start, end = Camera(1.0, 0.1, 10.0), Camera(2.0, math.tau - 0.1, 20.0)
    assert start.lerp(end, 0.5)[:3] == pytest.approx((1.5, 0.0, 15.0))
    assert start.lerp(end, 0.0) == start
    assert math.cos(start.lerp(end, 1.0).yaw) == pytest.approx(math.cos(end.yaw))
