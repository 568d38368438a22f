"""What a benchmark leaves behind: benchmarks/results/DATE-MACHINE.json."""

import json
import platform
import re
import time
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent / "results"


def processor() -> str:
    """The name of the processor."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def write(content: dict[str, Any], machine: str) -> Path:
    """Write content, with date and versions, under today's date and the machine's name."""
    date = time.strftime("%Y-%m-%d")
    content = {"date": date, "machine": machine, "torch": torch.__version__, **content}
    name = re.sub(r"[^A-Za-z0-9]+", "-", machine).strip("-")
    path = FOLDER / f"{date}-{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path
