"""A thousand damaged pictures from strangers: each is used rightly, or skipped and named."""

import io
import json
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import datasets
from image_io.decoding import Framing, decode_all
from image_io.files import Skipped, find_pictures, opened
from system.errors import UsageError

SIZE = 16
FRAMING = Framing(image_size=SIZE, crop="center", resize="antialias")
ROOT = Path(__file__).parent.parent
ROUNDS = 34  # of about thirty kinds


def pixels(rng, width=40, height=30):
    """Return a noisy picture, red above and blue below, so that its orientation shows."""
    image = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
    image[: height // 2, :, 0] += 180
    image[height // 2 :, :, 2] += 180
    return Image.fromarray(image)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_of_declared_size(width, height):
    """Return a small PNG file that declares a huge picture."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(
            ">I", zlib.crc32(name + body))  # fmt: skip

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10_000)))
        + chunk(b"IEND", b"")
    )


def flipped(data, rng, count=3):
    """Return data with some bits flipped behind the header."""
    damaged = bytearray(data)
    for place in rng.integers(len(data) // 4, len(data), count):
        damaged[place] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def turned(image, orientation):
    """Return a rotated jpg whose EXIF orientation makes it upright."""
    back = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90,
            8: Image.Transpose.ROTATE_270}[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying = image if back is None else image.transpose(back)
    return encoded(lying, "JPEG", exif=exif, quality=95)


def grey16(rng):
    values = rng.integers(0, 2**16, (30, 40), dtype=np.uint16)
    return encoded(Image.fromarray(values))


def animated(rng, kind):
    frames = [pixels(rng), Image.new("RGB", (40, 30), "green")]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


# (expected outcome, name, bytes): "use" upright, "any" used or skipped, "skip" skipped.
def files(rng, number):
    image = pixels(rng)
    png, jpg, webp = (encoded(image, kind) for kind in ("PNG", "JPEG", "WEBP"))
    cut = int(rng.integers(1, len(jpg) - 2))
    yield "use", "plain.png", png
    yield "use", "right.JPEG", jpg
    yield "use", "wrong_suffix.png", jpg
    yield "use", "wrong_suffix.jpg", webp
    yield "use", "with space.jpg", jpg
    yield "use", "new\nline.jpg", jpg
    yield "use", b"not_utf8_\xff\xfe.png", png
    yield "use", "cmyk.jpg", encoded(image.convert("CMYK"), "JPEG")
    yield "use", "animated.webp", animated(rng, "WEBP")
    yield "use", "animated.png", animated(rng, "PNG")
    for orientation in (3, 6, 8):
        yield "use", f"turned{orientation}.jpg", turned(image, orientation)
    yield "use", "palette.png", encoded(image.quantize(64))
    yield "use", "alpha.png", encoded(image.convert("RGBA"))
    yield "grey", "grey16.png", grey16(rng)
    yield "skip", "cut.png", png[: int(rng.integers(9, len(png) - 20))]
    yield "skip", "cut.jpg", jpg[: max(3, min(cut, len(jpg) - 400))]
    yield "skip", "cut.webp", webp[: int(rng.integers(13, len(webp) - 20))]
    yield "skip", "empty.png", b""
    yield "skip", "zeros.jpg", bytes(int(rng.integers(1, 5000)))
    yield "skip", "noise.png", rng.bytes(int(rng.integers(1, 5000)))
    yield "skip", "bomb.png", png_of_declared_size(int(rng.integers(9_000, 2**31)), 60_000)
    yield "use", "gif.png", encoded(image.convert("P"), "GIF")
    yield "use", "tiff.jpg", encoded(image, "TIFF")
    yield "skip", "page.jpg", b"<!doctype html><title>404</title>" + rng.bytes(50)
    yield "skip", "zip.png", zip_of({"a.png": png})
    yield "any", "flipped.png", flipped(png, rng)
    yield "any", "flipped.jpg", flipped(jpg, rng)
    yield "any", "flipped.webp", flipped(webp, rng)


def zip_of(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def is_upright(result):
    """Return whether a picture is red above and blue below."""
    above, below = result[:, : SIZE // 2 - 1], result[:, SIZE // 2 + 1 :]
    return above[0].mean() > above[2].mean() + 60 and below[2].mean() > below[0].mean() + 60


def check(wanted, result):
    if wanted == "skip":
        return isinstance(result, Skipped) and result.name.isprintable()
    if wanted == "any" and isinstance(result, Skipped):
        return result.reason.isprintable()
    if isinstance(result, Skipped):
        return False
    assert result.shape == (3, SIZE, SIZE)
    assert result.dtype == np.uint8
    if wanted == "grey":
        return (result[0] == result[1]).all() and result.std() > 5
    return wanted == "any" or is_upright(result)


def write_folder(folder, rounds):
    """Write files in sub-folders; return the expected outcome of each by relative name."""
    wanted = {}
    for number in range(rounds):
        rng = np.random.default_rng(number)
        inner = folder / f"round {number}"
        inner.mkdir(parents=True)
        for outcome, name, data in files(rng, number):
            path = os.path.join(os.fsencode(inner), os.fsencode(name))
            with open(path, "wb") as file:
                file.write(data)
            wanted[os.path.relpath(os.fsdecode(path), folder)] = outcome
        os.symlink(inner, inner / "loop")  # links in circles, up, and to nowhere
        os.symlink(folder, inner / "up")
        os.symlink("nowhere.png", inner / "dangling.png")
        os.symlink("self.png", inner / "self.png")
        os.mkfifo(inner / "pipe.png")
        for name in ("dangling.png", "self.png", "pipe.png"):
            wanted[f"round {number}/{name}"] = "skip"
    return wanted


def outcomes(path):
    """Return {name: pixels or Skipped} of all picture files at path, and their listing."""
    listing = find_pictures(str(path))
    with opened(listing) as open_file:
        blocks = list(decode_all(open_file, listing.names, FRAMING))
    results = dict(zip(listing.names, [item for block in blocks for item in block], strict=True))
    return results, listing


def verify(results, listing, wanted):
    """Check every outcome and count them by kind."""
    from image_io.files import printable

    results |= {
        name: item
        for name in wanted
        for item in listing.skipped
        if name not in results and printable(name) == item.name
    }
    assert set(results) == set(wanted)
    wrong = {n: str(results[n])[:90] for n in wanted if not check(wanted[n], results[n])}
    assert not wrong
    return Counter(
        "skipped and named" if isinstance(results[name], Skipped) else "used" for name in wanted
    )


def tree_of(folder):
    return sorted(os.listdir(folder)), sum(len(files) for _, _, files in os.walk(folder))


def test_one_of_each_kind(tmp_path, counted):
    wanted = write_folder(tmp_path / "photos", 1)
    counts = verify(*outcomes(tmp_path / "photos"), wanted)
    counted(f"one of each kind: {dict(counts)}")


@pytest.mark.slow
def test_a_thousand_of_all_kinds(tmp_path, counted):
    wanted = write_folder(tmp_path / "photos", ROUNDS)
    before = tree_of(tmp_path / "photos")
    counts = verify(*outcomes(tmp_path / "photos"), wanted)
    counted(f"{len(wanted)} damaged pictures in a folder: {dict(counts)}")
    assert len(wanted) >= 1000
    assert tree_of(tmp_path / "photos") == before


def hostile_members(rounds):
    """Write a .zip whose members' names lead out of it; return the expected outcomes."""
    members, wanted = {}, {}
    for number in range(rounds):
        rng = np.random.default_rng(1000 + number)
        for outcome, name, data in files(rng, number):
            if isinstance(name, bytes):
                continue
            places = ["../../up", "/tmp/absolute", "C:/drive", "deep/./er", "a//b"]
            full = f"{places[number % len(places)]}{number}/{name}"
            members[full], wanted[full] = data, outcome
    return members, wanted


@pytest.mark.parametrize("rounds", [1, pytest.param(ROUNDS, marks=pytest.mark.slow)])
def test_a_zip_whose_names_lead_out(tmp_path, rounds, counted):
    members, wanted = hostile_members(rounds)
    (tmp_path / "photos.zip").write_bytes(zip_of(members))
    before = sorted(str(path) for path in tmp_path.parent.rglob("*"))
    counts = verify(*outcomes(tmp_path / "photos.zip"), wanted)
    counted(f"{len(wanted)} members of a .zip: {dict(counts)}")
    assert sorted(str(path) for path in tmp_path.parent.rglob("*")) == before
    assert not any(Path("/tmp").glob("absolute[0-9]*"))


def test_a_zip_bomb_is_refused_unread(tmp_path):
    """Members that declare little and hold much, that declare much, and copies of one another."""
    path = tmp_path / "photos.zip"
    good = encoded(pixels(np.random.default_rng(0)))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("honest.png", bytes(2**27 + 1))
        archive.writestr("liar.png", bytes(2**22))
        archive.writestr("good.png", good)
    data = bytearray(path.read_bytes())
    place = data.rfind(b"liar.png") - 46  # its entry in the directory of contents
    assert data[place : place + 4] == b"PK\x01\x02"
    struct.pack_into("<I", data, place + 24, 1000)  # declared size
    path.write_bytes(bytes(data))
    results, listing = outcomes(path)
    assert [item.name for item in listing.skipped] == ["honest.png"]
    assert isinstance(results["liar.png"], Skipped)
    assert not isinstance(results["good.png"], Skipped)


MEASURE = """
import json, resource, sys
from pathlib import Path
import datasets
options = datasets.dataset_options("Images", sys.argv[1])
try:
    datasets.open_images(options, 16, cache_dir=Path(sys.argv[2]), show_progress=False)
except datasets.UsageError as error:
    print(json.dumps([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, str(error)]))
"""


@pytest.mark.slow
def test_memory_stays_bounded_and_nothing_is_written_outside_of_the_cache(tmp_path, counted):
    photos, cache = tmp_path / "photos", tmp_path / "cache"
    write_folder(photos, ROUNDS)
    rng = np.random.default_rng(0)
    big = encoded(Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).resize(
        (8000, 8000)), "JPEG")  # 64 million pixels, 192 MB when decoded  # fmt: skip
    for number in range(6):
        (photos / f"big{number}.jpg").write_bytes(big)
    before = tree_of(photos)
    done = subprocess.run([sys.executable, "-c", MEASURE, str(photos), str(cache)], cwd=ROOT,
                          capture_output=True, text=True, check=True)  # fmt: skip
    kilobytes, message = json.loads(done.stdout)
    counted(f"at most {kilobytes / 1024:.0f} MiB in memory, PyTorch included; {message}")
    assert kilobytes / 1024 < 1500
    assert "cannot be read" in message
    assert "a run starts with at most " in message
    assert tree_of(photos) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "photos"]
    assert not list(cache.glob("*/pixels.u8"))


def test_a_run_on_such_data_is_refused_in_one_line(tmp_path):
    write_folder(tmp_path / "photos", 1)
    with pytest.raises(UsageError, match="pictures in .* cannot be read: ") as raised:
        datasets.open_images(
            datasets.dataset_options("Images", str(tmp_path / "photos")),
            SIZE,
            cache_dir=tmp_path / "cache",
            skipped_file=tmp_path / "skipped.txt",
        )
    assert "\n" not in str(raised.value)
    named = (tmp_path / "skipped.txt").read_text().splitlines()
    assert all(line.count("\t") == 1 and line.replace("\t", "").isprintable() for line in named)
    assert len(named) >= 11
