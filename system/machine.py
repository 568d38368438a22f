"""Measure and limit the use of this machine's cores and memory."""

import contextlib
import ctypes
import importlib
import os
import platform
import re
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from system import windows
from system.errors import UsageError

Item = TypeVar("Item")
Result = TypeVar("Result")

GIB = 2**30
NARROW = 128  # features; operations of a narrower field take only some 50 microseconds
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container


def optional_module(name: str) -> Any:
    """Return a module, or None on a system without it: Windows has neither fcntl nor resource."""
    with contextlib.suppress(ImportError):
        return importlib.import_module(name)
    return None


resource = optional_module("resource")


def versions() -> dict[str, str]:
    """Return the versions that figures depend on."""
    python = platform.python_version()
    return {"python": python, "torch": str(torch.__version__), "numpy": np.__version__}


def num_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def overlooked_gpu() -> str:
    """Return why PyTorch does not see the NVIDIA GPU of this machine; empty if there is none."""
    if shutil.which("nvidia-smi") is None or "CUDA_VISIBLE_DEVICES" in os.environ:
        return ""
    if torch.version.cuda is None:
        return ("this machine seems to have an NVIDIA GPU, but this build of PyTorch is without "
                "CUDA: pytorch.org tells how to install one with it")  # fmt: skip
    return ("this machine seems to have an NVIDIA GPU, but PyTorch cannot use it: its driver may "
            f"be too old for CUDA {torch.version.cuda}")  # fmt: skip


def unsupported_gpu(index: int) -> str:
    """Return why this build of PyTorch cannot compute on a CUDA device; empty if it can."""
    built = torch.cuda.get_arch_list() if torch.version.hip is None else []
    own = torch.cuda.get_device_capability(index) if built else (0, 0)
    if not built or any(_runs_on(own, name) for name in built):
        return ""
    others = "; CUDA_VISIBLE_DEVICES chooses others" if torch.cuda.device_count() > 1 else ""
    return (f"this build of PyTorch has no code for {torch.cuda.get_device_name(index)} (compute "
            f"capability {own[0]}.{own[1]}; built for {', '.join(built)}): pytorch.org lists "
            f"builds for other versions of CUDA, or use --device cpu{others}")  # fmt: skip


def _runs_on(capability: tuple[int, int], name: str) -> bool:
    """Return whether code of an architecture, such as sm_86 or compute_90, runs on a GPU.

    Machine code (sm) runs on GPUs of its major version with the same or a later minor one,
    intermediate code (compute) on all later ones; a letter at the end is for that one GPU alone.
    """
    found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", name)
    if found is None:
        return False
    built = int(found[2]), int(found[3])
    if found[4]:
        return capability == built
    return built <= capability and (found[1] == "compute" or built[0] == capability[0])


def map_on_cores(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield work(item) of each item, in order, computed by a thread per core.

    At most four results per core wait to be taken, which bounds the memory.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(num_cores()) as pool:
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > 4 * num_cores():
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def use_one_thread_for(width: int) -> bool:
    """Use one thread if networks of this width are narrow; return whether that was done.

    Intra-op threads synchronize after every operation, and wait for one that has lost its core to
    another program. Narrow networks have thousands of operations per step: measured on two cores,
    two threads made a step of the demo 1.3 times as fast alone, but ten to thirty times as slow
    beside one other busy program. If OMP_NUM_THREADS is set, it decides instead.
    """
    if width >= NARROW or "OMP_NUM_THREADS" in os.environ:
        return False
    torch.set_num_threads(1)
    return True


def memory_bytes(device: torch.device) -> int | None:
    """Return the bytes of memory of a CUDA device, or of this machine or container for the CPU.

    None if the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    found = [windows.total_memory()]
    if hasattr(os, "sysconf"):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(OSError, ValueError):  # no control group, or no limit ("max")
        found.append(int(CGROUP_LIMIT.read_text("utf-8")))
    return min((number for number in found if number), default=None)


def peak_memory_bytes(device: torch.device) -> int | None:
    """Return this process's peak memory: allocated on the CUDA device, or resident in RAM.

    None if the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return windows.peak_memory()
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB elsewhere
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def require_memory(what: str, num_bytes: int, device: torch.device) -> None:
    """Check that a device has num_bytes of memory.

    Raises:
        UsageError: it has less; the message begins with what, such as a flag and its value.
    """
    if device.type == "mps":  # it shares the machine's memory under its own limits
        return
    there = memory_bytes(device)
    if there is not None and num_bytes > there:
        raise UsageError(
            f"{what}: needs more than {num_bytes / GIB:.0f} GiB of memory, and there are "
            f"{there / GIB:.0f}"
        )


# glibc's mallopt, malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
M_ARENA_MAX = -8


def keep_freed_memory() -> bool:
    """Let the C library keep memory that PyTorch frees on the CPU; return True if it does.

    By default glibc returns freed tensors of 32 MiB and more to the kernel, which has to find and
    clear the same pages again in the next step. Measured on a forward and backward pass over
    tensors of 57 MB on one core: 0.97 s in the kernel before and none after, plus 0.6 s of
    computing. The peak of memory rises from 1.1 to 2.4 GB, because gaps in the heap are kept too.
    """
    if platform.system() != "Linux":
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):  # another C library, such as musl
        return False
    # Map no block separately (M_MMAP_THRESHOLD has a maximum of 32 MiB), return none to the kernel,
    # and give no thread its own heap: glibc returns such heaps as soon as they are empty.
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1))
    return all([library.mallopt(name, value) for name, value in settings])
