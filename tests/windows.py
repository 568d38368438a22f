"""Behaviours of Windows, on other systems: its locks and its treatment of open files."""

import os
from pathlib import Path

from system import files


class Msvcrt:
    """The module msvcrt with the locks of the local system.

    Source: Python's documentation of msvcrt.locking, and Microsoft's of _locking.
    """

    LK_NBLCK = 2

    @staticmethod
    def locking(descriptor, mode, num_bytes):
        import fcntl

        assert mode == Msvcrt.LK_NBLCK
        start = os.lseek(descriptor, 0, os.SEEK_CUR)
        assert start + num_bytes > start >= 2**20  # others could not read what is there
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PermissionError(13, "Permission denied") from error


def is_open(path):
    """Return whether this process has the file open."""
    own = (os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd"))
    return os.path.realpath(path) in own


def install_locks(monkeypatch):
    """Let system.files lock as on Windows, where no open file can be removed."""
    unlink = Path.unlink

    def refusing_unlink(path, missing_ok=False):
        if is_open(path):
            raise PermissionError(13, "The process cannot access the file", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refusing_unlink)
    monkeypatch.setattr(files, "fcntl", None)
    monkeypatch.setattr(files, "msvcrt", Msvcrt)
