"""Take away from Python what Windows lacks, in every process whose PYTHONPATH names this folder.

The standard library decides on import which system it is on, so its modules come first.
"""

import asyncio.unix_events  # noqa: F401
import concurrent.futures.process  # noqa: F401
import multiprocessing.popen_spawn_posix  # noqa: F401
import multiprocessing.resource_sharer  # noqa: F401
import os
import select
import signal
import subprocess  # noqa: F401
import sys
import tempfile  # noqa: F401

for name in ("fcntl", "grp", "pwd", "resource", "termios", "tty", "pty", "syslog"):
    sys.modules[name] = None
for module, names in {
    os: ["sysconf", "fork", "forkpty", "sched_getaffinity", "geteuid", "getuid",
         "mkfifo", "killpg", "getpgid", "setsid", "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC",
         "O_NONBLOCK", "O_SYNC", "nice", "getloadavg"],
    signal: ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGALRM", "alarm"],
    select: ["poll", "epoll"],
}.items():  # fmt: skip
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
