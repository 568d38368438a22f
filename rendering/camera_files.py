"""BOUNDARY: a person's file of cameras, one per frame: csv with a header, or json.

Columns or keys: pitch and yaw in radians; fov, the full angle of view in degrees, may be left out.
"""

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from generators.cameras import POLE_MARGIN
from generators.trajectories import Camera
from system.errors import UsageError, nearest, nearest_path

REQUIRED, OPTIONAL = ("pitch", "yaw"), ("fov",)
COLUMNS = (*REQUIRED, *OPTIONAL)


def read_cameras(path: Path, fov_degrees: float) -> list[Camera]:
    """The cameras in a file; fov_degrees is the angle of view where the file gives none.

    Raises:
        UsageError: the file cannot be read; the text names the line.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file.{nearest_path(path)}")
    try:
        text = path.read_text("utf-8-sig")  # spreadsheets begin their csv with a byte-order mark
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as text ({error})") from error
    rows = _json_rows(path, text) if path.suffix.lower() == ".json" else _csv_rows(path, text)
    cameras = [_camera(where, row, fov_degrees) for where, row in rows]
    if not cameras:
        raise UsageError(f"{path}: holds no cameras")
    return cameras


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.reader(text.splitlines())
    header = [name.strip().lower() for name in next(reader, [])]
    _check_names(f"{path}, line 1", header)
    for row in reader:
        if not any(cell.strip() for cell in row):
            continue
        where = f"{path}, line {reader.line_num}"
        if len(row) != len(header):
            raise UsageError(f"{where}: has {len(row)} values, the header has {len(header)}")
        yield where, dict(zip(header, row, strict=True))


def _json_rows(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}, line {error.lineno}: is no json ({error.msg})") from error
    if not isinstance(content, list):
        raise UsageError(f'{path}: must be a list such as [{{"pitch": 1.5, "yaw": 1.6}}, ...]')
    for number, row in enumerate(content, start=1):
        where = f"{path}, camera {number}"
        if not isinstance(row, dict):
            raise UsageError(f"{where}: must be an object with pitch, yaw and fov")
        _check_names(where, list(row))
        yield where, row


def _check_names(where: str, names: list[str]) -> None:
    for name in names:
        if name not in COLUMNS or names.count(name) > 1:
            reason = "is there twice" if name in COLUMNS else f"is none of {', '.join(COLUMNS)}"
            raise UsageError(f"{where}: {name!r} {reason}.{nearest(name, COLUMNS)}".rstrip("."))
    for name in REQUIRED:
        if name not in names:
            raise UsageError(f"{where}: {name!r} is missing; wanted are {', '.join(COLUMNS)}")


def _camera(where: str, row: dict[str, Any], fov_degrees: float) -> Camera:
    pitch, yaw = (_number(where, name, row[name]) for name in REQUIRED)
    fov = _number(where, "fov", row["fov"]) if "fov" in row else fov_degrees
    if not POLE_MARGIN <= pitch <= math.pi - POLE_MARGIN:
        raise UsageError(f"{where}: pitch is {pitch}, must be between 0 and pi radians")
    if not 0 < fov < 180:
        raise UsageError(f"{where}: fov is {fov}, must be between 0 and 180 degrees")
    return Camera(pitch, yaw, fov)


def _number(where: str, name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or isinstance(value, bool):
        raise UsageError(f"{where}: {name} is {value!r}, not a number")
    return number
