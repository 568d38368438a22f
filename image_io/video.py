"""Write frames as a video: mp4, gif, webp, or a folder of png."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image
from torch import Tensor

from image_io import png
from system.errors import UsageError
from system.files import replaced

VideoFormat = Literal["mp4", "gif", "webp", "frames"]
FORMATS: tuple[VideoFormat, ...] = get_args(VideoFormat)
MAX_FPS, MAX_GIF_FPS = 240, 50  # browsers slow a gif down whose frames last under 20 ms
PALETTE_FRAMES = 16  # of which a gif's colors are chosen


def video_path(folder: Path, name: str, kind: VideoFormat) -> Path:
    """Return the path that save_video takes for a name: a file, or a folder of frames."""
    return folder / (name if kind == "frames" else f"{name}.{kind}")


def check(path: Path, kind: VideoFormat, fps: int, num_frames: int) -> None:
    """Check before any frame is rendered that save_video can do what is asked for.

    Raises:
        UsageError: fps is too high, PyAV is missing, or what lies there already is in the way.
    """
    if kind == "mp4":
        _mp4_writer()
    limit = MAX_GIF_FPS if kind == "gif" else MAX_FPS
    if fps > limit:
        raise UsageError(f"--fps {fps}: at most {limit} for {kind}")
    if path.exists() and path.is_dir() != (kind == "frames"):
        is_what = "a folder" if path.is_dir() else "a file"
        raise UsageError(f"{path}: is {is_what}; choose another --output_dir or --format")
    if kind != "frames":
        return
    older = [int(file.stem) for file in path.glob("*.png") if file.stem.isdecimal()]
    if max(older, default=-1) >= num_frames:
        raise UsageError(
            f"{path}: holds frames of a longer video, which would mix with the {num_frames} new "
            "ones; remove them or choose another --output_dir"
        )


def save_video(path: Path, frames: Iterable[Tensor], *, kind: VideoFormat, fps: int) -> None:
    """Write uint8 frames (3, H, W) under path, whole or not at all; replaces an earlier video.

    The same frames give the same bytes. mp4 (H.264) and frames are written as they come; gif and
    webp, which repeat for ever, keep all frames in memory first. A webp keeps every color exactly,
    a gif has 256 colors for all its frames, so that none flickers. Frames are whole one by one.
    """
    if kind == "mp4":
        _mp4_writer()(path, frames, fps)
    elif kind == "gif":
        _save_gif(path, frames, fps)
    elif kind == "webp":
        _save_webp(path, frames, fps)
    else:
        for index, frame in enumerate(frames):
            png.save_png(path / f"{index:04d}.png", frame)


def _mp4_writer() -> Callable[[Path, Iterable[Tensor], int], None]:
    """Import what only mp4 needs.

    Raises:
        UsageError: it is not installed.
    """
    try:
        from image_io.mp4 import save_mp4
    except ModuleNotFoundError as error:
        others = ", ".join(kind for kind in FORMATS if kind != "mp4")
        raise UsageError(
            f"--format mp4: needs {error.name}; install it with: pip install av, or choose {others}"
        ) from error
    return save_mp4


def _save_gif(path: Path, frames: Iterable[Tensor], fps: int) -> None:
    pictures = list(_pictures(frames))
    chosen = pictures[:: -(-len(pictures) // PALETTE_FRAMES)]
    sheet = np.concatenate([np.asarray(picture) for picture in chosen])
    palette = _palette(Image.fromarray(sheet))
    # Dithering would shimmer where the picture moves.
    indexed = [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in pictures]
    _save_animation(path, indexed, "GIF", _durations(len(indexed), fps, unit=10))


def _palette(picture: Image.Image) -> Image.Image:
    """Choose 256 colors for a picture, exact black and white among them: they are backgrounds."""
    chosen = picture.quantize(254, Image.Quantize.MEDIANCUT).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([0, 0, 0, 255, 255, 255, *chosen])
    return palette


def _save_webp(path: Path, frames: Iterable[Tensor], fps: int) -> None:
    pictures = list(_pictures(frames))
    _save_animation(path, pictures, "WEBP", _durations(len(pictures), fps, unit=1), lossless=True)


def _save_animation(
    path: Path, pictures: Sequence[Image.Image], form: str, durations: list[int], **options: Any
) -> None:
    first, *rest = pictures
    with replaced(path) as draft:
        first.save(
            draft, form, save_all=True, append_images=rest, duration=durations, loop=0, **options
        )


def _durations(count: int, fps: int, *, unit: int) -> list[int]:
    """Return frames' durations in ms, multiples of unit; their sum is exact to half a unit."""
    ends = [unit * round(Fraction(1000 * index, fps * unit)) for index in range(count + 1)]
    return [end - start for start, end in itertools.pairwise(ends)]


def _pictures(frames: Iterable[Tensor]) -> Iterator[Image.Image]:
    return (Image.fromarray(png.to_array(frame)) for frame in frames)
