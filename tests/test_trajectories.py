"""Camera paths are as documented, and closed; those of a user's csv file are checked."""

import math

import pytest

from generators import trajectories
from generators.trajectories import Camera
from rendering.filming import read_cameras
from system.errors import UsageError

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
        assert move(i / 4, USUAL)[:3] == pytest.approx(camera)
    first, last = move(0.0, USUAL), move(1.0, USUAL)
    turns = (last.yaw - first.yaw) / math.tau
    assert turns == pytest.approx(round(turns))
    assert last._replace(yaw=0)[:3] == pytest.approx(first._replace(yaw=0)[:3])


def test_around_a_camera_near_the_pole_stays_off_it():
    near_pole = Camera(0.06, 0.0, 12.0)
    pitches = [trajectories.around(i / 36, near_pole).pitch for i in range(36)]
    assert min(pitches) == trajectories.POLE_DISTANCE


def test_cameras_turn_the_shorter_way():
    start, end = Camera(1.0, 0.1, 10.0), Camera(2.0, math.tau - 0.1, 20.0)
    assert start.lerp(end, 0.5)[:3] == pytest.approx((1.5, 0.0, 15.0))
    assert start.lerp(end, 0.0) == start
    assert math.cos(start.lerp(end, 1.0).yaw) == pytest.approx(math.cos(end.yaw))


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        "pitch,yaw,fov\n1.5,0,12\n1.25,-2e-1,30\n",
        "\ufefffov, Yaw ,PITCH\r\n12,0,1.5\r\n\r\n30,-0.2,1.25\r\n",
    ],
)
def test_csv(tmp_path, text):
    path = write(tmp_path, "way.csv", text)
    assert read_cameras(path, 20.0) == [Camera(1.5, 0, 12), Camera(1.25, -0.2, 30)]


def test_the_angle_of_view_may_be_left_out(tmp_path):
    table = write(tmp_path, "way.csv", "yaw,pitch\n0,1.5\n")
    assert read_cameras(table, 20.0) == [Camera(1.5, 0, 20)]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "a.csv",
            "pitch,yaw\n1.5,0\n1.5,left\n",
            r"a\.csv, line 3: yaw must be a number, not ",
        ),
        ("a.csv", "pitch,yaw\n1.5,nan\n", "line 2: yaw must be a number, not 'nan'"),
        ("a.csv", "pitch,yaw\n1.5\n", "line 2: has 1 values, the header has 2"),
        ("a.csv", "pitch,yaw\n\n4,0\n", "line 3: pitch is 4.0, must be between 0 and pi"),
        ("a.csv", "pitch,yaw,fov\n1,0,180\n", "line 2: fov is 180.0, must be between 0 and 180"),
        ("a.csv", "pich,yaw\n1,0\n", "line 1: 'pich' is none of .* Did you mean 'pitch'"),
        ("a.csv", "pitch,fov\n1,12\n", "line 1: 'yaw' is missing"),
        ("a.csv", "pitch,yaw,yaw\n1,1,1\n", "line 1: 'yaw' is there twice"),
        ("a.json", '[{"pitch": 1, "yaw": 0}]', "line 1: .* is none of the columns pitch, yaw, fov"),
        ("a.csv", "1.5,0\n1.5,1\n", "line 1: '1.5' is none of"),
        ("a.csv", "", "line 1: 'pitch' is missing"),
        ("a.csv", "pitch,yaw\n", "holds no cameras"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_the_place(tmp_path, name, text, expected):
    with pytest.raises(UsageError, match=expected):
        read_cameras(write(tmp_path, name, text), 12.0)


def test_a_missing_or_binary_file_is_named(tmp_path):
    write(tmp_path, "orbits.csv", "pitch,yaw\n1,0\n")
    with pytest.raises(UsageError, match=r"no such file\. Did you mean .*orbits\.csv"):
        read_cameras(tmp_path / "orbit.csv", 12.0)
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read as text"):
        read_cameras(tmp_path / "a.csv", 12.0)
