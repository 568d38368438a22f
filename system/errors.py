"""Errors that a user causes, and hints that name the nearest valid choice."""

import difflib
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from own_modules import ROOT

T = TypeVar("T")


class UsageError(Exception):
    """A user's input is wrong; the text is one clear line that says what to change."""


def explain_missing_package(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Report a package that is not installed in one line, other uncaught errors as Python does."""
    name = getattr(error, "name", None) or ""
    package = name.partition(".")[0]
    is_ours = any((ROOT / own).exists() for own in (package, f"{package}.py"))
    if not isinstance(error, ModuleNotFoundError) or is_ours:
        sys.__excepthook__(kind, error, trace)
        return
    print(f"error: needs the package {package}: pip install -r requirements.txt", file=sys.stderr)
    sys.exit(2)


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return a hint such as " Did you mean 'CelebA'?", or "" if no choice is close."""
    folded = {choice.casefold(): choice for choice in choices}
    close = difflib.get_close_matches(name.casefold(), folded, n=1)
    return f" Did you mean {folded[close[0]]!r}?" if close else ""


def nearest_path(path: str | Path) -> str:
    """Return a hint that names a similar file beside a path that does not exist, or ""."""
    wanted = Path(path)
    try:
        beside = [entry.name for entry in wanted.parent.iterdir()]
    except OSError:
        return ""
    others = [name for name in beside if name != wanted.name]
    close = difflib.get_close_matches(wanted.name, others, n=1)
    return f" Did you mean {str(wanted.parent / close[0])!r}?" if close else ""


def choose(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Return table[name].

    Raises:
        UsageError: name is not in table; the text lists the choices and the nearest one.
    """
    if name in table:
        return table[name]
    choices = ", ".join(sorted(table))
    raise UsageError(f"unknown {kind} {name!r}; choose one of {choices}.{nearest(name, table)}")
