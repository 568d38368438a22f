"""BOUNDARY: the screen of long work, which must not end for it."""

import contextlib
import sys
from typing import Any


class Screen:
    """stderr, silent where it is on a full disk or its reader has gone away."""

    def write(self, text: str) -> int:
        """Text to stderr; returns its length."""
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        """Have it on the screen now."""
        with contextlib.suppress(OSError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)
