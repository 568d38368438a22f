"""Read .pth files without executing anything in them.

A .pth file holds a pickle, which is a program, and the numbers of tensors. `read` has Scan check
the program, then lets torch.load(weights_only=True) carry it out on a copy that holds nothing else.
Classes that a file names are never imported: their objects become Records. Whatever sizes a file
declares, reading it takes a small multiple of its own size.
"""

import io
import os
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from checkpoint_io.pickle_scan import OBJECT_NAMES, BadFileError, Scan, require, shown
from system.errors import UsageError, nearest_path

MAX_PICKLE_BYTES = 2**22  # a whole training state has 2**16
MAX_DIRECTORY_BYTES = 2**24  # of a zip archive; 100 bytes for each storage
ZIP_START = b"PK\x03\x04"
# torch.save wrote this magic number and version before PyTorch 1.6, each pickled.
OLD_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."


class Record:
    """An object of the file: the name of its class and its attributes."""

    name: ClassVar[str]
    attributes: Mapping[str, Any] = {}  # until the file sets them

    def __setstate__(self, state: object) -> None:
        """Store the file's attributes in a dict; none becomes an attribute of this object."""
        require(isinstance(state, dict), "it sets attributes that have no names")
        self.attributes = cast(dict[str, Any], state)

    @property
    def short_name(self) -> str:
        """Return the name of the class without its module."""
        return self.name.rpartition(".")[2]


_RECORDS = [(type("Record", (Record,), {"name": name}), name) for name in sorted(OBJECT_NAMES)]
_ALLOWING = threading.Lock()  # PyTorch's list of allowed classes is shared by all threads


def read(path: Path) -> Any:
    """Return the object that a .pth file holds: a Record, or plain data and tensors.

    Raises UsageError, whose one line says when something was refused unrun, if it is no whole .pth
    file or asks for what a checkpoint does not need.
    """
    try:
        with _opened(path) as file:
            _refuse_other_files(path, file.read(1024))
            file.seek(0)
            is_zip = file.read(len(ZIP_START)) == ZIP_START
            return _loaded(_checked_archive(file) if is_zip else _checked_old(file))
    except UsageError:
        raise
    except BadFileError as error:
        raise UsageError(f"{path}: {error}") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # zipfile, pickletools and torch.load raise many kinds
        is_cut = isinstance(error, zipfile.BadZipFile) and "not a zip file" in str(error)
        what = "it is cut off; copy or download it again" if is_cut else (
            f"it cannot be read ({type(error).__name__}: {shown(str(error).partition('.')[0])})"
        )  # fmt: skip
        raise UsageError(f"{path}: is damaged: {what}") from error


class _File(io.FileIO):
    """A file whose reads never allocate more than its size, whatever a zip directory declares."""

    @property
    def num_bytes(self) -> int:
        """Return the size of the whole file."""
        return os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """Read at most the rest of the file and at most MAX_DIRECTORY_BYTES."""
        left = max(0, min(self.num_bytes - self.tell(), MAX_DIRECTORY_BYTES))
        return super().read(left if size is None or size < 0 else min(size, left)) or b""


def _opened(path: Path) -> _File:
    """Open a regular file: reading from a pipe or a device would not end."""
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; give the .pth file in it")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: is no regular file")
    if not path.exists():
        raise UsageError(f"{path}: no such file.{nearest_path(path)}")
    return _File(path)


def _refuse_other_files(path: Path, start: bytes) -> None:
    """Name the kind of a file that people often confuse with a checkpoint."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        raise UsageError(f"{path}: is empty; copy or download it again")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise UsageError(f"{path}: is a web page, no checkpoint: the download failed; open the "
                         "link in a browser")  # fmt: skip
    if text.startswith(b"version https://git-lfs"):
        raise UsageError(f"{path}: is a pointer of Git LFS, no checkpoint; run git lfs pull")
    if not any(start.startswith(known[: len(start)]) for known in (ZIP_START, OLD_START)):
        raise UsageError(f"{path}: is no checkpoint of PyTorch; nothing in it was run")


def _checked_archive(file: _File) -> io.BytesIO:
    """Copy the pickle and its storages into a new archive, once they have been checked.

    PyTorch reads archives by other code than zipfile; what the two understand differently could
    hide something. It is given only what was checked here.
    """
    copy = io.BytesIO()
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(copy, "w") as checked:
        members = {member.filename: member for member in archive.infolist()}
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
            raise BadFileError("holds compressed data, which no checkpoint does")
        total = sum(member.file_size for member in members.values())
        require(total <= file.num_bytes, f"it has {file.num_bytes} bytes and declares {total}")
        pickles = [name for name in members if name.endswith("/data.pkl")]
        if len(pickles) != 1 or pickles[0].count("/") != 1:
            raise BadFileError("is a zip archive, but no checkpoint of PyTorch")
        folder = pickles[0].removesuffix("data.pkl")
        require(members[pickles[0]].file_size <= MAX_PICKLE_BYTES, "its pickle is too large")
        program = archive.read(pickles[0])
        checked.writestr("archive/data.pkl", program)
        for name in {"version", "byteorder"} & {name.removeprefix(folder) for name in members}:
            checked.writestr(f"archive/{name}", archive.read(folder + name))
        for key, size in Scan().run(io.BytesIO(program)).items():
            member = members.get(f"{folder}data/{key}")
            if member is None:
                raise BadFileError(f"is damaged: storage {shown(key)} is missing in it")
            data = archive.read(member)
            require(len(data) == size, f"storage {shown(key)} has {len(data)} bytes, its tensors "
                     f"need {size}")  # fmt: skip
            checked.writestr(f"archive/data/{key}", data)
    return copy


def _checked_old(file: _File) -> io.BytesIO:
    """Read a whole file from before PyTorch 1.6, once its five pickles have been checked."""
    file.seek(0)
    pickles = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    require(pickles.read(len(OLD_START)) == OLD_START, "it is cut off")
    Scan().run(pickles)  # about the machine that wrote it
    sizes = Scan().run(pickles)
    total, names = sum(sizes.values()), Scan()
    require(total <= file.num_bytes, f"it has {file.num_bytes} bytes and declares {total}")
    names.run(pickles)
    require(set(names.texts) == set(sizes), "its list of storages does not fit its tensors")
    file.seek(0)
    return io.BytesIO(b"".join(iter(file.read, b"")))


def _loaded(data: io.BytesIO) -> Any:
    data.seek(0)
    with _ALLOWING, torch.serialization.safe_globals([*_RECORDS]):
        root = torch.load(data, map_location="cpu", weights_only=True)
    return _tidy(root, takes_objects=isinstance(root, Record))


def _tidy(value: Any, *, takes_objects: bool) -> Any:
    """Copy value into plain containers: a file can give an OrderedDict attributes of its own."""
    if isinstance(value, Record):
        if not takes_objects:
            raise BadFileError(f"holds {value.name} where plain numbers are expected")
        value.attributes = _tidy(value.attributes, takes_objects=True)
    if isinstance(value, dict):
        return {key: _tidy(dict.__getitem__(value, key), takes_objects=takes_objects)
                for key in dict.keys(value)}  # fmt: skip
    if isinstance(value, (list, tuple)):
        return type(value)(_tidy(item, takes_objects=takes_objects) for item in value)
    if isinstance(value, Tensor):
        return value.detach()
    if value is None or isinstance(value, (str, int, float, set, torch.device, Record)):
        return value
    raise BadFileError("holds a name and nothing that is made by it")
