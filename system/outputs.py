"""Lists of the pictures that commands have written, so that no command takes them for photos."""

import contextlib
import os
from collections.abc import Iterable
from io import FileIO
from pathlib import Path

OUTPUTS_FILE = ".pigan_outputs"
PICTURES = (".gif", ".jpg", ".png", ".webp")  # endings of the pictures that commands write
HEAD = (
    "These pictures of this folder were written by pi-GAN's commands, which do not use them as "
    "photos. To use them, delete this file.\n"
)


def list_outputs(folder: Path, names: Iterable[str]) -> None:
    """Add names of pictures to the list of the folder that they are written into, all or none.

    They are appended, because several processes may write pictures into one folder.

    Raises:
        OSError: the list cannot be read or written; filename is its path.
    """
    path = folder / OUTPUTS_FILE
    listed = listed_outputs(path.read_bytes()) if path.exists() else set()
    added = [line + b"\n" for line in map(_line, names) if line not in listed]
    if not added:
        return
    with _open_list(path) as file:
        size = file.tell()
        try:
            content = b"".join(added) if size else HEAD.encode() + b"".join(added)
            while content:
                content = content[file.write(content) :]
        except OSError as error:
            file.truncate(size)
            if size == 0:
                path.unlink()
            raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from error


def _open_list(path: Path) -> FileIO:
    """Open a list to add to; that of another user is first replaced by a copy of our own."""
    with contextlib.suppress(PermissionError):
        return path.open("ab", buffering=0)
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        draft.write_bytes(path.read_bytes())
        draft.replace(path)
    draft.unlink(missing_ok=True)
    return path.open("ab", buffering=0)


def listed_outputs(content: bytes) -> set[bytes]:
    """Return the lines of a list of pictures; is_listed compares names with them."""
    return set(content.splitlines()[1:])


def is_listed(name: str, listed: set[bytes]) -> bool:
    """Return whether a file of this name is in the list."""
    return _line(name) in listed


def _line(name: str) -> bytes:
    return name.encode("unicode_escape")
