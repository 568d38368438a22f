"""BOUNDARY: frames to video files that play everywhere; no ffmpeg is needed on the system."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image
from torch import Tensor

from image_io import png
from system.errors import UsageError
from system.files import replaced

VideoFormat = Literal["mp4", "gif", "webp", "frames"]
FORMATS: tuple[VideoFormat, ...] = get_args(VideoFormat)
MAX_FPS, MAX_GIF_FPS = 240, 50  # browsers slow a gif down whose frames last under 20 ms
BT709 = 1  # the code of ITU-T H.273 for primaries, transfer curve and matrix
# One thread: with several the bytes depend on their number. The rate factor is nearly lossless.
X264 = {"crf": "16", "preset": "slow", "threads": "1"}
PALETTE_FRAMES = 16  # of which a gif's colors are chosen


def video_path(folder: Path, name: str, kind: VideoFormat) -> Path:
    """Where save_video puts a video of that name: a file, or a folder of frames."""
    return folder / (name if kind == "frames" else f"{name}.{kind}")


def check(path: Path, kind: VideoFormat, fps: int, num_frames: int) -> None:
    """Refuse what save_video could not do well, before any frame is rendered.

    Raises:
        UsageError: fps is too high, or what lies there already is in the way.
    """
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
        _save_mp4(path, frames, fps)
    elif kind == "gif":
        _save_gif(path, frames, fps)
    elif kind == "webp":
        _save_webp(path, frames, fps)
    else:
        for index, frame in enumerate(frames):
            png.save_png(path / f"{index:04d}.png", frame)


def _save_mp4(path: Path, frames: Iterable[Tensor], fps: int) -> None:
    rest = iter(frames)
    first = next(rest)
    height, width = (size + size % 2 for size in first.shape[1:])
    # "faststart" moves the index to the front, so that players begin before they have all of it.
    options = {"movflags": "+faststart"}
    with replaced(path) as draft, av.open(draft.name, "w", format="mp4", options=options) as file:
        stream = file.add_stream("libx264", rate=fps, options=X264)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        codec = stream.codec_context
        codec.color_primaries = codec.color_trc = codec.colorspace = BT709
        codec.color_range = ColorRange.MPEG
        for frame in itertools.chain([first], rest):
            file.mux(stream.encode(_yuv(frame)))
        file.mux(stream.encode(None))


def _yuv(frame: Tensor) -> av.VideoFrame:
    """A frame in BT.709 with limited range, which every player reads right.

    Chroma is kept per 2 x 2 pixels: an odd last row or column is repeated.
    """
    _, height, width = frame.shape
    rgb = np.pad(_pixels(frame), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(
        format="yuv420p",
        src_colorspace=Colorspace.ITU709,
        dst_colorspace=Colorspace.ITU709,
        src_color_range=ColorRange.JPEG,
        dst_color_range=ColorRange.MPEG,
    )


def _save_gif(path: Path, frames: Iterable[Tensor], fps: int) -> None:
    pictures = list(_pictures(frames))
    chosen = pictures[:: -(-len(pictures) // PALETTE_FRAMES)]
    sheet = np.concatenate([np.asarray(picture) for picture in chosen])
    palette = _palette(Image.fromarray(sheet))
    # Dithering would shimmer where the picture moves.
    indexed = [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in pictures]
    _save_animation(path, indexed, "GIF", _durations(len(indexed), fps, unit=10))


def _palette(picture: Image.Image) -> Image.Image:
    """256 colors for a picture; exact black and white among them, which are backgrounds."""
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
    """How long each frame is shown, ms, in multiples of unit whose sum is off by half a unit."""
    ends = [unit * round(Fraction(1000 * index, fps * unit)) for index in range(count + 1)]
    return [end - start for start, end in itertools.pairwise(ends)]


def _pictures(frames: Iterable[Tensor]) -> Iterator[Image.Image]:
    return (Image.fromarray(_pixels(frame)) for frame in frames)


def _pixels(frame: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    assert frame.dtype == torch.uint8
    return frame.permute(1, 2, 0).contiguous().numpy()
