"""Time the whole training of `make demo` beside as many steps of the textbook's implementation.

Other programs on the same machine can make an hour of it slower by a third. So the textbook's step
is timed in turns with the training: once after each part of it.
"""

import json
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path

import curriculums
from benchmarks.table import Table
from system.errors import UsageError

LOG = "log.jsonl"
PART = 500  # steps of the demo between two measurements of the textbook's step
ROOT = Path(__file__).parent.parent


def measure(run: Path, textbook: Callable[[], dict[int, float]]) -> Table:
    """Train the demo into a new folder and compare its speed with the textbook's."""
    if run.exists():
        raise UsageError(f"--demo {run} exists; the demo is trained into a new folder")
    end = curriculums.load("Demo").end
    assert end is not None  # for the type checker
    found = []
    for stop in (*range(PART, end, PART), end):
        words = ["make", "demo-training", f"DEMO={run.resolve()}", f"MORE=--max_steps {stop}"]
        subprocess.run(words, cwd=ROOT, check=True)
        found.append(textbook())
    medians = {size: statistics.median(times[size] for times in found) for size in found[0]}
    return compared(seconds_by_size(run), medians)


def seconds_by_size(run: Path) -> dict[int, tuple[int, float]]:
    """Return steps and seconds of a run by image size, without previews and saving."""
    entries = map(json.loads, (run / LOG).read_text("utf-8").splitlines())
    found: dict[int, tuple[int, float]] = {}
    before = 0
    for entry in (entry for entry in entries if "seconds_per_step" in entry):
        steps, seconds = found.get(entry["image_size"], (0, 0.0))
        new = entry["step"] - before
        found[entry["image_size"]] = (steps + new, seconds + new * entry["seconds_per_step"])
        before = entry["step"]
    return found


def compared(ours: dict[int, tuple[int, float]], textbook: dict[int, float]) -> Table:
    """Return steps per second by image size and in all; textbook: seconds per step by size."""
    parts = {f"{size} px": (*ours[size], ours[size][0] * textbook[size]) for size in ours}
    parts["whole"] = tuple(map(sum, zip(*parts.values(), strict=True)))  # type: ignore[assignment]
    columns = ["`make demo`, wall time", "steps", "steps/s", "textbook, steps/s", "ratio"]
    rows = [(name, steps, steps / seconds, steps / slow, slow / seconds)
            for name, (steps, seconds, slow) in parts.items()]  # fmt: skip
    return Table(columns, rows)
