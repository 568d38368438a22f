"""Helpers for commands: user errors, flags, atomic writes, locks, memory and thread limits."""

import io
import sys

from own_modules import is_command
from system.errors import explain_missing_package

# Set here, because commands import their modules before they can catch an error. Other people's
# scripts that import this project keep Python's own report.
if is_command():
    sys.excepthook = explain_missing_package
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # some have no letters for all file names
            stream.reconfigure(errors="backslashreplace")
