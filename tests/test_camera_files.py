"""Camera paths from a user's csv file, and the messages about a wrong file."""

import pytest

from generators.trajectories import Camera
from rendering.filming import read_cameras
from system.errors import UsageError


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
            r"a\.csv, line 3: yaw must be a number, not 'left'",
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


def test_a_missing_or_binary_file_is_said(tmp_path):
    write(tmp_path, "orbits.csv", "pitch,yaw\n1,0\n")
    with pytest.raises(UsageError, match=r"no such file\. Did you mean .*orbits\.csv"):
        read_cameras(tmp_path / "orbit.csv", 12.0)
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read as text"):
        read_cameras(tmp_path / "a.csv", 12.0)
