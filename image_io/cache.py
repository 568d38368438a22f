"""Keep the decoded pixels of a dataset on disk.

Legend: N images, H = W = image_size. The entry of a key is a folder of that name in the cache:

    pixels.u8    N * 3 * H * W bytes
    meta.json    N, H, a checksum of the pixels, the files that were skipped, how many were too
                 small, and the folder or .zip that the images are from

It is written under another name and renamed when complete, so it is there whole or not at all. A
lock, which the system drops when its process dies, lets one process do the work while the others
wait. On a file system without locks the work may be done twice, with the same result. A second,
shared lock on the pixels tells which entries are in use.
"""

import contextlib
import json
import math
import os
import secrets
import shutil
import sys
import zlib
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch

from image_io.decoding import Pixels
from image_io.files import Skipped, printable
from system.errors import UsageError
from system.files import locked, try_lock
from system.machine import require_memory
from system.screen import progress_bar

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
    source: str = "",
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
        source: folder or .zip that the images are from.

    Raises:
        UsageError: cache_dir cannot be written or lacks room, or its file system maps no files and
            the images do not fit into memory.
    """
    entry = cache_dir / key
    found = _read(entry, image_size)
    if found is not None:
        return found
    with _disk_errors(cache_dir):
        entry.parent.mkdir(parents=True, exist_ok=True)  # before there is a bar on the screen
        with progress_bar(
            num_images, "img", f"caching at {image_size} px", is_shown=show_progress
        ) as bar:
            made = _make(entry, blocks, image_size, bar, small, source)
    if show_progress:
        total = sum(path.stat().st_size for path in cache_dir.glob(f"*/{PIXELS_FILE}"))
        print(f"image cache: {_size(made.pixels.nbytes)} for {len(made.pixels)} pictures at "
              f"{image_size} px; all of '{printable(str(cache_dir))}': {_size(total)}",
              file=sys.stderr)  # fmt: skip
    return made


def _make(
    entry: Path,
    blocks: MakeBlocks,
    image_size: int,
    bar: Any,
    small: Sequence[str],
    source: str,
) -> CacheEntry:
    """Return the entry, written by this process or by one that was faster."""

    def tell(_: str) -> None:
        if not bar.disable:
            print("another process is writing the image cache; waiting", file=sys.stderr)

    try:
        with locked(entry.with_name(f"{entry.name}.lock"), tell) as is_alone:
            found = _read(entry, image_size)
            if found is not None:
                bar.update(bar.total)
                return found
            if is_alone:
                leftovers = entry.parent.glob(f"{entry.name}.tmp-*")  # their processes were killed
                for leftover in leftovers:
                    shutil.rmtree(leftover, ignore_errors=True)
                if entry.exists():  # damaged
                    shutil.rmtree(entry)
            _require_room(entry.parent, bar.total * 3 * image_size**2)
            with contextlib.closing(blocks()) as made:
                return _write(entry, made, image_size, bar, small, source)
    except PermissionError:  # the folder of another user, who may have written the entry now
        found = _read(entry, image_size)
        if found is None:
            raise
        return found


def _write(
    entry: Path,
    blocks: Iterable[Block],
    image_size: int,
    bar: Any,
    small: Sequence[str],
    source: str,
) -> CacheEntry:
    """Write the entry under another name, then rename it."""
    draft = entry.with_name(f"{entry.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    draft.mkdir()
    try:
        _require_readable(draft, bar.total * 3 * image_size**2)
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
            "source": _path(source),
        }
        with _synced(draft / META_FILE) as file:
            file.write(json.dumps(meta, indent=1).encode())
        return _publish(draft, entry, image_size)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _publish(draft: Path, entry: Path, image_size: int) -> CacheEntry:
    """Rename draft to entry, unless another process was first."""
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
        pixels = _open_pixels(path, shape) if is_whole else None
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    if pixels is None:
        return None
    return CacheEntry(pixels, skipped, checksum, num_small)


def _open_pixels(path: Path, shape: tuple[int, ...]) -> Pixels | None:
    """Return the bytes of a file as a read-only array; None while another process removes it."""
    pixels = _mapped(path, shape)
    if pixels is None:
        pixels = np.fromfile(path, np.uint8).reshape(shape)
    elif not pixels.size:
        return None
    pixels.flags.writeable = False
    return pixels


def _mapped(path: Path, shape: tuple[int, ...]) -> Pixels | None:
    """Map a file into memory, privately if the file system shares no maps; None if it maps none.

    The shared lock lasts as long as the array. An empty array means that the file is being removed.
    """
    with path.open("rb") as file:
        if try_lock(file, is_shared=True) is False:
            return np.empty(0, np.uint8)
        for mode in ("r", "c"):
            with contextlib.suppress(OSError):
                return np.asarray(np.memmap(file, np.uint8, mode, shape=shape))
    return None


def _require_readable(draft: Path, num_bytes: int) -> None:
    """Check that the pixels will fit into memory, if they cannot be mapped, before decoding them.

    Raises:
        UsageError: they will not.
    """
    probe = draft / PIXELS_FILE
    probe.write_bytes(b"x")
    if _mapped(probe, (1,)) is None:
        what = f"'{printable(str(draft.parent))}' is on a file system that maps no files; reading"
        require_memory(f"{what} the image cache instead", num_bytes, torch.device("cpu"))


def drop_unused(cache_dir: Path, source: str, kept: Collection[str]) -> str:
    """Remove the entries made from source whose keys are not kept and which no process uses.

    Where the file system has no locks nothing is removed, and never what another user has written.
    Returns a line that says what was.
    """
    num_removed = num_bytes = 0
    for path in cache_dir.glob(f"*/{PIXELS_FILE}"):
        entry = path.parent
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError), path.open("rb") as file:
            is_same = json.loads((entry / META_FILE).read_text("utf-8"))["source"] == _path(source)
            if not is_same or entry.name in kept or not os.access(entry, os.W_OK):
                continue
            if not try_lock(file, is_shared=False):
                continue
            size = path.stat().st_size
            doomed = entry.with_name(f"{entry.name}.tmp-{os.getpid()}")
            entry.rename(doomed)
            shutil.rmtree(doomed)
            num_removed, num_bytes = num_removed + 1, num_bytes + size
    return f"image cache: removed {num_removed} unused entries, {_size(num_bytes)}"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def _path(source: str) -> str:
    return os.path.realpath(source) if os.path.exists(source) else source


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
