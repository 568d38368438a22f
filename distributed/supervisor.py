"""BOUNDARY: several processes of this machine as one, and the signals that end them."""

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Literal

from system import flags
from system.errors import UsageError
from system.flags import DISK_EXIT_CODE, INTERRUPT_EXIT_CODE

POLL_SECONDS = 0.1  # between looks at the ranks
SETTLE_SECONDS = 0.5  # after a failure, until a rank that failed before has been heard too
GRACE_SECONDS = 20.0  # between SIGTERM and SIGKILL, enough to save a state
REPEAT_SECONDS = 1.0  # torchrun passes on the Ctrl-C that the terminal has already sent
SIGTERM_EXIT_CODE = 128 + signal.SIGTERM
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class PeerLost(Exception):
    """Another process of the run has ended or cannot be reached; no text where that is told."""


class StopSignal:
    """While entered, the first Ctrl-C or SIGTERM only sets `requested`, for the loop to end by.

    A second Ctrl-C raises KeyboardInterrupt; a second SIGTERM changes nothing, as who sends it
    sends SIGKILL next. Repeats within a second are the same. Where SIGINT is ignored (nohup, the
    ranks of a supervisor) it stays ignored. Outside the main thread nothing can be caught.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._when = 0.0
        self._previous: dict[int, object] = {}

    @property
    def requested(self) -> bool:
        """Whether somebody has asked for the end."""
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
            signal.signal(signum, handler)  # type: ignore[arg-type]  # what signal.signal gave us

    def _handle(self, signum: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self.signum is None:
            self.signum, self._when = signum, now
        elif signum == signal.SIGINT and now - self._when > REPEAT_SECONDS:
            raise KeyboardInterrupt


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Report:
    """A rank's last word. when: time.monotonic(), which is one clock for all processes."""

    kind: Literal["returned", "usage", "disk", "lost", "failed"]
    code: int = 1
    text: str = ""
    when: float = field(default_factory=time.monotonic)


@dataclass(eq=False)
class _Rank:
    """The supervisor's view of a rank, as of the last look."""

    index: int
    process: SpawnProcess
    connection: Connection
    report: _Report | None = None
    is_over: bool = False

    def look(self) -> None:
        """Take in whether the process has ended, and then (not before) what it has reported."""
        self.is_over = self.process.exitcode is not None
        with suppress(EOFError):
            if self.report is None and self.connection.poll():
                self.report = self.connection.recv()

    @property
    def has_returned(self) -> bool:
        """Whether the rank has done its work, with whatever exit code."""
        return self.report is not None and self.report.kind == "returned"

    @property
    def has_failed(self) -> bool:
        """Whether the run can't go on because of this rank."""
        return not self.has_returned and (self.is_over or self.report is not None)


def supervise(work: Callable[[int], int], count: int) -> int:
    """The exit code of work(rank), run in count new processes at once.

    The first rank to fail ends the others; its traceback (one line, where the disk has failed it)
    goes to stderr and the exit code is 1, or
    128 + n where signal n ended it. The first code other than 0 that a rank returns is passed on.
    The first Ctrl-C or SIGTERM reaches the ranks as SIGTERM, for their StopSignal.

    Args:
        work: picklable; a partial of a module-level function.
        count: how many ranks.

    Raises:
        UsageError: a rank raised it.
        KeyboardInterrupt: Ctrl-C before every rank had its StopSignal, or for the second time.
    """
    ranks: list[_Rank] = []
    with StopSignal() as stop:
        try:
            with _ignored_interrupts():
                for index in range(count):
                    ranks.append(_start(work, index))
            _watch(ranks, stop)
            code = _verdict(ranks, stop)
            # The ranks know of SIGTERM only, whatever the supervisor heard.
            is_ctrl_c = code == SIGTERM_EXIT_CODE and stop.signum == signal.SIGINT
            return INTERRUPT_EXIT_CODE if is_ctrl_c else code
        except KeyboardInterrupt:
            for rank in ranks:
                rank.process.kill()
            raise
        finally:
            _end(ranks)


@contextmanager
def _ignored_interrupts() -> Iterator[None]:
    """Processes started in here ignore Ctrl-C for good: their supervisor hears it for them."""
    if not _is_main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _start(work: Callable[[int], int], index: int) -> _Rank:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    # Not daemonic: a rank may have worker processes of its own.
    process = context.Process(target=_rank_main, args=(work, index, sender), name=f"rank {index}")
    process.start()
    sender.close()
    return _Rank(index, process, receiver)


def _rank_main(work: Callable[[int], int], index: int, connection: Connection) -> None:
    """What a rank's process does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        report = _Report(kind="returned", code=work(index))
    except UsageError as error:
        report = _Report(kind="usage", text=str(error))
    except PeerLost as error:
        report = _Report(kind="lost", text=str(error))
    except BaseException as error:
        if isinstance(error, OSError) and flags.is_of_disk(error):
            report = _Report(kind="disk", code=DISK_EXIT_CODE, text=flags.disk_complaint(error))
        else:
            report = _Report(kind="failed", text=traceback.format_exc())
    connection.send(report)
    if report.kind != "returned":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(report.code)  # an orderly end may wait for peers that wait for this rank


def _end_with_parent() -> None:
    """End this process at once when its parent is gone, however that came."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _watch(ranks: list[_Rank], stop: StopSignal) -> None:
    """Wait until all ranks have returned or one has failed; pass on a request to stop."""
    is_passed_on = False
    while not all(rank.has_returned for rank in ranks):
        _look(ranks)
        if any(rank.has_failed for rank in ranks):
            return _settle(ranks)
        if stop.requested and not is_passed_on:
            is_passed_on = True
            for rank in ranks:
                rank.process.terminate()
    for rank in ranks:
        rank.process.join(GRACE_SECONDS)


def _look(ranks: list[_Rank]) -> None:
    """Look at all ranks, as soon as one ends or after a short sleep."""
    wait([rank.process.sentinel for rank in ranks if not rank.is_over], POLL_SECONDS)
    for rank in ranks:
        rank.look()


def _settle(ranks: list[_Rank]) -> None:
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline and not all(rank.is_over for rank in ranks):
        _look(ranks)


def _verdict(ranks: list[_Rank], stop: StopSignal) -> int:
    """The exit code of the run; says on stderr what failed first, not what followed from it."""
    silent = [rank for rank in ranks if rank.is_over and rank.report is None]
    if silent and stop.requested and all(_died_by(rank, signal.SIGTERM) for rank in silent):
        if stop.signum == signal.SIGINT:
            raise KeyboardInterrupt
        return SIGTERM_EXIT_CODE
    # NCCL aborts a rank when a peer is gone, so SIGABRT may be a consequence; others are causes.
    causes = [rank for rank in silent if not _died_by(rank, signal.SIGABRT)]
    if causes:
        return _tell_death(causes[0])
    spoken = [(rank.report, rank.index) for rank in ranks if rank.report is not None]
    wrong = [(report, index) for report, index in spoken if report.code != 0]
    if not wrong:
        return _tell_death(silent[0]) if silent else 0
    # A rank that has lost another is a consequence as well, unless that one stands still.
    report, index = min(wrong, key=lambda pair: (pair[0].kind == "lost", pair[0].when))
    if report.kind == "usage":
        raise UsageError(report.text)
    if report.kind == "disk":
        print(f"error: {report.text}", file=sys.stderr)
    if report.kind == "failed":
        print(f"rank {index} of {len(ranks)} failed:\n{report.text}", end="", file=sys.stderr)
    if report.kind == "lost" and report.text:
        print(f"error: rank {index}: {report.text}", file=sys.stderr)
    return report.code


def _died_by(rank: _Rank, signum: int) -> bool:
    return rank.process.exitcode == -signum


def _tell_death(rank: _Rank) -> int:
    """The exit code for a rank that ended without a word, which is told on stderr."""
    code = rank.process.exitcode or 0
    if code >= 0:
        print(f"error: rank {rank.index} ended early, with exit code {code}", file=sys.stderr)
        return code or 1
    name = signal.Signals(-code).name
    hint = " (so the kernel ends what takes too much memory)" if -code == signal.SIGKILL else ""
    print(f"error: rank {rank.index} was ended by {name}{hint}", file=sys.stderr)
    return 128 - code


def _end(ranks: list[_Rank]) -> None:
    """End what still runs: politely, and after a while not so."""
    for rank in ranks:
        rank.process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for rank in ranks:
        rank.process.join(max(0.0, deadline - time.monotonic()))
        rank.process.kill()
        rank.process.join()
