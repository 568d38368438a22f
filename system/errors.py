"""Errors that a person causes, and hints that name what they may have meant."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class UsageError(Exception):
    """Something a person typed or gave is wrong; the text is one clear line for them."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """A hint such as " Did you mean 'CelebA'?", or nothing where no choice is close."""
    folded = {choice.casefold(): choice for choice in choices}
    close = difflib.get_close_matches(name.casefold(), folded, n=1)
    return f" Did you mean {folded[close[0]]!r}?" if close else ""


def nearest_path(path: str | Path) -> str:
    """A hint that names what exists beside a path that was not meant, or nothing."""
    wanted = Path(path)
    try:
        beside = [entry.name for entry in wanted.parent.iterdir()]
    except OSError:
        return ""
    others = [name for name in beside if name != wanted.name]
    close = difflib.get_close_matches(wanted.name, others, n=1)
    return f" Did you mean {str(wanted.parent / close[0])!r}?" if close else ""


def choose(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Look name up in table.

    Raises:
        UsageError: name is not in table; the text lists the choices and the nearest one.
    """
    if name in table:
        return table[name]
    choices = ", ".join(sorted(table))
    raise UsageError(f"unknown {kind} {name!r}; choose one of {choices}.{nearest(name, table)}")
