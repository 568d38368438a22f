"""Find pictures in a folder, a glob or a .zip; nothing is decoded here."""

import contextlib
import glob
import io
import os
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath, PurePosixPath
from typing import IO, NamedTuple

from image_io.formats import formats_by_ending
from system.errors import UsageError, nearest_path
from system.outputs import OUTPUTS_FILE, is_listed, listed_outputs

SYSTEM_FOLDERS = {  # of file servers, Windows and macOS: thumbnails, deleted files, copies
    *("@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "recycler"),
    *("system volume information", "lost+found", "__macosx"),
}
NUM_NAMED = 3  # names in a text, before "..."
MAX_BYTES = 2**27  # a larger file or zip member is refused unread
HOW_TO_GIVE = "give --dataset_path FOLDER, 'FOLDER/*.jpg' (in quotes) or FILE.zip"

Stamp = tuple[int, int]  # size and time of a file, size and checksum of a zip member


class Skipped(NamedTuple):
    """A file that cannot be read, and the reason; both fit one line of a terminal."""

    name: str
    reason: str


def describe_skipped(skipped: Sequence[Skipped], total: int, source: str) -> str:
    """Say how many of a source's pictures cannot be read, and why the first ones cannot."""
    some = ", ".join(f"'{name}' ({reason})" for name, reason in skipped[:NUM_NAMED])
    some += ", ..." if len(skipped) > NUM_NAMED else ""
    return f"{len(skipped)} of {total} pictures in '{printable(source)}' cannot be read: {some}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Pictures that a path leads to, found without decoding any.

    Attributes:
        source: the .zip, or the folder that names are relative to.
        names: sorted; of files that claim by their ending to be pictures.
        stamps: one per name; changes with the content.
        skipped: files with such an ending that can be told to be unreadable without opening them.
        left_out: one line about the files and folders that are not used; empty if there are none.
    """

    source: str
    names: tuple[str, ...]
    stamps: tuple[Stamp, ...]
    skipped: tuple[Skipped, ...] = ()
    left_out: str = ""

    @property
    def count(self) -> int:
        """Number of pictures to decode."""
        return len(self.names)


def printable(text: str) -> str:
    """Escape newlines, control characters and broken bytes, so that text prints on one line."""
    safe = (c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return "".join(safe)


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is hidden, or a folder of the system."""
    return name.casefold() in SYSTEM_FOLDERS or (name.startswith(".") and name not in (".", ".."))


@dataclass(slots=True)
class _Found:
    """The files below a folder or in a .zip, sorted out.

    folder_outputs: returns the list of the pictures that commands wrote into a folder, if any.
    takes_outputs: use these pictures as well.
    """

    folder_outputs: Callable[[str], bytes]
    takes_outputs: bool
    stamps: dict[str, Stamp] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)  # by ending
    hidden: set[str] = field(default_factory=set)  # files and folders
    outputs: Counter[str] = field(default_factory=Counter)  # by folder
    lists: dict[str, set[bytes]] = field(default_factory=dict)

    def is_wanted(self, name: str) -> bool:
        """Return whether a file is to be used, by its name alone; count it if it is not."""
        folder, _, base = name.replace(os.sep, "/").rpartition("/")
        ending = os.path.splitext(base)[1].lower()
        is_picture = ending in formats_by_ending()
        above = ["/".join(folder.split("/")[:depth]) for depth in range(1, folder.count("/") + 2)]
        hidden = [path for path in above if is_hidden(path.rpartition("/")[2])]
        if hidden or not base or is_hidden(base):
            self.hidden.update(hidden[:1] or [name] * is_picture)
        elif not is_picture:
            is_ours = any(path and self._outputs(path) for path in above)  # states, caches, logs
            self.unused[ending or "without ending"] += not is_ours
        elif not self.takes_outputs and is_listed(base, self._outputs(folder)):
            self.outputs[folder or "."] += 1
        else:
            return True
        return False

    def _outputs(self, folder: str) -> set[bytes]:
        if folder not in self.lists:
            self.lists[folder] = listed_outputs(self.folder_outputs(folder))
        return self.lists[folder]

    def left_out(self) -> str:
        """Describe what is not used, in one line."""
        parts = []
        if self.unused.total():
            endings = ", ".join(f"{count} {text}" for text, count in (+self.unused).most_common())
            hint = " (.heic needs the package pillow-heif)" if self.unused[".heic"] else ""
            parts.append(f"no pictures that Pillow can read: {endings}{hint}")
        if self.hidden:
            names = [PurePosixPath(path).name for path in sorted(self.hidden)]
            parts.append(f"hidden or of the system: {len(names)} ({_some(names)})")
        if self.outputs:
            parts.append(
                f"written by this project's commands: {self.outputs.total()}, listed by "
                f"'{OUTPUTS_FILE}' in {_some(sorted(self.outputs))}"
            )
        return printable("; ".join(parts))


def _some(names: Iterable[str]) -> str:
    different = list(dict.fromkeys(names))
    more = ", ..." if len(different) > NUM_NAMED else ""
    return ", ".join(f"'{name}'" for name in different[:NUM_NAMED]) + more


def find_pictures(path: str, *, takes_outputs: bool = False) -> Listing:
    """List the pictures that path leads to, except those that commands of this project wrote.

    Args:
        path: a folder, searched with its sub-folders (links are followed, but never in circles and
            never out to a folder that contains it; hidden folders and those of file servers and
            systems are left out), a .zip, or a glob in which one "**" stands for any number of
            folders. "~" is the home folder.
        takes_outputs: list pictures that commands wrote as well.

    Raises:
        UsageError: nothing is there, or no picture.
    """
    source = path = os.path.expanduser(path)
    if os.path.isdir(path):
        found = _list_files(path, _walk(path), takes_outputs)
    elif os.path.isfile(path):
        found = _list_members(path, takes_outputs)
    elif glob.has_magic(path):
        source = _fixed_part(path)
        found = _list_files(source, _expand(path), takes_outputs)
    else:
        where = path if os.path.isabs(path) else f"{path}' from '{os.getcwd()}"
        hint = printable(nearest_path(path))
        raise UsageError(f"no folder, glob or .zip at '{printable(where)}'; {HOW_TO_GIVE}.{hint}")
    left_out = found.left_out()
    if not found.stamps and not found.skipped:
        others = f"not used: {left_out}" if left_out else "it is empty"
        raise UsageError(
            f"no pictures at '{printable(path)}', in a folder's sub-folders either "
            f"({others}); {HOW_TO_GIVE}"
        )
    names = tuple(sorted(found.stamps))
    return Listing(
        source=source,
        names=names,
        stamps=tuple(found.stamps[name] for name in names),
        skipped=tuple(sorted(found.skipped)),
        left_out=f"not used in '{printable(path)}': {left_out}" if left_out else "",
    )


def _walk(root: str) -> Iterator[str]:
    """Yield every file below root, each real folder once; of a hidden folder only its own path."""

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
        hidden = [f"{name}/" for name in subfolders if is_hidden(name)]
        subfolders[:] = sorted(name for name in subfolders if not is_hidden(name))
        yield from (os.path.join(folder, name) for name in [*files, *hidden])


def _fixed_part(pattern: str) -> str:
    """Return the folder in front of the first wildcard."""
    while glob.has_magic(pattern):
        pattern = os.path.dirname(pattern)
    return pattern or "."


def _expand(pattern: str) -> Iterator[str]:
    """Yield files that match; glob.glob would follow links in circles through "**"."""
    parts = pattern.replace(os.sep, "/").split("/")
    if "**" not in parts:
        yield from (path for path in glob.iglob(pattern) if not os.path.isdir(path))
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


def _list_files(root: str, paths: Iterator[str], takes_outputs: bool) -> _Found:
    """List the pictures among paths, named relative to root."""

    def outputs_of(folder: str) -> bytes:
        try:
            with open(os.path.join(root, folder, OUTPUTS_FILE), "rb") as file:
                return file.read()
        except OSError:
            return b""

    found = _Found(outputs_of, takes_outputs)
    for path in paths:
        name = os.path.relpath(path, root).replace(os.sep, "/") + "/" * path.endswith("/")
        if not found.is_wanted(name):
            continue
        try:
            info = os.stat(path)
        except OSError as error:
            found.skipped.append(Skipped(printable(name), str(error.strerror)))
            continue
        if stat.S_ISDIR(info.st_mode):
            continue
        reason = _refusal(info.st_size, stat.S_ISREG(info.st_mode))
        if reason:
            found.skipped.append(Skipped(printable(name), reason))
        else:
            found.stamps[name] = (info.st_size, info.st_mtime_ns)
    return found


def _list_members(path: str, takes_outputs: bool) -> _Found:
    """List the pictures in a .zip; where two members have one name, the later counts."""
    with _open_zip(path) as archive:
        members = {info.filename: info for info in archive.infolist()}

        def outputs_of(folder: str) -> bytes:
            info = members.get(f"{folder}/{OUTPUTS_FILE}".lstrip("/"))
            with contextlib.suppress(Exception):  # damaged or encrypted
                if info is not None and info.file_size < MAX_BYTES:
                    return archive.read(info)
            return b""

        found = _Found(outputs_of, takes_outputs)
        for name, info in members.items():
            if not found.is_wanted(name):
                continue
            is_encrypted = bool(info.flag_bits & 1)
            reason = "encrypted" if is_encrypted else _refusal(info.file_size, is_file=True)
            if reason:
                found.skipped.append(Skipped(printable(name), reason))
            else:
                found.stamps[name] = (info.file_size, info.CRC)
    return found


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
