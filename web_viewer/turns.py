"""BOUNDARY: one thread that works for many visitors, a small step for each in turn."""

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Hashable, Iterator

Work = Callable[[], Iterator[None]]  # begins what a visitor wants now; each next() is a small step


class Turns:
    """Who has a turn next.

    A visitor's work begins when it is wanted and ends by itself. Wanted again meanwhile, it begins
    once more after that, and only once: what happens at the new beginning is the latest.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._works: dict[Hashable, Work] = {}
        self._running: dict[Hashable, Iterator[None]] = {}
        self._wanted: set[Hashable] = set()
        self._order: deque[Hashable] = deque()
        self._is_closed = False

    def join(self, visitor: Hashable, work: Work) -> None:
        """A visitor comes; work is wanted at once."""
        with self._changed:
            self._works[visitor] = work
            self._order.append(visitor)
        self.want(visitor)

    def leave(self, visitor: Hashable) -> None:
        """A visitor goes; what runs for it gets no further step."""
        with self._changed:
            if self._works.pop(visitor, None) is None:
                return
            self._running.pop(visitor, None)
            self._wanted.discard(visitor)
            self._order.remove(visitor)

    def want(self, visitor: Hashable) -> None:
        """Have the visitor's work done from the start, after what runs for it now."""
        with self._changed:
            if visitor in self._works:
                self._wanted.add(visitor)
                self._changed.notify_all()

    def is_wanted(self, visitor: Hashable) -> bool:
        """Whether the visitor's work is to begin again: what runs for it now is out of date."""
        with self._changed:
            return visitor in self._wanted

    def step(self) -> bool:
        """Do one step for the visitor whose turn it is; False where there is nothing to do."""
        found = self._next()
        if found is None:
            return False
        visitor, running = found
        try:
            next(running)
        except StopIteration:
            self._forget(visitor, running)
        except Exception:  # one visitor's mishap is not the end of the others' pictures
            traceback.print_exc()
            self._forget(visitor, running)
        return True

    def _next(self) -> tuple[Hashable, Iterator[None]] | None:
        with self._changed:
            for _ in range(len(self._order)):
                visitor = self._order[0]
                self._order.rotate(-1)
                if visitor not in self._running and visitor in self._wanted:
                    self._wanted.discard(visitor)
                    self._running[visitor] = self._works[visitor]()
                if visitor in self._running:
                    return visitor, self._running[visitor]
        return None

    def _forget(self, visitor: Hashable, running: Iterator[None]) -> None:
        with self._changed:
            if self._running.get(visitor) is running:
                del self._running[visitor]

    def run(self, *, seconds: float, look_around: Callable[[], None]) -> None:
        """Work until close; look_around is called in between, whenever so many seconds are over."""
        looked = time.monotonic()
        while not self._is_closed:
            if time.monotonic() - looked >= seconds:
                looked = time.monotonic()
                look_around()
            if self.step():
                continue
            with self._changed:
                if not self._wanted and not self._is_closed:
                    self._changed.wait(seconds)

    def close(self) -> None:
        """Have run return."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
