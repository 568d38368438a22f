"""Write mp4 files (H.264) that play everywhere, with the encoder inside PyAV."""

import itertools
from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from torch import Tensor

from image_io.png import to_array
from system.files import replaced

BT709 = 1  # the code of ITU-T H.273 for primaries, transfer curve and matrix
# The rate factor is nearly lossless. One thread: with several the bytes depend on their number.
# No macroblock tree: its vector code reads memory that nothing was written to where a size is no
# multiple of 16 (100 x 100: other bytes from each of 12 calls).
X264 = {"crf": "16", "preset": "slow", "threads": "1", "mbtree": "0"}


def save_mp4(path: Path, frames: Iterable[Tensor], fps: int) -> None:
    """Write uint8 frames (3, H, W) as they come, whole or not at all."""
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
    """Convert a frame to BT.709 with limited range, which every player reads right.

    Chroma is kept per 2 x 2 pixels: an odd last row or column is repeated.
    """
    _, height, width = frame.shape
    rgb = np.pad(to_array(frame), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(
        format="yuv420p",
        src_colorspace=Colorspace.ITU709,
        dst_colorspace=Colorspace.ITU709,
        src_color_range=ColorRange.JPEG,
        dst_color_range=ColorRange.MPEG,
    )
