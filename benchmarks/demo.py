"""The whole training of `make demo`, as its log tells it, beside as many steps of the textbook's.

Other programs and other machines on the same host make hours of a processor slow by a third, so
the two are timed in turns: after each part of the training comes the textbook's step, in a process
of its own, as PyTorch comes out of the box, on all cores.
"""

import json
import statistics
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import curriculums
from system.errors import UsageError

LOG = "log.jsonl"
PART = 500  # steps of the demo between two measurements of the textbook's
ROOT = Path(__file__).parent.parent


def measure(run: Path, textbook: Callable[[], dict[str, float]]) -> dict[str, dict[str, float]]:
    """Train the demo into run, which must not exist, and compare; see compared.

    Raises:
        UsageError: there is something in that place.
    """
    if run.exists():
        raise UsageError(f"--demo {run}: is there already; the demo is trained into a new folder")
    end = curriculums.load("Demo").end
    assert end is not None  # for the type checker
    found = []
    for stop in range(PART, end + 1, PART):
        words = ["make", "demo-training", f"DEMO={run.resolve()}", f"MORE=--max_steps {stop}"]
        subprocess.run(words, cwd=ROOT, check=True)
        found.append(textbook())
    return compared(seconds_by_size(run), medians(found))


def medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of each figure the median over the runs that have it."""
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: statistics.median(run[name] for run in runs if name in run) for name in names}


def seconds_by_size(run: Path) -> dict[int, tuple[int, float]]:
    """Steps and seconds of a run by image size: of steps alone, without previews and saving."""
    entries = map(json.loads, (run / LOG).read_text("utf-8").splitlines())
    found: dict[int, tuple[int, float]] = {}
    before = 0
    for entry in (entry for entry in entries if "seconds_per_step" in entry):
        steps, seconds = found.get(entry["image_size"], (0, 0.0))
        new = entry["step"] - before
        found[entry["image_size"]] = (steps + new, seconds + new * entry["seconds_per_step"])
        before = entry["step"]
    return found


def compared(
    ours: dict[int, tuple[int, float]], textbook: dict[str, float]
) -> dict[str, dict[str, float]]:
    """Seconds per step by image size, and of the whole run.

    textbook: seconds per step by size.
    """
    rows = {
        f"{size} px": {"steps": steps, "seconds": seconds, "textbook": steps * textbook[str(size)]}
        for size, (steps, seconds) in ours.items()
    }
    rows["whole"] = {
        key: sum(row[key] for row in rows.values()) for key in ("steps", "seconds", "textbook")
    }
    return rows
