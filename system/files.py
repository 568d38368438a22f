"""Files and folders that are written whole or not at all, and locks on folders."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from system.errors import UsageError


@contextlib.contextmanager
def replaced(path: Path, *, is_synced: bool = True) -> Iterator[BinaryIO]:
    """A file that takes the place of path when it is complete and on the disk, else never.

    Args:
        path: its folder is made where it is missing.
        is_synced: wait until it is on the disk; else a power cut may leave it empty.

    Raises:
        OSError: it cannot be written; filename is path where the system says why.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            yield file
            if is_synced:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(path)
        if is_synced:
            _sync_folder(path.parent)
    except OSError as error:
        if error.errno is None:  # its text would be lost
            raise
        # Another error, as not every library's one lets its filename be changed.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        draft.unlink(missing_ok=True)


def remove_drafts(folder: Path) -> None:
    """Remove what killed processes were writing into folder; nobody else may write there now."""
    for draft in folder.glob(".*.tmp"):
        if re.fullmatch(r"\..+\.\d+\.tmp", draft.name):
            shutil.rmtree(draft) if draft.is_dir() else draft.unlink()


@contextlib.contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """A folder that takes the place of path when all in it is written, else never."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft, old = (path.with_name(f".{path.name}.{os.getpid()}{end}") for end in (".tmp", "0.tmp"))
    try:
        draft.mkdir()
        yield draft
        _sync_folder(draft)
        if path.exists():
            path.replace(old)
        draft.replace(path)
        _sync_folder(path.parent)
    finally:
        for leftover in (draft, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Have the renames in folder on the disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def filled_folder(path: Path) -> Iterator[Path]:
    """The folder of --output_dir; what was made of it goes away where nothing is written into it.

    Raises:
        UsageError: it cannot be made or is no folder.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        yield output_folder(path)
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):  # it holds something
                folder.rmdir()
        raise


def output_folder(path: Path, *, flag: str = "--output_dir") -> Path:
    """The folder that flag names, made where it is missing.

    Raises:
        UsageError: it cannot be made or is no folder.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{flag} {path}: cannot be made ({error.strerror})") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UsageError(f"{flag} {path}: cannot be written")
    return path
