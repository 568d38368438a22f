"""Fingerprint the content of a set of pictures, the same after it was copied."""

import contextlib
import functools
import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from image_io.files import Listing, opened
from system.files import write_file

SAMPLE_BYTES = 2**14  # read at the start, in the middle and at the end of a file
READERS = 16  # threads, which wait for the disk


def fingerprint(listing: Listing, cache_dir: Path) -> str:
    """Return 32 digits that depend on the names, the sizes and samples of all pictures.

    They do not depend on the folder and the times of the files. Reading the samples takes a while,
    so cache_dir, if it can be written, keeps the result under the names, sizes and times.
    """
    if not os.path.isdir(listing.source):  # a .zip, whose stamps are checksums
        return _digest(zip(listing.names, listing.stamps, strict=True))
    known = cache_dir / f"{_digest(zip(listing.names, listing.stamps, strict=True))}.same"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        found = known.read_text("ascii")
        if re.fullmatch("[0-9a-f]{32}", found):
            return found
    sizes = [size for size, _ in listing.stamps]
    with opened(listing) as open_file, ThreadPoolExecutor(READERS) as pool:
        samples = pool.map(functools.partial(_sample, open_file), listing.names, sizes)
        result = _digest(zip(listing.names, sizes, samples, strict=True))
    with contextlib.suppress(OSError):
        write_file(known, result.encode(), is_synced=False)
    return result


def _sample(open_file: Callable[[str], IO[bytes]], name: str, size: int) -> int:
    """Return a checksum of three parts of a file; 0 if it cannot be read."""
    checksum = 0
    with contextlib.suppress(OSError), open_file(name) as file:
        for start in sorted({0, max(size // 2, 0), max(size - SAMPLE_BYTES, 0)}):
            file.seek(start)
            checksum = zlib.crc32(file.read(SAMPLE_BYTES), checksum)
    return checksum


def _digest(lines: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(json.dumps(line).encode())
    return digest.hexdigest()[:32]
