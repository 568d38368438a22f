"""BOUNDARY: files that a run appends to for days: bounded in size, and whole after a kill."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard import summary

from system.files import replaced

LOG_BYTES = 2**24  # of log.jsonl, after which it becomes log.1.jsonl; about 400,000 steps
BOARD_BYTES = 2**26  # of one TensorBoard file, mostly previews


class JsonLines:
    """A file of JSON lines, each with its step; cut into parts of bounded size and number.

    Args:
        path: the newest part; older ones are path with .1, .2, ... before its suffix.
        first_step: lines of later steps, and one that was not finished, are dropped.
        keep: older parts that stay.

    Raises:
        OSError: the file cannot be read or written.
    """

    def __init__(self, path: Path, first_step: int, *, keep: int) -> None:
        self.path, self.keep = path, keep
        if path.exists():
            lines = [line for line in path.read_bytes().splitlines() if _step(line) <= first_step]
            with replaced(path) as draft:
                draft.write(b"".join(line + b"\n" for line in lines))
        self.file = path.open("ab", buffering=0)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write one line, whole or not at all.

        Raises:
            OSError: it could not be written.
        """
        if self.file.tell() > LOG_BYTES:
            self._begin_part()
        line = (json.dumps({key: _plain(value) for key, value in entry.items()}) + "\n").encode()
        before = self.file.tell()
        try:
            while line:
                line = line[self.file.write(line) :]
        except OSError:
            self.file.truncate(before)
            raise

    def _begin_part(self) -> None:
        """Call this part .1, the one before .2, and so on; the oldest goes."""
        self.file.close()
        for number in range(self.keep, 0, -1):
            part = self._part(number - 1)
            if part.exists():
                part.replace(self._part(number))
        self.file = self.path.open("ab", buffering=0)

    def _part(self, number: int) -> Path:
        name = f"{self.path.stem}.{number}{self.path.suffix}" if number else self.path.name
        return self.path.with_name(name)

    def close(self) -> None:
        """No more lines."""
        self.file.close()


def _step(line: bytes) -> float:
    """The step of a line; infinity where it is torn."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _plain(value: object) -> object:
    """JSON has no infinities: they become text."""
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return str(value)
    return value


class Board:
    """Numbers and pictures for TensorBoard: a new file when one is large, the oldest ones go.

    Events are written at once and by this thread: torch's SummaryWriter has a thread that dies at
    the first error of the disk.

    Args:
        folder: made when the first event comes.
        first_step: what earlier files say of later steps is not shown.
        keep: how many full files stay beside the newest one; many small ones count as one.
    """

    def __init__(self, folder: Path, first_step: int, *, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self.opening = [
            Event(file_version="brain.Event:2"),
            Event(step=first_step + 1, session_log=SessionLog(status=SessionLog.START)),
        ]
        self.number = 0
        self.file: Any = None

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add numbers by name.

        Raises:
            OSError: they could not be written.
        """
        for name, value in values.items():
            self._add(Event(step=step, summary=summary.scalar(name, value)))

    def image(self, name: str, image: Tensor, step: int) -> None:
        """Add a uint8 picture (3, H, W).

        Raises:
            OSError: it could not be written.
        """
        self._add(Event(step=step, summary=summary.image(name, image, dataformats="CHW")))

    def _add(self, event: Any) -> None:
        try:
            if self.file is None or self.file.tell() > BOARD_BYTES:
                self._begin_file()
            self._write(event)
        except OSError:
            self.close()  # its last event may be torn: the next one begins another file
            raise

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        RecordWriter(self.file).write(event.SerializeToString())
        self.file.flush()

    def _begin_file(self) -> None:
        self.close()
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{time.time_ns() // 10**6:013d}.{socket.gethostname()}.{os.getpid()}.{self.number}"
        self.number += 1
        self.file = (self.folder / f"events.out.tfevents.{name}").open("ab")
        for event in self.opening:
            self._write(event)
        self._drop_old()

    def _drop_old(self) -> None:
        files = sorted(self.folder.glob("events.out.tfevents.*"), reverse=True)
        total = 0
        for file in files[1:]:
            total += file.stat().st_size
            if total > self.keep * BOARD_BYTES:
                file.unlink()

    def close(self) -> None:
        """No more events in this file."""
        if self.file is not None:
            with contextlib.suppress(OSError):  # of what it could not write before
                self.file.close()
            self.file = None
