"""Cores and memory of this machine."""

import ctypes
import os
import platform
from pathlib import Path

import torch

from system.errors import UsageError

GIB = 2**30
NARROW = 128  # features: a field of less has operations of some 50 microseconds
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container


def num_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_one_thread_for(width: int) -> bool:
    """Use one thread for networks as narrow as width; return True if that was done.

    Intra-op threads synchronize after every operation, and wait for one that has lost its core to
    another program. Narrow networks have thousands of operations per step: measured on two cores,
    two threads made a step of the demo 1.3 times as fast alone, and ten to thirty times as slow
    beside one other busy program. OMP_NUM_THREADS, where it is set, decides instead.
    """
    if width >= NARROW or "OMP_NUM_THREADS" in os.environ:
        return False
    torch.set_num_threads(1)
    return True


def memory_bytes(device: torch.device) -> int:
    """Return the memory of a CUDA device, or of this machine within this container's limit."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = int(CGROUP_LIMIT.read_text())
    except (OSError, ValueError):  # no control group, or no limit ("max")
        return installed
    return min(installed, limit)


def require_memory(what: str, num_bytes: int, device: torch.device) -> None:
    """Refuse a request for more memory than there is.

    Raises:
        UsageError: begins with what, such as a flag and its value.
    """
    if device.type == "mps":  # shares its memory with the machine by rules of its own
        return
    there = memory_bytes(device)
    if num_bytes > there:
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
    tensors of 57 MB on one core: 0.97 s in the kernel before and none after, beside 0.6 s of
    computing. The price is memory: 2.4 GB at the peak instead of 1.1, as holes are kept as well.
    """
    if platform.system() != "Linux":
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):  # another C library, such as musl
        return False
    # No block is mapped on its own (M_MMAP_THRESHOLD would stop at 32 MiB), none is given back, and
    # no thread has a heap of its own: glibc gives those back as soon as they are empty.
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1))
    return all([library.mallopt(name, value) for name, value in settings])
