"""The machine and the command line: errors, flags, files written whole, locks, limits."""

import sys
from pathlib import Path

from system.errors import ROOT, explain_missing_package

# Here, because commands import their modules before they can catch an error; a script of somebody
# else that imports ours keeps Python's own report.
if Path(getattr(sys.modules["__main__"], "__file__", None) or "").resolve().parent == ROOT:
    sys.excepthook = explain_missing_package
