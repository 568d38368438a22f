"""The whole training of `make demo`, as its log tells it, beside as many steps of the textbook's.

The textbook's step is timed in a process of its own, as PyTorch comes out of the box: on all cores.
"""

import json
from pathlib import Path

import curriculums
from flags import UsageError

LOG = "log.jsonl"


def seconds_by_size(run: Path) -> dict[int, tuple[int, float]]:
    """Steps and seconds of a run of the demo, by image size.

    Seconds of steps alone, without previews and saving.

    Raises:
        UsageError: it has no log, or was not trained to the end of the demo.
    """
    try:
        lines = (run / LOG).read_text("utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"--demo {run}: there is no {LOG} in it") from error
    entries = [entry for entry in map(json.loads, lines) if "seconds_per_step" in entry]
    end = curriculums.load("Demo").end
    if not entries or entries[-1]["step"] != end:
        raise UsageError(f"--demo {run}: not trained to step {end}, the end of `make demo`")
    found: dict[int, tuple[int, float]] = {}
    before = 0
    for entry in entries:
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
