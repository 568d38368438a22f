"""BOUNDARY: whether the other processes of a run still live, told within a minute.

A process that ends closes its connections, which its peers notice at once. One that is stopped, or
whose machine or cable is gone, says nothing: peers would wait for it in the next collective
operation until that times out. So a thread of every process counts up a number of its own in a
store that all share, and looks at the numbers of the others.

The thread falls silent on its own where the process hangs: when the main thread has worked at one
piece of a step far longer than it ever did. Work between steps (saving, previews, measuring) may
take as long as it takes.
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not in its __all__

BEAT_SECONDS = 2.0
LOST_SECONDS = 20.0  # without a beat, after which a peer counts as lost
STUCK_SECONDS = 15.0  # of work without a collective operation, after which a process is stuck ...
STUCK_FACTOR = 10.0  # ... unless it has needed a tenth of that before
FIRST_SECONDS = 600.0  # patience while nothing is known: compilers and caches warm up


class Heartbeat:
    """The signs of life of this process and of its peers.

    Args:
        store: shared by all ranks; used by this object alone.
        rank: of this process.
        world_size: number of processes.
    """

    def __init__(self, store: TCPStore, rank: int, world_size: int) -> None:
        self._store, self._rank = store, rank
        self._peers = [peer for peer in range(world_size) if peer != rank]
        now = time.monotonic()
        self._counts = dict.fromkeys(self._peers, -1)
        self._heard = dict.fromkeys(self._peers, now)
        self._looked = now
        self._working_since: float | None = None
        self._longest = 0.0
        self._end = threading.Event()
        store.set_timeout(timedelta(seconds=LOST_SECONDS))
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Fall silent: this process has done its part, or will hear no one any more."""
        self._end.set()
        self._thread.join(BEAT_SECONDS)  # not for ever: it may wait for a machine that is gone

    def complaint(self) -> str | None:
        """Which peer is lost, None where all live."""
        now = time.monotonic()
        if now - self._looked > LOST_SECONDS:
            return f"the machine of rank 0 has not answered for {LOST_SECONDS:.0f} s"
        lost = [str(peer) for peer in self._peers if now - self._heard[peer] > LOST_SECONDS]
        return (
            f"rank {', '.join(lost)} gave no sign of life for {LOST_SECONDS:.0f} s"
            if lost
            else None
        )

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """The main thread works inside, which takes about as long every time."""
        self._working_since = time.monotonic()
        try:
            yield
            self._note_length()
        finally:
            self._working_since = None

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """The main thread waits for its peers inside; that is not work."""
        was_working = self._working_since is not None
        if was_working:
            self._note_length()
        self._working_since = None
        try:
            yield
        finally:
            self._working_since = time.monotonic() if was_working else None

    def _note_length(self) -> None:
        if self._working_since is not None:
            self._longest = max(self._longest, time.monotonic() - self._working_since)

    @property
    def _is_stuck(self) -> bool:
        since = self._working_since
        if since is None:
            return False
        known = max(STUCK_SECONDS, STUCK_FACTOR * self._longest)
        return time.monotonic() - since > (known if self._longest else FIRST_SECONDS)

    def _beat(self) -> None:
        """What the thread does. A store that is gone ends it, which `complaint` notices."""
        with contextlib.suppress(RuntimeError):
            while not self._end.wait(BEAT_SECONDS):
                if not self._is_stuck:
                    self._store.add(f"beat/{self._rank}", 1)
                for peer in self._peers:
                    count = self._store.add(f"beat/{peer}", 0)
                    if count != self._counts[peer]:
                        self._counts[peer], self._heard[peer] = count, time.monotonic()
                self._looked = time.monotonic()
