"""Programs in processes that are forked from one that has imported what they need.

Importing PyTorch takes seconds, and the tests start many programs. Each runs in a new process all
the same: in a group of its own, with its own memory, streams and signals.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from functools import partial

from torch.multiprocessing import start_processes

from distributed import processes, supervision

CAN_FORK = sys.platform == "linux"
PRELOADED = ["train", "rank_workers", "cache_worker"]


def server():
    """Return a context whose processes are forked from a process with all modules."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


class Forked:
    """A running program with the part of Popen's interface that the tests use."""

    def __init__(self, program, arguments, environment):
        self.stderr = tempfile.NamedTemporaryFile("r", encoding="utf-8")
        self._error = None
        words = [str(program), *map(str, arguments)]
        of_program = (words, dict(environment), os.getcwd(), self.stderr.name)
        self._process = server().Process(target=_run, args=of_program)
        self._process.start()
        atexit.register(self._process.kill)  # else the tests would wait for it at their end
        self.pid = self._process.pid
        self.kill, self.terminate = self._process.kill, self._process.terminate

    @property
    def returncode(self):
        """Return the exit code as Popen does, or None if the program runs."""
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout=None):
        """Wait for the end; return None and stderr."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout)
        if self._error is None:
            with self.stderr:
                self._error = self.stderr.read()
        return None, self._error


def _run(words, environment, folder, error):
    """Run a program as `python WORDS` does, in this new process."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    descriptor = os.open(error, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.argv = words
    processes.start_processes = partial(_start_ranks, start_processes)
    runpy.run_path(words[0], run_name="__main__")


def _start_ranks(start, work, arguments, count, join):
    return start(partial(_as_new, work), arguments, count, join=join, start_method="fork")


def _as_new(work, *arguments):
    """Work as in a process that was not forked: signals do what they do by default."""
    for number in supervision.STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    work(*arguments)
