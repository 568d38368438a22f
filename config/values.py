"""Parse and check values that people write: numbers in a range, names of a table, literals."""

import ast
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from system.errors import UsageError, nearest


@dataclass(frozen=True)
class Range:
    """Numbers from low to high; low itself only if includes_low."""

    low: float
    high: float = float("inf")
    includes_low: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.low <= value if self.includes_low else self.low < value) and value <= self.high

    def __str__(self) -> str:
        start = "at least" if self.includes_low else "more than"
        end = "" if self.high == float("inf") else f" and at most {self.high:g}"
        return f"{start} {self.low:g}{end}"


@dataclass(frozen=True)
class OneOf:
    """The names of a table, so that a class added there can be named in a curriculum."""

    table: Mapping[str, object]


def literal(text: str) -> object:
    """Return the value that text stands for: a number, True, None, a tuple, or else the text."""
    words = {"true": True, "false": False, "none": None}
    if text.strip().lower() in words:
        return words[text.strip().lower()]
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def convert(where: str, value: object, hint: Any) -> Any:
    """Return value as the type hint says, or raise UsageError with what is allowed."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(where, value, get_args(hint))
    if origin is Literal:
        return _convert_choice(where, value, get_args(hint))
    if origin is tuple:
        kind, second = get_args(hint)
        is_pair = second is not Ellipsis
        if not isinstance(value, (list, tuple)) or not value or is_pair and len(value) != 2:
            expected = "a pair of numbers" if is_pair else "numbers in parentheses"
            raise UsageError(f"{where} is {value!r}, it must be {expected}")
        return tuple(convert(where, item, kind) for item in value)
    if origin is Annotated:
        base, allowed = get_args(hint)
        if isinstance(allowed, OneOf):
            return _convert_choice(where, value, tuple(allowed.table))
        number = convert(where, value, base)
        if number not in allowed:
            raise UsageError(f"{where} is {value!r}, it must be {allowed}")
        return number
    return _convert_plain(where, value, hint)


def _convert_plain(where: str, value: object, kind: type) -> object:
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if abs(value) == float("inf") or value != value:
            raise UsageError(f"{where} is {value!r}, it must be a finite number")
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if type(value) is kind:
        return value
    expected = {float: "a number", int: "a whole number", bool: "True or False"}
    raise UsageError(f"{where} is {value!r}, it must be {expected.get(kind, 'text')}")


def _convert_choice(where: str, value: object, choices: tuple[object, ...]) -> object:
    if value in choices and type(value) in {type(choice) for choice in choices}:
        return value
    by_name = {str(choice).casefold(): choice for choice in choices}
    if isinstance(value, str) and value.casefold() in by_name:
        return by_name[value.casefold()]
    allowed = ", ".join(str(choice) for choice in choices)
    hint = nearest(str(value), [str(choice) for choice in choices])
    raise UsageError(f"{where} is {value!r}; choose one of {allowed}.{hint}")


def _convert_union(where: str, value: object, options: tuple[Any, ...]) -> Any:
    if value is None and type(None) in options:
        return None
    reasons: list[str] = []
    for option in options:
        if option is type(None):
            continue
        try:
            return convert(where, value, option)
        except UsageError as error:
            reasons.append(str(error).removeprefix(f"{where} is {value!r}"))
    others = "".join(f", or {reason.strip(',; .')}" for reason in reasons[1:])
    raise UsageError(f"{where} is {value!r}{reasons[0]}{others}")
