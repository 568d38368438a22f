"""Helpers of the tests of faults: a tiny curriculum, and runs of the command with faults."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from system.machine import resource

ROOT = Path(__file__).parent.parent
FAULTY = Path(__file__).parent / "faulty_train.py"
TINY = """
from curriculums import Demo

Tiny = {key: value for key, value in Demo.items() if not isinstance(key, int)}
Tiny |= {
    0: {"batch_size": 3, "num_steps": 3, "img_size": 4, "gen_lr": 1e-3, "disc_lr": 1e-3},
    STAGE2: {"batch_size": 2, "num_steps": 3, "img_size": 8, "gen_lr": 1e-3, "disc_lr": 1e-3},
    "hidden_dim": 8, "num_layers": 2, "mapping_hidden_dim": 8, "latent_dim": 4,
    "discriminator_width": 8, "fade_steps": 2, "num_images": 7, "preview_size": 4,
    "flip": True,
}
"""


def tiny_arguments(folder, stage2=3):
    """Return the flags of the tiny curriculum, which has no end, and of its cache."""
    file = folder / "tiny.py"
    file.write_text(TINY.replace("STAGE2", str(stage2)))
    return ["--curriculum_file", str(file), "--curriculum", "Tiny", "--cache_dir",
            str(folder / "cache"), "--device", "cpu", "--port", "0"]  # fmt: skip


def start(arguments, faults=None, *, before=(), launcher=(), **variables):
    """Start the command as a process in its own process group.

    before and launcher: words before Python and before the command; variables: of the environment.
    """
    environment = {**os.environ, "FAULTS": json.dumps(faults or {}), "PYTHONPATH": str(ROOT),
                   "OMP_NUM_THREADS": "1", **variables}  # fmt: skip
    return subprocess.Popen(
        [*before, sys.executable, *launcher, str(FAULTY), *map(str, arguments)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process, seconds=120):
    """Wait for a process; return its exit code and stderr."""
    error = process.communicate(timeout=seconds)[1]
    return process.returncode, error


def kill(process):
    """Kill a process and its ranks."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def run(arguments, faults=None, seconds=120):
    """Run the command; return its exit code and stderr."""
    return finish(start(arguments, faults), seconds)


def state_of(folder):
    return torch.load(folder / "training_state.pth", weights_only=True)


def entries_of(folder):
    """Return the entries of log.jsonl without an incomplete last line."""
    entries = []
    for line in (folder / "log.jsonl").read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            pass
    return entries


def wait_for(is_so, process=None, seconds=60):
    """Wait until the condition holds; return False if the process, if given, ended before."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if is_so():
            return True
        if process is not None and process.poll() is not None:
            return False
        time.sleep(0.01)
    raise AssertionError("nothing happened in time")


def differences(first, second, where=""):
    """Return the names of entries in which two states differ, bit for bit."""
    if isinstance(first, torch.Tensor):
        return [] if torch.equal(first, second) else [where]
    if isinstance(first, dict):
        if list(first) != list(second):
            return [where]
        return [x for key in first for x in differences(first[key], second[key], f"{where}/{key}")]
    if isinstance(first, (list, tuple)):
        pairs = enumerate(zip(first, second, strict=True))
        return [x for index, (one, two) in pairs for x in differences(one, two, f"{where}/{index}")]
    return [] if first == second else [where]


def fill(disk, spare=0):
    """Fill the disk except for spare bytes."""
    with (disk / "filler").open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass
        file.truncate(file.tell() - spare)


@contextlib.contextmanager
def limited(num_bytes):
    """Limit the size of files that this process can write; works for root and others."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
