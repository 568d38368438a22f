"""BOUNDARY: one run at a time in an output folder."""

import contextlib
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from system.errors import UsageError

RUN_LOCK = "run.lock"  # held by the main process of a run
RESCUE_LOCK = "rescue.lock"  # held by another process that saves because that one is lost


@contextlib.contextmanager
def locked(folder: Path, name: str = RUN_LOCK) -> Iterator[None]:
    """Keep others that ask for the same lock out of folder, which is made where it is missing.

    The system drops the lock with its process, however that ends; a file that is left over means
    nothing. After an error no lock file and no empty folder are left.

    Raises:
        UsageError: another run is at work there, or the folder cannot be made or written.
    """
    path = folder / name
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _hold(path)
    except OSError as error:
        _remove_empty(made)
        raise UsageError(f"--output_dir {folder}: cannot be written ({error.strerror})") from error
    try:
        with file:
            _tell_who(file)
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    path.unlink()
    finally:
        _remove_empty(made)


def _hold(path: Path) -> IO[str]:
    """The lock file at path, locked."""
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            who = file.read().strip() or "just starting"
            file.close()
            raise UsageError(
                f"--output_dir {path.parent}: another run is at work in it ({who}); stop it, or "
                "give another folder"
            ) from None
        except OSError as error:
            print(f"{path.parent}: its disk knows no locks ({error.strerror}); a second run in it "
                  "would not be noticed", file=sys.stderr)  # fmt: skip
            return file
        # Whoever held it before may have removed the file between our opening and locking it.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def _tell_who(file: IO[str]) -> None:
    """Name this process in its lock file, for the message that the next one gets."""
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()


def _remove_empty(folders: list[Path]) -> None:
    """Remove those of the folders, innermost first, that hold nothing."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
