"""Render frames along a camera path: the flags and functions that the video commands share."""

import argparse
import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from checkpoint_io.checkpoints import SavedGenerator
from generators.cameras import POLE_MARGIN, Poses
from generators.generators import View
from generators.pictures import depth_pictures, surface_depths
from generators.trajectories import Camera, SceneObject, Trajectory
from generators.volumetric_rendering import RenderOptions
from image_io import png, video
from siren.film import concatenated
from system import flags
from system.errors import UsageError, nearest, nearest_path
from system.screen import progress_bar

NUM_FRAMES = 36  # as published
MAX_FRAMES, MAX_BATCH = 100_000, 1000
REQUIRED = ("pitch", "yaw")  # columns of a file of cameras
COLUMNS = (*REQUIRED, "fov")


def add_video(
    parser: argparse.ArgumentParser,
    trajectories: Mapping[str, Trajectory],
    *,
    default: str | None = None,
) -> None:
    """Add the flags of videos, for cameras and destination; default is that of --trajectory."""
    add = parser.add_argument
    usual = (
        "" if default else "; default: orbit if the training cameras were all around, else front"
    )
    add("--trajectory", default=default, metavar="|".join([*trajectories, "FILE"]),
        help="the camera path; FILE is csv with pitch, yaw (radians) and fov (degrees) of each "
        f"frame{usual}")  # fmt: skip
    add("--num_frames", type=flags.whole(1, MAX_FRAMES), help="frames of the camera path; default: "
        f"{NUM_FRAMES}, or as many as FILE has")  # fmt: skip
    add("--fps", type=flags.positive_int, default=25, help="frames per second")
    add("--format", choices=video.FORMATS, default="mp4", help="frames is a folder of png")
    add("--depth_map", action="store_true", help="show the depth beside the colors")
    add("--batch_size", type=flags.whole(1, MAX_BATCH), default=1, help="frames rendered at once")


def usual_trajectory(saved: SavedGenerator) -> str:
    """Choose the path that stays where the training cameras were: a toy car has no underside."""
    is_around = saved.curriculum.settings.sample_dist == "spherical_uniform"
    return "orbit" if is_around else "front"


def cameras(
    args: argparse.Namespace, trajectories: Mapping[str, Trajectory], usual: Sequence[Camera]
) -> list[list[Camera]]:
    """Return the camera path of each object, one camera per frame.

    trajectories are those that --trajectory can name; usual has one camera per object: the middle
    of the training cameras, or that of its photo. Raises UsageError if --trajectory is neither a
    name nor a readable file, or leaves what can be seen.
    """
    if args.trajectory in trajectories:
        move, count = trajectories[args.trajectory], args.num_frames or NUM_FRAMES
        ways = [[move(i / count, camera) for i in range(count)] for camera in usual]
    else:
        path = Path(args.trajectory)
        if not path.suffix and not path.exists():
            hint = nearest(args.trajectory, trajectories)
            text = f"is neither {', '.join(trajectories)} nor a file.{hint}"
            raise UsageError(f"--trajectory {path}: {text}")
        ways = [read_cameras(path, camera.fov_degrees) for camera in usual]
        if args.num_frames not in (None, len(ways[0])):
            raise UsageError(
                f"--num_frames {args.num_frames}: {path} has {len(ways[0])}; leave the flag out"
            )
    widest = max(camera.fov_degrees for way in ways for camera in way)
    if widest >= 180:
        raise UsageError(
            f"--trajectory {args.trajectory}: its angle of view would reach {widest:g} degrees"
        )
    return ways


def read_cameras(path: Path, fov_degrees: float) -> list[Camera]:
    """Read one camera per line of a csv file: pitch and yaw in radians, fov in degrees.

    fov, the full angle of view, may be left out; fov_degrees is taken then. Raises UsageError,
    which names the line, if the file cannot be read.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file.{nearest_path(path)}")
    try:
        text = path.read_text("utf-8-sig")  # spreadsheets begin their csv with a byte-order mark
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as text ({error})") from error
    reader = csv.reader(text.splitlines())
    header = [name.strip().lower() for name in next(reader, [])]
    _check_header(f"{path}, line 1", header)
    rows = ((f"{path}, line {reader.line_num}", row) for row in reader if "".join(row).strip())
    found = [_camera(where, header, row, fov_degrees) for where, row in rows]
    if not found:
        raise UsageError(f"{path}: holds no cameras")
    return found


def _check_header(where: str, names: list[str]) -> None:
    columns = ", ".join(COLUMNS)
    for name in names:
        if name not in COLUMNS:
            hint = nearest(name, COLUMNS)
            raise UsageError(f"{where}: {name!r} is none of the columns {columns}.{hint}")
        if names.count(name) > 1:
            raise UsageError(f"{where}: {name!r} is there twice")
    for name in REQUIRED:
        if name not in names:
            raise UsageError(f"{where}: {name!r} is missing; the columns are {columns}")


def _camera(where: str, header: list[str], row: list[str], fov_degrees: float) -> Camera:
    if len(row) != len(header):
        raise UsageError(f"{where}: has {len(row)} values, the header has {len(header)}")
    values = {"fov": fov_degrees}
    for name, text in zip(header, row, strict=True):
        try:
            values[name] = flags.finite_float(text)
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"{where}: {name} {error}") from error
    pitch, fov = values["pitch"], values["fov"]
    if not POLE_MARGIN <= pitch <= math.pi - POLE_MARGIN:
        raise UsageError(f"{where}: pitch is {pitch}, must be between 0 and pi radians")
    if not 0 < fov < 180:
        raise UsageError(f"{where}: fov is {fov}, must be between 0 and 180 degrees")
    return Camera(pitch, values["yaw"], fov)


@torch.no_grad()
def views(
    saved: SavedGenerator,
    shots: Sequence[SceneObject],
    options: RenderOptions,
    *,
    batch_size: int = 1,
    bar: "tqdm[int] | None" = None,
) -> Iterator[View]:
    """Render shots, batch_size at a time, without randomness; bar counts the rays."""
    report = bar.update if bar is not None else lambda num_rays: None
    for start in range(0, len(shots), batch_size):
        part = shots[start : start + batch_size]
        pitch, yaw, fov = torch.tensor([shot.camera[:3] for shot in part]).unbind(1)
        film = concatenated([shot.film for shot in part])
        yield saved.generator.render(
            film, Poses(pitch, yaw), options, fov_degrees=fov, report=report
        )


def progress(num_views: int, options: RenderOptions, *, is_shown: bool = True) -> "tqdm[int]":
    """Make a bar that counts the rays of all views: it moves within a large picture too."""
    num_rays = num_views * options.image_size**2
    return progress_bar(num_rays, "ray", is_scaled=True, is_shown=is_shown)


def pictures(view: View, options: RenderOptions, *, depth_map: bool) -> tuple[Tensor, ...]:
    """Return uint8 pictures (B, 3, H, W): the colors, and with depth_map the depths."""
    colors = png.to_uint8(view.images)
    if not depth_map:
        return (colors,)
    depths = surface_depths(view, options)
    return colors, png.to_uint8(depth_pictures(depths, options))


def frames(
    saved: SavedGenerator,
    shots: Sequence[SceneObject],
    options: RenderOptions,
    args: argparse.Namespace,
    bar: "tqdm[int]",
) -> Iterator[Tensor]:
    """Yield uint8 frames (3, H, W or 2 W), rendered as they are asked for; bar counts the rays."""
    for view in views(saved, shots, options, batch_size=args.batch_size, bar=bar):
        yield from torch.cat(pictures(view, options, depth_map=args.depth_map), dim=3)


def destination(args: argparse.Namespace, folder: Path, name: str, num_frames: int) -> Path:
    """Return the path of the video of that name; UsageError if add_video's flags rule it out."""
    path = video.video_path(folder, name, args.format)
    video.check(path, args.format, args.fps, num_frames)
    return path
