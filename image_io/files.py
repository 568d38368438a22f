"""Find pictures in a folder, a glob or a .zip; nothing is decoded here."""

import contextlib
import glob
import io
import os
import stat
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import IO, NamedTuple

from system.errors import UsageError, nearest_path

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MAX_BYTES = 2**27  # a larger file or zip member is refused unread
HOW_TO_GIVE = "give --dataset_path FOLDER, 'FOLDER/*.jpg' (in quotes) or FILE.zip"

Stamp = tuple[int, int]  # size and time of a file, size and checksum of a zip member


class Skipped(NamedTuple):
    """A file that cannot be read, and the reason; both fit one line of a terminal."""

    name: str
    reason: str


_Found = tuple[dict[str, Stamp], list[Skipped]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Pictures that a path leads to, found without decoding any.

    Attributes:
        source: the .zip, or the folder that names are relative to.
        names: sorted; of files that claim by their ending to be pictures.
        stamps: one per name; changes with the content.
        skipped: files with such an ending that can be told to be unreadable without opening them.
    """

    source: str
    names: tuple[str, ...]
    stamps: tuple[Stamp, ...]
    skipped: tuple[Skipped, ...] = ()

    @property
    def count(self) -> int:
        """Number of pictures to decode."""
        return len(self.names)


def printable(text: str) -> str:
    """Escape newlines, control characters and broken bytes, so that text prints on one line."""
    safe = (c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return "".join(safe)


def is_hidden(name: str) -> bool:
    """Return True for names of hidden files and folders."""
    return name == "__MACOSX" or (name.startswith(".") and name not in (".", ".."))


def is_picture_name(name: str) -> bool:
    """Return True for a picture's ending, unless the file is hidden (as macOS's "._photo.jpg")."""
    base = name.rpartition("/")[2]
    return base.lower().endswith(SUFFIXES) and not is_hidden(base)


def find_pictures(path: str) -> Listing:
    """List the pictures that path leads to.

    Args:
        path: a folder, searched with its sub-folders (links are followed, but never in circles and
            never out to a folder that contains it; hidden folders are left out), a .zip, or a glob
            in which one "**" stands for any number of folders. "~" is the home folder.

    Raises:
        UsageError: nothing is there, or no picture.
    """
    source = path = os.path.expanduser(path)
    if os.path.isdir(path):
        stamps, skipped = _list_files(path, _walk(path))
    elif os.path.isfile(path):
        stamps, skipped = _list_members(path)
    elif glob.has_magic(path):
        source = _fixed_part(path)
        stamps, skipped = _list_files(source, _expand(path))
    else:
        where = path if os.path.isabs(path) else f"{path}' from '{os.getcwd()}"
        hint = printable(nearest_path(path))
        raise UsageError(f"no folder, glob or .zip at '{printable(where)}'; {HOW_TO_GIVE}.{hint}")
    if not stamps and not skipped:
        raise UsageError(
            f"no pictures at '{printable(path)}': looked for files ending in "
            f"{', '.join(SUFFIXES)}, in a folder's sub-folders too; {HOW_TO_GIVE}"
        )
    names = tuple(sorted(stamps))
    return Listing(
        source=source,
        names=names,
        stamps=tuple(stamps[name] for name in names),
        skipped=tuple(sorted(skipped)),
    )


def _walk(root: str) -> Iterator[str]:
    """Yield every file below root, each real folder once."""

    def refuse(error: OSError) -> None:
        raise UsageError(f"cannot list '{printable(str(error.filename))}': {error.strerror}")

    top = os.path.realpath(root)
    seen = set()
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=refuse):
        real = os.path.realpath(folder)
        leads_out = real != top and f"{top}{os.sep}".startswith(os.path.join(real, ""))
        if real in seen or leads_out:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not is_hidden(name))
        yield from (os.path.join(folder, name) for name in files)


def _fixed_part(pattern: str) -> str:
    """Return the folder in front of the first wildcard."""
    while glob.has_magic(pattern):
        pattern = os.path.dirname(pattern)
    return pattern or "."


def _expand(pattern: str) -> Iterator[str]:
    """Yield files that match; glob.glob would follow links in circles through "**"."""
    parts = pattern.replace(os.sep, "/").split("/")
    if "**" not in parts:
        yield from glob.iglob(pattern)
        return
    at = parts.index("**")
    rest = [part for part in parts[at + 1 :] if part]
    if "**" in rest:
        raise UsageError(f"'{printable(pattern)}' has more than one '**'; one is allowed")
    roots = "/".join([*parts[:at], ""]) or "./"
    for root in glob.glob(roots):
        for path in _walk(root):
            if not rest or PurePath(os.path.relpath(path, root)).match("/".join(rest)):
                yield path


def _list_files(root: str, paths: Iterator[str]) -> _Found:
    """List the pictures among paths, named relative to root."""
    stamps: dict[str, Stamp] = {}
    skipped = []
    for path in paths:
        if not is_picture_name(path):
            continue
        name = os.path.relpath(path, root)
        try:
            info = os.stat(path)
        except OSError as error:
            skipped.append(Skipped(printable(name), str(error.strerror)))
            continue
        if stat.S_ISDIR(info.st_mode):
            continue
        reason = _refusal(info.st_size, stat.S_ISREG(info.st_mode))
        if reason:
            skipped.append(Skipped(printable(name), reason))
        else:
            stamps[name] = (info.st_size, info.st_mtime_ns)
    return stamps, skipped


def _list_members(path: str) -> _Found:
    """List the pictures in a .zip; where two members have one name, the later counts."""
    stamps: dict[str, Stamp] = {}
    skipped = []
    with _open_zip(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
    for name, info in members.items():
        if not is_picture_name(name) or any(map(is_hidden, name.split("/"))):
            continue
        is_encrypted = bool(info.flag_bits & 1)
        reason = "encrypted" if is_encrypted else _refusal(info.file_size, is_file=True)
        if reason:
            skipped.append(Skipped(printable(name), reason))
        else:
            stamps[name] = (info.file_size, info.CRC)
    return stamps, skipped


def _refusal(num_bytes: int, is_file: bool) -> str:
    """Say why a file cannot be read as a picture, unopened; empty where it can."""
    if not is_file:
        return "not a regular file"
    if num_bytes == 0:
        return "empty file"
    return f"{num_bytes} bytes, more than {MAX_BYTES}" if num_bytes > MAX_BYTES else ""


def _open_zip(path: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except Exception as error:  # a damaged directory of contents fails in many ways
        reason = printable(str(error) or type(error).__name__)
        raise UsageError(
            f"'{printable(path)}' is a file, but no .zip that can be read ({reason}); {HOW_TO_GIVE}"
        ) from error


@contextlib.contextmanager
def opened(listing: Listing) -> Iterator[Callable[[str], IO[bytes]]]:
    """Give a function that opens a picture by name; it may be called from many threads.

    A member of a .zip is read into memory and never written out, so its name cannot do harm.
    """
    if os.path.isdir(listing.source):
        yield lambda name: open(os.path.join(listing.source, name), "rb")
    else:
        with _open_zip(listing.source) as archive:
            yield lambda name: io.BytesIO(archive.read(name))
