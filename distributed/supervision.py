"""Supervise the ranks started on this machine, and catch the signals that end a run."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, Literal

from system.errors import UsageError

# Windows has the first two and SIGBREAK, which closing the window sends.
STOP_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGBREAK")
STOP_SIGNALS = tuple(signal.Signals[name] for name in STOP_NAMES if hasattr(signal, name))
# Windows' terminate kills at once; there Ctrl-C reaches all processes of the window by itself.
CAN_TERMINATE = sys.platform != "win32"
REPEAT_SECONDS = 1.0  # torchrun passes on the Ctrl-C that the terminal has already sent
POLL_SECONDS = 0.1  # between checks of the ranks
GRACE_SECONDS = 30.0  # from SIGTERM to SIGKILL for the remaining ranks after a failure
SILENT_SECONDS = 10.0  # the same, if the failure is that another rank did not answer
STOPPING = "stopping; Ctrl-C again ends at once"
STDERR = 2


class StopSignal:
    """Context in which the first of STOP_SIGNALS only sets `requested`, which the loop checks.

    A second Ctrl-C raises KeyboardInterrupt. Other second signals change nothing: whoever sends
    SIGTERM can send SIGKILL next. Repeats within a second count once. A signal that is ignored (by
    nohup, or SIGINT in ranks that `launch` started) stays ignored. Outside the main thread no
    signal can be caught.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._when = 0.0
        self._previous: dict[int, object] = {}

    @property
    def requested(self) -> bool:
        """Return whether a signal has asked for the run to end."""
        return self.signum is not None

    def __enter__(self) -> "StopSignal":
        if _is_main_thread():
            for signum in STOP_SIGNALS:
                if signal.getsignal(signum) is not signal.SIG_IGN:
                    self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        while self._previous:
            signum, handler = self._previous.popitem()
            signal.signal(signum, handler)  # type: ignore[arg-type]  # from signal.signal

    def _handle(self, signum: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self.signum is None:
            self.signum, self._when = signum, now
            if signum == signal.SIGINT:  # a step can take seconds, and print may not be reentered
                with contextlib.suppress(OSError):
                    os.write(STDERR, f"\n{STOPPING}\n".encode())
        elif signum == signal.SIGINT and now - self._when > REPEAT_SECONDS:
            raise KeyboardInterrupt


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def ignored_interrupts() -> Iterator[None]:
    """Let processes started inside ignore Ctrl-C: this process passes it on as SIGTERM."""
    if not _is_main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The end of a rank's work. when: time.monotonic(), the same clock on all ranks."""

    kind: Literal["returned", "usage", "failed", "lost"]
    code: int
    text: str = ""
    when: float = field(default_factory=time.monotonic)

    def tell(self) -> None:
        """Print the error, if there was one."""
        print(self.text, end="", file=sys.stderr)


def supervise(processes: Sequence[BaseProcess], receivers: Sequence[Any], stop: StopSignal) -> int:
    """Wait until all ranks have ended; after a failure end the others and print it."""
    reports: list[Outcome | None] = [None] * len(processes)
    cause: int | None = None  # the first rank to fail
    deadline = float("inf")
    is_told = False
    while running := [process for process in processes if process.exitcode is None]:
        wait([process.sentinel for process in running], POLL_SECONDS)
        failed = [rank for rank, process in enumerate(processes) if process.exitcode]
        _read(receivers, reports)
        if failed and cause is None:
            cause = min(failed, key=lambda rank: (processes[rank].exitcode or 0) > 0)
            is_silent = _is_consequence(processes[cause].exitcode, reports[cause])
            deadline = time.monotonic() + (SILENT_SECONDS if is_silent else GRACE_SECONDS)
        if (failed or stop.requested) and not is_told:
            is_told = True
            for process in running if CAN_TERMINATE else []:
                process.terminate()
        if time.monotonic() > deadline:
            for process in running:
                process.kill()
    _read(receivers, reports)
    code = _verdict([process.exitcode or 0 for process in processes], reports, cause, stop)
    # Ranks always get SIGTERM; the exit code must name the signal that this process received.
    return 128 + stop.signum if code == 128 + signal.SIGTERM and stop.signum else code


def _read(receivers: Sequence[Any], reports: list[Outcome | None]) -> None:
    """Receive the reports that have arrived into reports."""
    for rank, receiver in enumerate(receivers):
        if reports[rank] is None and receiver.poll():
            reports[rank] = receiver.recv()


def _is_consequence(exit_code: int | None, report: Outcome | None) -> bool:
    """Return whether a rank ended because another did: by PeerLost or NCCL's watchdog."""
    return exit_code == -signal.SIGABRT or (report is not None and report.kind == "lost")


def _verdict(
    exit_codes: Sequence[int],
    reports: Sequence[Outcome | None],
    cause: int | None,
    stop: StopSignal,
) -> int:
    """Return the exit code of a run whose ranks have ended; print the cause of a failure.

    exit_codes are negative for a signal; reports are None where a rank died before it could report;
    cause is the first rank to fail, None where none has.
    """
    silent = {i: code for i, code in enumerate(exit_codes) if code and reports[i] is None}
    if silent and stop.requested and set(silent.values()) == {-signal.SIGTERM}:
        if stop.signum == signal.SIGINT:
            raise KeyboardInterrupt
        return 128 + signal.SIGTERM
    if cause in silent and exit_codes[cause] != -signal.SIGABRT:
        return _tell_death(cause, exit_codes[cause])
    spoken = [report for report in reports if report and report.code != 0]
    first = min(spoken, key=lambda report: (report.kind == "lost", report.when), default=None)
    if first is not None and first.kind == "usage":
        raise UsageError(first.text.removeprefix("error: ").strip())
    if first is not None:
        first.tell()
    codes = [0 if first is None else first.code]
    if first is None or first.kind == "lost":  # name the ranks that did not answer
        codes += [_tell_death(rank, code) for rank, code in silent.items()]
    return next((code for code in codes if code), 0)


def _tell_death(rank: int, exit_code: int) -> int:
    """Print how a rank ended without a report; return the exit code of the run for it."""
    if exit_code >= 0:
        print(f"error: rank {rank} ended early, with exit code {exit_code}", file=sys.stderr)
        return exit_code or 1
    name = signal.Signals(-exit_code).name
    hint = " (it did not answer, or took too much memory)" if name == "SIGKILL" else ""
    print(f"error: rank {rank} was ended by {name}{hint}", file=sys.stderr)
    return 128 - exit_code
