"""Ask Windows how much memory there is; other systems have os.sysconf and the module resource."""

import ctypes
from typing import Any


class _MachineMemory(ctypes.Structure):
    """Windows' MEMORYSTATUSEX; sizes in bytes."""

    _fields_ = (
        ("own_size", ctypes.c_uint32),
        ("percent_used", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("others", ctypes.c_uint64 * 6),
    )


class _ProcessMemory(ctypes.Structure):
    """Windows' PROCESS_MEMORY_COUNTERS; sizes in bytes."""

    _fields_ = (
        ("own_size", ctypes.c_uint32),
        ("page_faults", ctypes.c_uint32),
        ("peak_in_ram", ctypes.c_size_t),
        ("others", ctypes.c_size_t * 7),
    )


def _kernel() -> Any:
    """Return Windows' kernel32, or None on other systems."""
    libraries = getattr(ctypes, "windll", None)
    return None if libraries is None else libraries.kernel32


def total_memory() -> int | None:
    """Return the bytes of this machine's memory; None on other systems."""
    found = _MachineMemory(own_size=ctypes.sizeof(_MachineMemory))
    kernel = _kernel()
    if kernel is None or not kernel.GlobalMemoryStatusEx(ctypes.byref(found)):
        return None
    return int(found.total)


def peak_memory() -> int | None:
    """Return the largest number of bytes that this process had in RAM; None on other systems."""
    found = _ProcessMemory(own_size=ctypes.sizeof(_ProcessMemory))
    kernel = _kernel()
    own_process = ctypes.c_void_p(-1)
    if kernel is None or not kernel.K32GetProcessMemoryInfo(
        own_process, ctypes.byref(found), found.own_size
    ):
        return None
    return int(found.peak_in_ram)
