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
from forks import CAN_FORK, Forked

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


def tiny_arguments(folder, stage2=3, more=""):
    """Return the flags of the tiny curriculum, which has no end unless more sets one."""
    file = folder / "tiny.py"
    file.write_text(TINY.replace("STAGE2", str(stage2)) + more)
    return ["--curriculum_file", str(file), "--curriculum", "Tiny", "--cache_dir",
            str(folder / "cache"), "--device", "cpu", "--port", "0"]  # fmt: skip


def start(arguments, faults=None, *, before=(), launcher=(), program=FAULTY, **variables):
    """Start the command, or another program, as a process in its own process group.

    before and launcher: words before Python and before the program; variables: of the environment.
    Programs of the tests are forked, where that is possible; a command starts as for its users.
    """
    environment = {**os.environ, "FAULTS": json.dumps(faults or {}), "PYTHONPATH": str(ROOT),
                   "OMP_NUM_THREADS": "1", **variables}  # fmt: skip
    if CAN_FORK and not before and not launcher and Path(program).parent == FAULTY.parent:
        return Forked(program, arguments, environment)
    return subprocess.Popen(
        [*before, sys.executable, *launcher, str(program), *map(str, arguments)],
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


def complete(arguments, faults=None, seconds=120):
    """Run the command, which must succeed."""
    code, error = run(arguments, faults, seconds)
    assert code == 0, error


def state_of(folder):
    return torch.load(folder / "training_state.pth", weights_only=True)


def entries_of(folder):
    """Return the entries of log.jsonl, if it exists, without an incomplete last line."""
    entries = []
    if (folder / "log.jsonl").exists():
        for line in (folder / "log.jsonl").read_text().splitlines():
            with contextlib.suppress(ValueError):
                entries.append(json.loads(line))
    return entries


def fids(folder):
    """Return the FID of each step in fid.txt."""
    lines = (folder / "fid.txt").read_text().splitlines()
    return {int(step): float(value) for step, value in (line.split(":") for line in lines)}


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


def assert_same_state(run, other):
    """Check that two runs ended with the same state, bit for bit."""
    assert differences(state_of(run), state_of(other)) == []


def fill(disk, spare=0):
    """Fill the disk except for spare bytes."""
    with (disk / "filler").open("wb", buffering=0) as file:
        for size in (4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
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
