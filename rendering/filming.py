"""BOUNDARY: objects along a camera's way: the flags and frames that the video commands share."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from checkpoint_io.checkpoints import SavedGenerator
from generators.cameras import Poses
from generators.generators import View
from generators.pictures import depth_pictures, surface_depths
from generators.trajectories import Camera, SceneObject, Trajectory
from generators.volumetric_rendering import RenderOptions
from image_io import png, video
from rendering import camera_files, viewing
from siren.film import Film
from system import flags
from system.errors import UsageError, nearest

NUM_FRAMES = 36  # as published


def add_video(
    parser: argparse.ArgumentParser,
    trajectories: Mapping[str, Trajectory],
    *,
    default: str | None = None,
) -> None:
    """Add the flags of videos; for cameras and save. Without a default see usual_trajectory."""
    add = parser.add_argument
    usual = default or "orbit where the training cameras were all around, else front"
    add("--trajectory", default=default, metavar="|".join([*trajectories, "FILE"]),
        help="the camera's way; FILE is csv or json with pitch, yaw (radians) and fov (degrees) "
        f"of each frame; default: {usual}")  # fmt: skip
    add("--num_frames", type=flags.positive_int, help=f"frames of the camera's way; default: "
        f"{NUM_FRAMES}, or as many as FILE has")  # fmt: skip
    add("--fps", type=flags.positive_int, default=25, help="frames per second")
    add("--format", choices=video.FORMATS, default="mp4", help="frames is a folder of png")
    add("--depth_map", action="store_true", help="show the depth beside the colors")
    add("--batch_size", type=flags.positive_int, default=1, help="frames rendered at once")


def usual_trajectory(saved: SavedGenerator) -> str:
    """The way that stays where the training cameras were: from below a toy car has no floor."""
    is_around = saved.curriculum.settings.sample_dist == "spherical_uniform"
    return "orbit" if is_around else "front"


def cameras(
    args: argparse.Namespace, trajectories: Mapping[str, Trajectory], usual: Sequence[Camera]
) -> list[list[Camera]]:
    """Where each of several objects is seen from, frame by frame.

    Args:
        args: with the flags of add_video.
        trajectories: those that --trajectory can name.
        usual: the camera that each object is usually seen by.

    Raises:
        UsageError: --trajectory is neither a name nor a readable file, or leaves what can be seen.
    """
    if args.trajectory in trajectories:
        move, count = trajectories[args.trajectory], args.num_frames or NUM_FRAMES
        ways = [[move(i / count, camera) for i in range(count)] for camera in usual]
    else:
        _check_is_file(args.trajectory, trajectories)
        path = Path(args.trajectory)
        ways = [camera_files.read_cameras(path, camera.fov_degrees) for camera in usual]
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


def _check_is_file(text: str, trajectories: Mapping[str, Trajectory]) -> None:
    if not Path(text).suffix and not Path(text).exists():
        names = ", ".join(trajectories)
        raise UsageError(
            f"--trajectory {text}: is neither {names} nor a file.{nearest(text, trajectories)}"
        )


@torch.no_grad()
def views(
    saved: SavedGenerator,
    shots: Sequence[SceneObject],
    options: RenderOptions,
    *,
    batch_size: int,
    points_per_chunk: int,
    bar: "tqdm[None] | None" = None,
) -> Iterator[View]:
    """The views of shots, batch_size at a time, without randomness; bar is one of progress."""
    report = bar.update if bar is not None else lambda num_rays: None
    for start in range(0, len(shots), batch_size):
        part = shots[start : start + batch_size]
        pitch, yaw, fov = torch.tensor([shot.camera for shot in part]).unbind(1)
        film = Film(
            torch.cat([shot.film.frequencies for shot in part]),
            torch.cat([shot.film.phase_shifts for shot in part]),
        )
        yield saved.generator.render(
            film,
            Poses(pitch, yaw),
            options,
            points_per_chunk=points_per_chunk,
            fov_degrees=fov,
            report=report,
        )


def progress(num_views: int, options: RenderOptions) -> "tqdm[None]":
    """A bar that counts the rays of so many views: it moves within a large picture too."""
    return tqdm(total=num_views * options.image_size**2, unit="ray", unit_scale=True)


def pictures(view: View, options: RenderOptions, *, depth_map: bool) -> tuple[Tensor, ...]:
    """Uint8 pictures (B, 3, H, W): the colors, and with depth_map the depths."""
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
    bar: "tqdm[None]",
) -> Iterator[Tensor]:
    """Uint8 frames (3, H, W or 2 W), rendered as they are asked for; bar counts them."""
    for view in views(
        saved,
        shots,
        options,
        batch_size=args.batch_size,
        points_per_chunk=viewing.chunk_size(saved, args),
        bar=bar,
    ):
        yield from torch.cat(pictures(view, options, depth_map=args.depth_map), dim=3)


def destination(args: argparse.Namespace, folder: Path, name: str, num_frames: int) -> Path:
    """Where the video of that name goes.

    Raises:
        UsageError: it could not be written there, or not with the flags of add_video.
    """
    path = video.video_path(folder, name, args.format)
    video.check(path, args.format, args.fps, num_frames)
    return path
