"""Argument parser, argparse types and flags that the commands share, and how to run a command."""

import argparse
import errno
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import torch

from own_modules import hear_interrupts, put_back
from system import machine
from system.errors import UsageError, nearest
from system.screen import STDOUT_NAME, safe_streams

T = TypeVar("T")

STDOUT = 1  # its file descriptor
USAGE_EXIT_CODE = 2  # argparse and most shell tools use it for a wrong command line
INTERRUPT_EXIT_CODE = 130  # 128 + SIGINT
DISK_EXIT_CODE = 1
DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG),
)
# The path is wrong; the last for names with a colon and the like on disks of Windows.
NAME_ERRORS = (errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL)
PIPE_ERRORS = (errno.EPIPE, errno.EINVAL)  # Windows has the second
BROKEN_PIPE_EXIT_CODE = 141  # 128 + SIGPIPE
MAX_INT = 2**63 - 1  # the largest integer in PyTorch and in our files
MAX_PIXELS = 16_384  # per side of a picture: its rays take 25 GiB
MAX_EXTRA = 3  # superfluous words that an error message names
MAX_SEEDS = 100_000  # more is a typing error, and would fill the memory


def run(main: Callable[[Sequence[str] | None], int | None]) -> int:
    """Run main on the process's own arguments and return the exit code, 0 for None.

    A UsageError prints one line on stderr and exits with 2, a full or broken disk one line and 1,
    Ctrl-C one line and 130. A closed pipe (`| head`) ends the command silently. Closed standard
    streams change nothing. Any other error is a bug of this project and keeps its traceback.
    """
    with safe_streams():
        try:
            hear_interrupts()
            code = main(None) or 0
            sys.stdout.flush()
        except UsageError as error:
            print(f"error: {str(error).strip()}".replace("\n", " "), file=sys.stderr)
            return USAGE_EXIT_CODE
        except OSError as error:
            if error.filename == STDOUT_NAME:
                # Otherwise the interpreter reports an error when it flushes stdout at exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
                if error.errno in PIPE_ERRORS:
                    return BROKEN_PIPE_EXIT_CODE
            if not is_of_disk(error):
                raise
            print(f"error: {disk_complaint(error)}", file=sys.stderr)
            return USAGE_EXIT_CODE if error.errno in NAME_ERRORS else DISK_EXIT_CODE
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPT_EXIT_CODE
        finally:
            put_back()
    return code


def is_of_disk(error: OSError) -> bool:
    """Return whether a full or broken disk, or a wrong path, prevented writing a known file."""
    return error.errno in (*DISK_ERRORS, *NAME_ERRORS) and error.filename is not None


def disk_complaint(error: OSError) -> str:
    """Return one line that describes an error for which is_of_disk is true."""
    return f"cannot write {error.filename} ({error.strerror})"


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of a flag if it has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.default == []:
            return action.help
        return super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser that raises its errors as UsageError and names the nearest flag.

    Flags can't be abbreviated: `--seed` must not silently mean `--seeds`.

    Args:
        description: of the command.
        owners: flags that take no value, and the flag that a word behind each was meant for; at ""
            the flag that a single plain word was meant for, if that flag was not typed.
    """

    def __init__(self, description: str, owners: Mapping[str, str] | None = None) -> None:
        super().__init__(
            description=description,
            allow_abbrev=False,
            formatter_class=_HelpFormatter,
        )
        self._owners = owners or {}
        self._typed: list[str] = []
        self._negative_number_matcher = re.compile(r"-\.?\d")  # so that -1e-3 is a value too

    def parse_known_args(  # type: ignore[override]  # argparse overloads it by the namespace's type
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse like argparse, but report a mistyped flag before a missing argument.

        "~" at the start of a value is the home folder, also in --flag=~/x, which shells leave as
        it is.

        Raises:
            UsageError: args can't be understood.
        """
        typed = [_expanded(text) for text in (sys.argv[1:] if args is None else args)]
        self._typed = typed
        for text in typed[: typed.index("--") if "--" in typed else None]:
            self._refuse_unknown_flag(text)
        return super().parse_known_args(typed, namespace)

    def _refuse_unknown_flag(self, text: str) -> None:
        flag = text.partition("=")[0]
        known = self._option_string_actions
        if not re.match(r"--?[A-Za-z]", flag) or " " in flag or flag in known:
            return
        if re.match(r"-[A-Za-z]", flag) and flag[:2] in known:  # -n5 is -n 5
            return
        self.error(f"unknown flag {flag}.{nearest('--' + flag.lstrip('-'), known)}")

    def error(self, message: str) -> NoReturn:
        """Raise message as a UsageError, without argparse's word "argument" before a flag.

        If the shell has expanded a pattern to many superfluous words, the message names a few.
        """
        message = re.sub(r"\bargument (?=-)", "", message)
        valued = re.fullmatch(r"(--\w+): ignored explicit argument '(.*)'", message)
        if valued:
            raise UsageError(self._misplaced(valued[2], valued[1]))
        found, _, words = message.partition("unrecognized arguments: ")
        if words and not found:
            extra = words.split(" ")
            message = self._misplaced(extra[0], self._before(extra[0])) or _too_many(extra)
        raise UsageError(message)

    def _before(self, word: str) -> str:
        """Return the flag or value that was typed in front of word, or ""."""
        at = self._typed.index(word) if word in self._typed else 0
        return self._typed[at - 1] if at else ""

    def _misplaced(self, word: str, before: str) -> str:
        """Explain a word that belongs to another flag than the one before it, or return ""."""
        action = self._option_string_actions.get(before)
        if action is not None and action.nargs == 0:
            owner = self._owners.get(before)
            return f"{before} takes no value{f'; write {before} {owner} {word}' if owner else ''}"
        owner = self._owners.get("")
        if owner is None or owner in self._typed or not word.isidentifier():
            return ""
        return f"{word!r} needs a flag: {owner} {word}"

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Check a choice like argparse, but name the nearest choice in the error."""
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            hint = nearest(str(value), choices)
            text = f"{value!r} is none of {', '.join(choices)}.{hint}"
            raise argparse.ArgumentError(action, text)


def _expanded(text: str) -> str:
    """Return text with the home folder for a "~" at the start of a value."""
    flag, equals, value = text.partition("=") if text.startswith("-") else ("", "", text)
    return flag + equals + os.path.expanduser(value)


def _too_many(extra: Sequence[str]) -> str:
    more = f" and {len(extra) - MAX_EXTRA} more" if len(extra) > MAX_EXTRA else ""
    return (
        f"too many words: {' '.join(extra[:MAX_EXTRA])}{more}; a pattern such as 'photos/*.png' "
        "must stand in quotes"
    )


def _number(text: str, kind: Callable[[str], T], is_valid: Callable[[T], bool], wanted: str) -> T:
    """Return text as a number of that kind.

    Raises:
        argparse.ArgumentTypeError: no number, or not a valid one; argparse adds the flag's name.
    """
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not is_valid(value):
        raise argparse.ArgumentTypeError(f"must be {wanted}, not {text!r}")
    return value


def whole(lowest: int, highest: int = MAX_INT) -> Callable[[str], int]:
    """Return an argparse type for whole numbers from lowest to highest."""

    def parse(text: str) -> int:
        wanted = f"a whole number of at least {lowest}"
        number = _number(text, int, lambda value: value >= lowest, wanted)
        if number > highest:
            raise argparse.ArgumentTypeError(f"must be at most {highest}, not {text!r}")
        return number

    return parse


positive_int, non_negative_int = whole(1), whole(0)  # argparse types
pixels = whole(1, MAX_PIXELS)  # of an image's side


def positive_float(text: str) -> float:
    """Parse a flag's text as a finite number above 0."""
    return _number(text, float, lambda value: 0 < value < float("inf"), "a number above 0")


def finite_float(text: str) -> float:
    """Parse a flag's text as a finite number."""
    return _number(text, float, math.isfinite, "a number")


def number(lowest: float, highest: float) -> Callable[[str], float]:
    """Return an argparse type for numbers from lowest to highest, both included."""
    wanted = f"a number from {lowest:g} to {highest:g}"
    return lambda text: _number(text, float, lambda value: lowest <= value <= highest, wanted)


fraction = number(0, 1)  # an argparse type


def port_number(text: str) -> int:
    """Parse a flag's text as a TCP port; 0 means any free one."""
    return _number(text, int, lambda value: 0 <= value <= 65535, "a port from 0 to 65535")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device, whose text resolve_device turns into a device."""
    parser.add_argument(
        "--device",
        default="auto",
        metavar="auto|cpu|cuda|cuda:N|mps",
        help="where to compute; auto takes CUDA if there is one and the CPU otherwise",
    )


def resolve_device(text: str) -> torch.device:
    """Return the device that the text of --device names; "cuda" gets its index.

    "auto" never picks mps, which has no float64 and which we do not test: users must ask for it.
    If it picks the CPU beside an NVIDIA GPU, a note says why.

    Raises:
        UsageError: text is no device, one that this machine does not have, or a GPU that this
            build of PyTorch has no code for.
    """
    match = re.fullmatch(r"(auto|cpu|mps|cuda)(?::(\d+))?", text)
    if match is None or (match[2] is not None and match[1] != "cuda"):
        hint = nearest(text, ["auto", "cpu", "cuda", "cuda:0", "mps"])
        raise UsageError(f"--device {text}: choose auto, cpu, cuda, cuda:N or mps.{hint}")
    kind, index = match[1], int(match[2] or 0)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "auto":
        kind = "cuda" if count else "cpu"
        is_first = os.environ.get("LOCAL_RANK", "0") == "0"  # of a machine's, under torchrun
        if not count and is_first and (note := machine.overlooked_gpu()):
            print(f"note: {note}", file=sys.stderr)
    if kind == "cuda" and count == 0:
        raise UsageError(f"--device {text}: PyTorch sees no CUDA device here; use --device cpu")
    if kind == "cuda" and index >= count:
        raise UsageError(f"--device {text}: the devices here are cuda:0 to cuda:{count - 1}")
    if kind == "cuda" and (reason := machine.unsupported_gpu(index)):
        raise UsageError(f"--device {text}: {reason}")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: PyTorch sees no Apple GPU here; use --device cpu")
    return torch.device(kind, index) if kind == "cuda" else torch.device(kind)


def parse_seeds(texts: Iterable[str]) -> list[int]:
    """Return seeds in the order typed: ["0", "3", "7-9"] and ["0,3,7-9"] give [0, 3, 7, 8, 9].

    Raises:
        UsageError: a text is no such list, a range runs backwards, or there are too many seeds.
    """
    seeds: list[int] = []
    for part in (part.strip() for text in texts for part in text.split(",")):
        match = re.fullmatch(r"([0-9]{1,19})(?:-([0-9]{1,19}))?", part)
        if match is None:
            raise UsageError(f"--seeds: {part!r} is no seed; write 0 1 2, 0-15 or 0,3,7-9")
        first, last = int(match[1]), int(match[2] or match[1])
        if max(first, last) > MAX_INT:
            raise UsageError(f"--seeds: {part} is more than {MAX_INT}")
        if last < first:
            raise UsageError(f"--seeds: {part} runs backwards; write {last}-{first}")
        if len(seeds) + last - first >= MAX_SEEDS:
            raise UsageError(f"--seeds: {part} makes more than {MAX_SEEDS} seeds")
        seeds.extend(range(first, last + 1))
    return seeds


class _SeedsAction(argparse.Action):
    """Parses the words after --seeds with parse_seeds."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, parse_seeds(values or []))


def add_seeds(parser: argparse._ActionsContainer) -> None:
    """Add --seeds, a list of whole numbers in the parsed arguments."""
    parser.add_argument(
        "--seeds",
        nargs="+",
        action=_SeedsAction,
        default=[0, 1, 2],
        metavar="SEED",
        help="numbers and ranges, such as 0 1 2, 0-15 or 0,3,7-9",
    )
