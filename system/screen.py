"""Standard streams that may be closed or broken, and progress bars."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm

STDOUT_NAME = "the standard output"
BAR_SECONDS = 0.2  # between redraws on a terminal
LOG_SECONDS = 30.0  # between lines elsewhere

tqdm.set_lock(threading.RLock())  # a lock between processes is left over if one is killed


class Stream:
    """A text stream that ignores a full disk, a closed pipe and a terminal that is gone.

    With a name it raises these errors with that name as their filename.
    """

    def __init__(self, stream: Any, name: str | None = None) -> None:
        self._stream, self._name = stream, name

    def write(self, text: str) -> int:
        """Write text; returns its length."""
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self._attempt(self._stream.flush)

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            if self._name is not None:
                raise OSError(error.errno, error.strerror, self._name) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def safe_streams() -> Iterator[None]:
    """Let nothing fail inside because stdin, stdout or stderr is closed, or stderr is broken.

    Errors of a stdout that is no terminal have the filename STDOUT_NAME.

    A file that is opened while descriptor 0, 1 or 2 is free would get its number, and with it the
    messages of C libraries.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest free number
    before = sys.stdin, sys.stdout, sys.stderr
    with open(os.devnull, "r+", encoding="utf-8", errors="replace") as nothing:
        stdin, stdout, stderr = (stream or nothing for stream in before)
        sys.stdin = stdin
        sys.stdout = Stream(stdout, None if stdout.isatty() else STDOUT_NAME)
        sys.stderr = Stream(stderr)
        try:
            yield
        finally:
            sys.stdin, sys.stdout, sys.stderr = before


class _Log:
    """stderr for a progress bar where there is no terminal: each state becomes one line."""

    def write(self, text: str) -> int:
        if text.strip():
            sys.stderr.write(f"{text.strip()}\n")
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(
    total: int | None,
    unit: str,
    desc: str | None = None,
    *,
    initial: int = 0,
    is_shown: bool = True,
    is_left: bool = True,
    is_scaled: bool = False,
) -> "tqdm[int]":
    """Return a progress bar with rate and time left on stderr.

    Where stderr is no terminal it prints a line every LOG_SECONDS, and none in the first ones.

    The bar also iterates over total; None is unknown. initial units were done before. is_left
    leaves the last state on the screen; is_scaled writes numbers with k, M, G.
    """
    is_terminal = sys.stderr.isatty()
    seconds = BAR_SECONDS if is_terminal else LOG_SECONDS
    return tqdm(
        None if total is None else range(total),
        total=total,
        unit=unit,
        desc=desc,
        initial=initial,
        disable=not is_shown,
        leave=is_left,
        unit_scale=is_scaled,
        file=sys.stderr if is_terminal else _Log(),
        mininterval=seconds,
        maxinterval=seconds,
        delay=0 if is_terminal else seconds,
        dynamic_ncols=is_terminal,
        smoothing=0.05,
    )
