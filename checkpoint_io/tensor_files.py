"""BOUNDARY: .pth files, of any version of PyTorch from 0.4 on, read without running code.

A file is a zip archive of a pickle and of storages (PyTorch 1.6 and newer), or the same one after
the other (older). `read` gives its object as `pickle_data` describes it; `plain` makes dicts, lists
and real tensors of one that holds nothing else. The memory that a file can take is a small
multiple of its size, whatever sizes it declares.
"""

import io
import os
import stat
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from checkpoint_io import pickle_data
from checkpoint_io.pickle_data import BadPickleError, Record, Storage, TensorView, Unpickled, shown
from system.errors import UsageError, nearest_path

MAX_PICKLE_BYTES = 2**22  # a whole training state has 2**18
MAX_DIRECTORY_BYTES = 2**24  # of a zip archive; 100 bytes for each storage
PIECE_BYTES = 2**20
MAX_DEPTH = 16  # of dicts within dicts
MAX_ITEMS = 1_000_000
ZIP_START = b"PK\x03\x04"
# What torch.save wrote before 1.6: its magic number and its version, each pickled.
LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
COUNT_BYTES = 8  # before each storage of a legacy file


def read(path: Path) -> Any:
    """The object that a .pth file holds, as pickle_data.load gives it, its storages read.

    Raises:
        UsageError: there is no such file, it is no whole .pth file, or it asks for what a
            checkpoint does not need; one line, which says when something was refused unrun.
    """
    try:
        with _opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            _refuse_other_files(path, file.read(1024))
            file.seek(0)
            if file.read(len(ZIP_START)) == ZIP_START:
                return _read_zip(file, size).root
            return _read_legacy(file, size).root
    except BadPickleError as error:
        raise UsageError(f"{path}: {error}") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from error


def plain(value: Any) -> Any:
    """A copy made of dicts, lists, tuples, texts, numbers and real tensors; shares no containers.

    Raises:
        BadPickleError: value holds something else, or is nested or repeats itself without end.
    """
    budget = MAX_ITEMS

    def copied(item: Any, depth: int) -> Any:
        nonlocal budget
        budget -= 1
        if depth > MAX_DEPTH or budget < 0:
            raise BadPickleError("is nested deeper or repeats itself more than any checkpoint")
        if item is None or isinstance(item, (str, int, float)):
            return item
        if isinstance(item, TensorView):
            return item.tensor()
        if isinstance(item, dict):
            return {key: copied(inner, depth + 1) for key, inner in item.items()}
        if isinstance(item, (list, tuple)):
            return type(item)(copied(inner, depth + 1) for inner in item)
        kind = item.name if isinstance(item, Record) else f"a {type(item).__name__}"
        raise BadPickleError(f"holds {kind} where plain numbers are expected")

    return copied(value, 0)


class _BoundedFile(io.BufferedReader):
    """A file that refuses to be read in large pieces; zipfile asks for what the file declares."""

    def read(self, size: int | None = -1, /) -> bytes:
        """At most MAX_DIRECTORY_BYTES, also where all is asked for; to ask for more is an error."""
        if size is None or size < 0:
            return super().read(MAX_DIRECTORY_BYTES)
        if size > MAX_DIRECTORY_BYTES:
            raise BadPickleError("is damaged: its zip directory is larger than any checkpoint's")
        return super().read(size)


def _opened(path: Path) -> _BoundedFile:
    """The file, which is a regular one: reading from a pipe or a device would not end."""
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; give the .pth file in it")
    if not path.exists():
        raise UsageError(f"{path}: no such file.{nearest_path(path)}")
    if not stat.S_ISREG(path.stat().st_mode):
        raise UsageError(f"{path}: is no regular file")
    return _BoundedFile(path.open("rb", buffering=0))


def _refuse_other_files(path: Path, start: bytes) -> None:
    """Name what people have in place of a checkpoint."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        raise UsageError(f"{path}: is empty; copy or download it again")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise UsageError(f"{path}: is a web page, no checkpoint: the download failed; open the "
                         "link in a browser")  # fmt: skip
    if text.startswith(b"version https://git-lfs"):
        raise UsageError(f"{path}: is a pointer of Git LFS, no checkpoint; run git lfs pull")
    is_start = any(start.startswith(known[: len(start)]) for known in (ZIP_START, LEGACY_START))
    if not is_start:
        raise UsageError(f"{path}: is no checkpoint of PyTorch; nothing in it was run")


def _read_zip(file: _BoundedFile, size: int) -> Unpickled:
    try:
        with zipfile.ZipFile(file) as archive:
            folder = _folder_of(archive)
            _require_little_endian(archive, folder)
            data = _member(archive, f"{folder}/data.pkl", MAX_PICKLE_BYTES)
            content = pickle_data.load(io.BytesIO(data))
            unread = size
            for storage in _worth_reading(content, size):
                name = f"{folder}/data/{storage.key}"
                # Members may overlap in the file; all together they may not be larger than it.
                storage.data = _member(archive, name, unread, exactly=storage.num_bytes)
                unread -= storage.num_bytes
            return content
    except BadPickleError:
        raise
    except _ZIP_ERRORS as error:
        is_cut = isinstance(error, zipfile.BadZipFile) and "not a zip file" in str(error)
        what = "it is cut off; copy or download it again" if is_cut else shown(str(error))
        raise BadPickleError(f"is damaged: {what}") from error


# What zipfile raises on bytes that are no archive; it has no exception of its own for all of them.
_ZIP_ERRORS = (
    *(zipfile.BadZipFile, RuntimeError, ValueError, EOFError, KeyError, IndexError),
    *(NotImplementedError, OverflowError, struct.error),
)


def _folder_of(archive: zipfile.ZipFile) -> str:
    """The one folder of the archive, which holds data.pkl."""
    found = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(found) != 1 or found[0].count("/") != 1:
        raise BadPickleError("is a zip archive, but no checkpoint of PyTorch")
    return found[0].removesuffix("/data.pkl")


def _require_little_endian(archive: zipfile.ZipFile, folder: str) -> None:
    name = f"{folder}/byteorder"  # newer versions write it
    if name in archive.NameToInfo and _member(archive, name, 16) != b"little":
        raise BadPickleError("was written on a machine of another byte order")


def _member(
    archive: zipfile.ZipFile, name: str, limit: int, *, exactly: int | None = None
) -> bytearray:
    """The bytes of a member that is stored as it is, as torch.save stores all of them."""
    info = archive.NameToInfo.get(name)
    if info is None:
        raise BadPickleError(f"is damaged: {shown(name)} is missing in it")
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise BadPickleError("holds compressed data, which no checkpoint does")
    if exactly is not None and info.file_size != exactly:
        raise BadPickleError(
            f"is damaged: {shown(name)} has {info.file_size} bytes, its tensors need {exactly}"
        )
    if info.file_size > limit:
        raise BadPickleError(f"is damaged: {shown(name)} is larger than it can be")
    data = bytearray(info.file_size)
    with archive.open(info) as member:
        for start in range(0, len(data), PIECE_BYTES):
            piece = member.read(min(PIECE_BYTES, len(data) - start))
            if start + len(piece) != min(start + PIECE_BYTES, len(data)):
                raise BadPickleError(f"is damaged: {shown(name)} is cut off")
            data[start : start + len(piece)] = piece
    return data


def _worth_reading(content: Unpickled, size: int) -> Iterable[Storage]:
    """The storages, all of which together fit into the file."""
    storages = content.storages.values()
    total = sum(storage.num_bytes for storage in storages)
    if total > size:
        raise BadPickleError(
            f"is damaged: it has {size} bytes and declares {total} bytes of numbers"
        )
    return storages


def _read_legacy(file: _BoundedFile, size: int) -> Unpickled:
    file.seek(0)
    head = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    if head.read(len(LEGACY_START)) != LEGACY_START:
        raise BadPickleError("is damaged or cut off")
    system = pickle_data.load(head).root
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise BadPickleError("was written on a machine of another byte order")
    content = pickle_data.load(head)
    keys = pickle_data.load(head).root
    if not isinstance(keys, list) or set(map(_text, keys)) != set(content.storages):
        raise BadPickleError("is damaged: its list of storages does not fit its tensors")
    _worth_reading(content, size)
    file.seek(head.tell())
    for key in keys:
        storage = content.storages[key]
        if file.read(COUNT_BYTES) != storage.count.to_bytes(COUNT_BYTES, "little"):
            raise BadPickleError("is damaged or cut off: a storage has another size than declared")
        storage.data = bytearray(storage.num_bytes)
        if file.readinto(storage.data) != storage.num_bytes:
            raise BadPickleError("is cut off; copy or download it again")
    return content


def _text(key: object) -> str:
    return key if isinstance(key, str) else ""
