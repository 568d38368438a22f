"""Give this project's modules precedence over other modules of the same names.

A notebook may have imported the package `datasets`, or its folder may hold a `config.py`. Importing
this module, before any other of the project, sets such modules aside; `put_back` undoes that.

A command imports for seconds. Until its main function begins, which calls `hear_interrupts`, Ctrl-C
ends it at once: it would be a traceback from anywhere in PyTorch, or be swallowed there.
"""

import os
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent  # of the repository
OWN, OTHER = "own:", "other:"  # before the names in sys.modules of modules that are set aside


def is_from(folder: Path, name: str, module: ModuleType | None) -> bool:
    """Return whether the module of that name is a file of folder, or in a package there."""
    file = Path(getattr(module, "__file__", None) or "")
    top = folder / name.partition(".")[0]
    return file == top.with_suffix(".py") or top in file.parents


def put_back() -> None:
    """Give other modules their names back; modules that were imported before keep working."""
    if sys.modules.pop(__name__, None) is None:  # the next import sets them aside again
        return
    if str(ROOT) in sys.path:
        sys.path.remove(str(ROOT))
    others = {_top(name.removeprefix(OTHER)) for name in sys.modules if name.startswith(OTHER)}
    for name in list(sys.modules):
        if _top(name) in others:
            sys.modules[OWN + name] = sys.modules.pop(name)
    _give_names_back(OTHER)


def _set_aside() -> None:
    sys.path.insert(0, str(ROOT))
    own = {path.stem for path in ROOT.glob("*.py")}
    own |= {path.parent.name for path in ROOT.glob("*/__init__.py")}
    for name, module in list(sys.modules.items()):
        if _top(name) in own and not is_from(ROOT, name, module):
            sys.modules[OTHER + name] = sys.modules.pop(name)
    _give_names_back(OWN)


def _top(name: str) -> str:
    return name.partition(".")[0]


def _give_names_back(mark: str) -> None:
    for name in [name for name in sys.modules if name.startswith(mark)]:
        sys.modules[name.removeprefix(mark)] = sys.modules.pop(name)


def hear_interrupts() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(*_: Any) -> None:
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, b"interrupted\n")
    os._exit(130)


def is_command() -> bool:
    """Return whether this process runs a file of this repository, and no session or notebook."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    return file is not None and Path(file).resolve().parent == ROOT


_set_aside()
if is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)
