"""Videos: correct colors, counts and times; repeatable bytes; atomic writes."""

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

from image_io import video
from system.errors import UsageError

ROOT = Path(video.__file__).parent.parent
COLORS = [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 40)]


def flat(color, height=32, width=48):
    return torch.tensor(color, dtype=torch.uint8)[:, None, None].expand(3, height, width)


def noise(count, size=16):
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), generator=rng).to(torch.uint8)


def moving_waves(count, size):
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    times = torch.arange(count) / count
    frames = [
        torch.stack([(9 * y + 6 * time).sin() ** 2 * x, y, (x * y + time) % 1]) for time in times
    ]
    return [(255 * frame).to(torch.uint8) for frame in frames]


def decoded(path):
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        # As the stream's tags say; av heeds them by itself from 17 on.
        frames = [
            frame.reformat(
                format="rgb24",
                src_colorspace=Colorspace.ITU709, dst_colorspace=Colorspace.ITU709,
                src_color_range=ColorRange.MPEG, dst_color_range=ColorRange.JPEG,
            ).to_ndarray()
            for frame in file.decode(stream)
        ]  # fmt: skip
        return stream, frames


def test_mp4_has_the_right_colors(tmp_path):
    path = tmp_path / "colors.mp4"
    video.save_video(path, [flat(color) for color in COLORS], kind="mp4", fps=10)
    _, frames = decoded(path)
    assert len(frames) == len(COLORS)
    for frame, color in zip(frames, COLORS, strict=True):
        assert frame.shape == (32, 48, 3)
        assert np.abs(frame.astype(int) - color).max() <= 3


def test_mp4_is_what_players_expect(tmp_path):
    path = tmp_path / "video.mp4"
    video.save_video(path, noise(7), kind="mp4", fps=12)
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        codec = stream.codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
        tags = (codec.color_primaries, codec.color_trc, codec.colorspace, codec.color_range)
        assert tags == (1, 1, 1, 1)  # BT.709, limited range
        assert stream.average_rate == 12
        assert float(stream.duration * stream.time_base) == pytest.approx(7 / 12, abs=1e-3)
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


@pytest.mark.parametrize(("height", "width"), [(15, 16), (16, 15), (9, 9), (1, 1)])
def test_odd_sizes_are_made_even(tmp_path, height, width):
    path = tmp_path / "odd.mp4"
    video.save_video(path, [flat((200, 120, 40), height, width)] * 3, kind="mp4", fps=25)
    _, frames = decoded(path)
    assert frames[0].shape == (height + height % 2, width + width % 2, 3)
    assert np.abs(frames[2].astype(int) - (200, 120, 40)).max() <= 3


@pytest.mark.parametrize("kind", ["mp4", "gif", "webp"])
def test_same_frames_same_bytes(tmp_path, kind):
    one, two = (tmp_path / f"{name}.{kind}" for name in "ab")
    # 100 x 100 is no multiple of H.264's blocks; the third video replaces an earlier one.
    for memory, path in enumerate((one, two, two)):
        _ = [bytes([memory + 1]) * 2**k for k in range(10, 23)]  # freed, for the encoder to find
        video.save_video(path, moving_waves(12, size=100), kind=kind, fps=25)
    assert one.read_bytes() == two.read_bytes()
    assert sorted(tmp_path.glob("[!.]*")) == [one, two]


def test_webp_keeps_every_color_and_time(tmp_path):
    frames, path = noise(5), tmp_path / "a.webp"
    video.save_video(path, frames, kind="webp", fps=24)
    with Image.open(path) as image:
        assert image.n_frames == 5
        assert image.info["loop"] == 0
        for index, frame in enumerate(frames):
            image.seek(index)
            shown = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
            assert torch.equal(shown, frame)


def test_a_gif_has_one_palette_and_the_right_length(tmp_path):
    path = tmp_path / "a.gif"
    video.save_video(path, [flat(color) for color in COLORS], kind="gif", fps=24)
    durations = []
    with Image.open(path) as image:
        assert image.info["loop"] == 0
        for index, color in enumerate(COLORS):
            image.seek(index)
            durations.append(image.info["duration"])
            assert np.abs(np.array(image.convert("RGB")).astype(int) - color).max() <= 3
    assert sum(durations) == 250
    assert set(durations) == {40, 50}


def test_backgrounds_of_a_gif_are_exact(tmp_path):
    path, frames = tmp_path / "a.gif", noise(4, 64)
    frames[:, :, :8], frames[:, :, 8:16] = 255, 0
    video.save_video(path, frames, kind="gif", fps=25)
    with Image.open(path) as image:
        image.seek(3)
        shown = np.array(image.convert("RGB"))
    assert (shown[:8] == 255).all()
    assert (shown[8:16] == 0).all()


def test_frames_are_a_folder_of_pictures(tmp_path):
    frames = noise(3)
    path = video.video_path(tmp_path, "7", "frames")
    video.save_video(path, frames, kind="frames", fps=25)
    assert sorted(file.name for file in path.glob("*.png")) == ["0000.png", "0001.png", "0002.png"]
    with Image.open(path / "0002.png") as image:
        assert torch.equal(torch.from_numpy(np.array(image)).permute(2, 0, 1), frames[2])
    video.check(path, "frames", 25, num_frames=3)
    with pytest.raises(UsageError, match="holds frames of a longer video"):
        video.check(path, "frames", 25, num_frames=2)


@pytest.mark.parametrize("kind", ["mp4", "gif", "webp"])
def test_an_interrupted_video_leaves_the_earlier_one(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    video.save_video(path, noise(2), kind=kind, fps=25)
    earlier = path.read_bytes()

    def interrupted():
        yield from noise(4)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        video.save_video(path, interrupted(), kind=kind, fps=25)
    assert path.read_bytes() == earlier
    assert list(tmp_path.glob("[!.]*")) == [path]


@pytest.mark.parametrize(("kind", "fps"), [("gif", 51), ("mp4", 241)])
def test_too_many_frames_per_second_are_refused(tmp_path, kind, fps):
    with pytest.raises(UsageError, match=f"--fps {fps}"):
        video.check(tmp_path / "a", kind, fps, 3)
    video.check(tmp_path / "a", kind, fps - 1, 3)


def test_what_is_in_the_way_is_said(tmp_path):
    (tmp_path / "0.mp4").mkdir()
    (tmp_path / "1").write_text("mine")
    for name, kind in (("0", "mp4"), ("1", "frames")):
        with pytest.raises(UsageError, match="choose another"):
            video.check(video.video_path(tmp_path, name, kind), kind, 25, 3)


def test_only_mp4_needs_pyav(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.delitem(sys.modules, "image_io.mp4", raising=False)
    monkeypatch.delattr("image_io.mp4", raising=False)
    with pytest.raises(UsageError, match="mp4: needs av; .* pip install av, or choose gif"):
        video.check(tmp_path / "a.mp4", "mp4", 25, 3)
    for kind in ("gif", "webp", "frames"):
        path = video.video_path(tmp_path, kind, kind)
        video.check(path, kind, 25, 1)
        video.save_video(path, [torch.zeros(3, 8, 8, dtype=torch.uint8)], kind=kind, fps=25)
        assert path.exists()


def test_commands_of_pictures_import_without_pyav():
    """Runs in a new process, in which no module has imported it before."""
    names = "render_multiview_images, render_video, inverse_render, extract_shapes, eval_metrics, "
    program = f"import sys; sys.modules['av'] = None; import {names} viewer"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
