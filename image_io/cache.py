"""Keep the decoded pixels of a dataset on disk.

Legend: N images, H = W = image_size. The entry of a key is a folder of that name in the cache:

    pixels.u8    N * 3 * H * W bytes
    meta.json    N, H, a checksum of the pixels, the files that were skipped, and how many were
                 too small

It is written under another name and renamed when complete, so it is there whole or not at all. A
lock, which the system drops when its process dies, lets one process do the work while the others
wait. On a file system without locks the work may be done twice, with the same result.
"""

import contextlib
import json
import math
import os
import secrets
import shutil
import sys
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from image_io.decoding import Pixels
from image_io.files import Skipped, printable
from system.errors import UsageError
from system.files import locked
from system.flags import Screen

PIXELS_FILE, META_FILE = "pixels.u8", "meta.json"

Block = Sequence[Pixels | Skipped]  # images (3, H, W), some of them missing
MakeBlocks = Callable[[], Generator[Block, None, None]]


class CacheEntry(NamedTuple):
    """Images (N, 3, H, W) uint8, read-only and mapped from disk, and the files left out.

    checksum: of all pixels when they were written.
    num_small: number of pictures that were enlarged, or were smaller than the crop.
    """

    pixels: Pixels
    skipped: tuple[Skipped, ...]
    checksum: int
    num_small: int = 0


def cached(
    cache_dir: Path,
    key: str,
    blocks: MakeBlocks,
    *,
    num_images: int,
    image_size: int,
    show_progress: bool,
    small: Sequence[str] = (),
) -> CacheEntry:
    """Return the entry of key; make it from blocks if it is not there.

    Args:
        cache_dir: created when needed.
        key: a name that changes with anything that changes the pixels.
        blocks: gives the images in order. Called only if they are needed; an exception out of it
            leaves no entry.
        num_images: how many will come, those skipped included.
        image_size: H = W.
        show_progress: show a bar with rate and time left on stderr.
        small: the names of pictures that are too small, once blocks has given all.

    Raises:
        UsageError: cache_dir cannot be written or lacks room.
    """
    entry = cache_dir / key
    found = _read(entry, image_size)
    if found is not None:
        return found
    with _disk_errors(cache_dir):
        entry.parent.mkdir(parents=True, exist_ok=True)  # before there is a bar on the screen
        with tqdm(
            total=num_images,
            desc=f"caching at {image_size} px",
            unit="img",
            disable=not show_progress,
            file=Screen(),
            mininterval=0.2 if sys.stderr.isatty() else 10,  # seconds; a log gets few lines
        ) as bar:
            return _make(entry, blocks, image_size, bar, small)


def _make(
    entry: Path, blocks: MakeBlocks, image_size: int, bar: Any, small: Sequence[str]
) -> CacheEntry:
    """Return the entry, written by this process or by one that was faster."""

    def tell(_: str) -> None:
        if not bar.disable:
            print("another process is writing the image cache; waiting", file=Screen())

    with locked(entry.with_name(f"{entry.name}.lock"), tell) as is_alone:
        found = _read(entry, image_size)
        if found is not None:
            bar.update(bar.total)
            return found
        if is_alone:
            for leftover in entry.parent.glob(f"{entry.name}.tmp-*"):  # its process was killed
                shutil.rmtree(leftover, ignore_errors=True)
        _require_room(entry.parent, bar.total * 3 * image_size**2)
        with contextlib.closing(blocks()) as made:
            return _write(entry, made, image_size, bar, small)


def _write(
    entry: Path, blocks: Iterable[Block], image_size: int, bar: Any, small: Sequence[str]
) -> CacheEntry:
    """Write the entry under another name, then rename it."""
    draft = entry.with_name(f"{entry.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    draft.mkdir()
    try:
        count, checksum, skipped = 0, 0, []
        with _synced(draft / PIXELS_FILE) as file:
            for block in blocks:
                for item in block:
                    if isinstance(item, Skipped):
                        skipped.append(item)
                    else:
                        data = item.tobytes()
                        file.write(data)
                        checksum = zlib.crc32(data, checksum)
                        count += 1
                bar.update(len(block))
        meta = {
            "count": count,
            "image_size": image_size,
            "checksum": checksum,
            "skipped": skipped,
            "small": len(small),
        }
        with _synced(draft / META_FILE) as file:
            file.write(json.dumps(meta, indent=1).encode())
        return _publish(draft, entry, image_size)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _publish(draft: Path, entry: Path, image_size: int) -> CacheEntry:
    """Rename draft to entry, unless another process was first."""
    if entry.exists() and _read(entry, image_size) is None:
        shutil.rmtree(entry)  # damaged
    try:
        draft.rename(entry)
    except OSError:  # a folder with files is not replaced
        if _read(entry, image_size) is None:
            raise
    found = _read(entry, image_size)
    if found is None:
        raise OSError(f"{entry} was written, but cannot be read back")
    return found


def _read(entry: Path, image_size: int) -> CacheEntry | None:
    """Return the entry, or None where it is missing or damaged."""
    try:
        meta = json.loads((entry / META_FILE).read_text("utf-8"))
        shape = (int(meta["count"]), 3, image_size, image_size)
        skipped = tuple(Skipped(str(name), str(reason)) for name, reason in meta["skipped"])
        checksum = int(meta["checksum"])
        num_small = int(meta.get("small", 0))  # entries of earlier versions don't say
        path = entry / PIXELS_FILE
        is_whole = path.stat().st_size == math.prod(shape)
        pixels = np.memmap(path, np.uint8, "r", shape=shape) if is_whole else None
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    if pixels is None:
        return None
    return CacheEntry(np.asarray(pixels), skipped, checksum, num_small)


@contextlib.contextmanager
def _synced(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to write, and flush its bytes to the disk at the end."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _require_room(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise UsageError(
            f"the image cache needs {num_bytes / 1e9:.2f} GB, but '{printable(str(folder))}' has "
            f"{free / 1e9:.2f} GB left; give another folder with --cache_dir"
        )


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turn errors of the disk into one line that names --cache_dir."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot write the image cache in '{printable(str(folder))}': "
            f"{printable(error.strerror or str(error))}; give another folder with --cache_dir"
        ) from error
