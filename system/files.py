"""Write files and folders atomically, and lock folders."""

import contextlib
import json
import math
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO

from system.errors import UsageError
from system.machine import optional_module
from system.outputs import PICTURES, list_outputs

fcntl, msvcrt = optional_module("fcntl"), optional_module("msvcrt")  # Windows has the second

LOCKED_BYTE = 2**30  # Windows locks bytes, and nobody else can read them: one behind the text
POLL_SECONDS = 0.1  # between tries to get a lock, or to rename
RENAME_SECONDS = 3.0  # for which Windows may refuse to rename a file that is open
Stamp = tuple[int, int, int]  # of a file


@contextlib.contextmanager
def replaced(path: Path, *, is_synced: bool = True) -> Iterator[BinaryIO]:
    """Yield a file that atomically replaces path at the end; after an error path is unchanged.

    A picture is added to its folder's list of outputs.

    Args:
        path: its folder is made if it is missing.
        is_synced: wait until it is on the disk; otherwise a power cut may leave it empty.

    Raises:
        OSError: it cannot be written; filename is path if the system gives a reason.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            yield file
            if is_synced:
                file.flush()
                os.fsync(file.fileno())
        if path.suffix in PICTURES:
            list_outputs(path.parent, [path.name])
        _rename(draft, path)
        if is_synced:
            _sync_folder(path.parent)
    except OSError as error:
        if error.errno is None:  # a new error would lose its text
            raise
        # A new error, because some libraries' errors do not let their filename be changed.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):  # a disk that cannot be written refuses this too
            draft.unlink(missing_ok=True)


def write_file(path: Path, content: bytes, *, is_synced: bool = True) -> None:
    """Write content to path, whole or not at all; arguments and errors as those of replaced."""
    with replaced(path, is_synced=is_synced) as file:
        file.write(content)


def json_bytes(content: Any, *, indent: int | None = None) -> bytes:
    """Encode content as JSON; infinities and NaN, which JSON does not have, become null."""
    return json.dumps(_without_nan(content), indent=indent, allow_nan=False).encode()


def _without_nan(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_nan(value) for value in content]
    is_number = not isinstance(content, float) or math.isfinite(content)
    return content if is_number else None


def stamp_of(path: Path) -> Stamp | None:
    """Return what changes when the file at path is written or replaced; None if there is none."""
    try:
        info = path.stat()
    except OSError:
        return None
    return info.st_ino, info.st_size, info.st_mtime_ns


def remove_drafts(folder: Path) -> None:
    """Remove temporary files that killed processes left in folder; nobody may write there now."""
    for draft in folder.glob(".*.tmp"):
        if re.fullmatch(r"\..+\.\d+\.tmp", draft.name):
            shutil.rmtree(draft) if draft.is_dir() else draft.unlink()


@contextlib.contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Yield a folder that replaces path at the end; after an error path is unchanged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft, old = (path.with_name(f".{path.name}.{os.getpid()}{end}") for end in (".tmp", "0.tmp"))
    try:
        draft.mkdir()
        yield draft
        _sync_folder(draft)
        if path.exists():
            _rename(path, old)
        _rename(draft, path)
        _sync_folder(path.parent)
    finally:
        for leftover in (draft, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _rename(path: Path, other: Path) -> None:
    """Rename path to other; on Windows wait for programs that are just reading one of them."""
    end = time.monotonic() + RENAME_SECONDS
    while True:
        try:
            path.replace(other)
        except PermissionError:
            if fcntl is not None or time.monotonic() > end:
                raise
            time.sleep(POLL_SECONDS)
        else:
            return


def _sync_folder(folder: Path) -> None:
    """Flush the renames in folder to the disk, if the system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def filled_folder(path: Path) -> Iterator[Path]:
    """Yield the folder of --output_dir; after an error remove empty folders that were made for it.

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
    """Make the folder that flag names if it is missing, and return it.

    Raises:
        UsageError: it cannot be made or is no folder.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{flag} {path}: cannot be made ({error.strerror})") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UsageError(f"{flag} {path}: cannot be written")
    offer_for_temporary_files(path)
    return path


def offer_for_temporary_files(folder: Path) -> None:
    """Let this process and those that it starts write temporary files into folder if need be.

    PyTorch and matplotlib ask for a place when they are imported, even if they then write nothing.

    Raises:
        OSError: folder is needed and cannot be made.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:  # none of the usual places can be written
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["TMPDIR"] = str(folder.absolute())


@contextlib.contextmanager
def run_folder(folder: Path) -> Iterator[None]:
    """Make the folder of --output_dir and lock it against other runs.

    After an error no lock file and no empty folder remain.

    Raises:
        UsageError: another run uses it, or the folder cannot be made or written.
    """

    def refuse(who: str) -> None:
        raise UsageError(f"--output_dir {folder}: another run uses it ({who}); stop that run, "
                         "or give another folder")  # fmt: skip

    with filled_folder(folder), contextlib.ExitStack() as stack:
        try:
            is_locked = stack.enter_context(locked(folder / "run.lock", refuse))
        except OSError as error:
            text = f"--output_dir {folder}: cannot be written ({error.strerror})"
            raise UsageError(text) from error
        if not is_locked:
            print(f"{folder}: its disk supports no locks; a second run in it would not be noticed",
                  file=sys.stderr)  # fmt: skip
        yield


@contextlib.contextmanager
def locked(path: Path, on_wait: Callable[[str], object]) -> Iterator[bool]:
    """Hold an exclusive lock; yields False if the disk does not support locks.

    The system releases the lock when its process ends for any reason: a leftover lock file locks
    nothing.

    Args:
        path: the lock file, which exists while the lock is held.
        on_wait: called with the holder's name before waiting for it; may raise an error.
    """
    file, is_locked = _hold(path, on_wait)
    with contextlib.suppress(OSError):  # a full disk
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    try:
        yield is_locked
    finally:
        # Once it is closed, another process may hold it; but Windows removes no open file, and so
        # none that another process holds.
        ending = (path.unlink, file.close) if fcntl is not None else (file.close, path.unlink)
        for action in ending:
            with contextlib.suppress(OSError):
                action()


def _hold(path: Path, on_wait: Callable[[str], object]) -> tuple[IO[str], bool]:
    """Open the file at path and lock it; return it, and whether the disk supports locks."""
    has_waited = False
    while True:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(_open_lock(path))
            try:
                while not _try_lock(file):
                    if not has_waited:
                        file.seek(0)
                        on_wait(file.read().strip() or "just starting")
                    has_waited = True
                    time.sleep(POLL_SECONDS)
            except OSError:
                stack.pop_all()
                return file, False
            # Its last holder may have removed the file between our opening and locking it.
            with contextlib.suppress(FileNotFoundError):
                is_same = os.path.samestat(os.fstat(file.fileno()), path.stat())
                if is_same or fcntl is None:  # Windows removes no open file
                    stack.pop_all()
                    return file, True


def _open_lock(path: Path) -> IO[str]:
    """Open a lock file, which another user may have made: it can be locked without writing."""
    try:
        return path.open("a+", encoding="utf-8")
    except PermissionError:
        with contextlib.suppress(OSError):
            return path.open(encoding="utf-8")
        raise


def _try_lock(file: IO[Any], *, is_shared: bool = False) -> bool:
    """Lock a file; return False if another process has locked it.

    Raises:
        OSError: the disk or the system supports no locks.
    """
    if fcntl is not None:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return True
    elif msvcrt is not None:
        os.lseek(file.fileno(), LOCKED_BYTE, os.SEEK_SET)
        with contextlib.suppress(PermissionError):
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            return True
    else:
        raise OSError("the system supports no locks")
    return False


def try_lock(file: IO[Any], *, is_shared: bool) -> bool | None:
    """Lock a file until its last descriptor is closed; a memory map of it holds one.

    Returns False if another process has locked it, and None if the disk or the system supports no
    such locks.
    """
    if fcntl is not None:
        with contextlib.suppress(OSError):
            return _try_lock(file, is_shared=is_shared)
    return None
