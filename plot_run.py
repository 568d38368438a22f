"""Plot a run's log: losses, schedules, image quality and speed over the steps.

    python plot_run.py runs/demo

Writes runs/demo/run.png.
"""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import own_modules  # noqa: F401
from image_io.plots import plotted
from system import flags
from system.errors import UsageError, nearest_path
from system.files import output_folder

LOG_FILE, PICTURE = "log.jsonl", "run.png"
ROUGH_SHARE = 200  # points per curve; more log entries are averaged in groups

Entry = dict[str, Any]
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]  # steps, values

LOSSES = {
    "d_real": "discriminator, real",
    "d_fake": "discriminator, fake",
    "d_pair": "discriminator, pairs",
    "d_r1": "R1",
    "d_r2": "R2",
    "d_identity": "discriminator, identity",
    "g_fake": "generator",
    "g_pair": "generator, pairs",
    "g_identity": "generator, identity",
    "g_opacity": "half-transparency",
    "g_eikonal": "slopes",
    "g_unevenness": "unevenness",
    "g_islands": "islands",
}
RATES = {"generator_lr": "generator", "discriminator_lr": "discriminator"}
SCHEDULES = {"alpha": "fade-in", "density_noise": "density noise", "topk_share": "top-k share"}
SPREADS = {
    f"{axis}_spread_{of}": f"{axis}, {name}"
    for axis in ("yaw", "pitch")
    for of, name in (
        ("photos", "of photos to the discriminator"),
        ("curriculum", "of the curriculum"),
    )
}
# Panels from the top: title, logged names with their labels, whether the axis is logarithmic.
PANELS: tuple[tuple[str, dict[str, str], bool], ...] = (
    ("losses", LOSSES, False),
    ("learning rates", RATES, True),
    ("schedules", SCHEDULES, False),
    ("images per second", {"images_per_second": "all processes"}, False),
    ("quality (lower is better)", {"fid": "FID", "kid": "KID"}, False),
    ("cameras' deviation, radians", SPREADS, False),
)


def build_parser() -> flags.ArgumentParser:
    """Return a parser of all flags of this command."""
    parser = flags.ArgumentParser(description="Plot the log of a run.")
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run")
    parser.add_argument("--output", type=Path, help=f"picture; default: {PICTURE} in RUN")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Read the log, plot it and write the picture."""
    args = build_parser().parse_args(argv)
    entries = read_log(args.run)
    path = args.output or args.run / PICTURE
    if path.is_dir():
        raise UsageError(f"--output {path}: is a folder")
    output_folder(path.parent, flag="--output")
    _draw(entries, args.run.resolve().name, path)
    print(path)
    return 0


def read_log(folder: Path) -> list[Entry]:
    """Read the entries of a run's log.jsonl, ordered by step; UsageError if there are none.

    If a killed and resumed run did a step twice, the last entry counts. A half-written line is
    skipped.
    """
    path = folder / LOG_FILE
    if not path.is_file():
        raise UsageError(f"{folder}: holds no {LOG_FILE}.{nearest_path(folder)}")
    entries: list[Entry] = []
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            if entry.get("resumed"):
                entries = [old for old in entries if old["step"] <= entry["step"]]
            entries.append(entry)
    if not any(PANELS[0][1].keys() & entry.keys() for entry in entries):
        raise UsageError(f"{path}: no step is logged yet")
    return sorted(entries, key=lambda entry: int(entry["step"]))


def curve(entries: Sequence[Entry], name: str) -> Curve:
    """Return steps and values of a logged name, averaged to at most ROUGH_SHARE points."""
    pairs = [
        (entry["step"], float(entry[name]))
        for entry in entries
        if isinstance(entry.get(name), (int, float)) and math.isfinite(entry[name])
    ]
    steps, values = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    if not len(steps):
        return steps, values
    count = min(len(steps), ROUGH_SHARE)
    means = ([g.mean() for g in np.array_split(all_, count)] for all_ in (steps, values))
    averaged_steps, averaged = map(np.array, means)
    return averaged_steps, averaged


def stage_starts(entries: Sequence[Entry]) -> dict[int, int]:
    """Return {first logged step of an image size: that size}."""
    starts: dict[int, int] = {}
    size = None
    for entry in entries:
        if entry.get("image_size", size) != size:
            size = entry["image_size"]
            starts[entry["step"]] = size
    return starts


def _draw(entries: Sequence[Entry], title: str, path: Path) -> None:
    """Draw the panels one below the other, over the same steps."""
    panels = [panel for panel in PANELS if any(len(curve(entries, name)[0]) for name in panel[1])]
    height = 2.2 * len(panels)
    with plotted(path, len(panels), 1, figsize=(9, height), dpi=100) as (figure, axes):
        for axis, (name, curves, is_logarithmic) in zip(axes[:, 0], panels, strict=True):
            for key, label in curves.items():
                steps, values = curve(entries, key)
                if len(steps) and np.any(values != 0):
                    axis.plot(steps, values, label=label, linewidth=1.2)
            for step, size in stage_starts(entries).items():
                axis.axvline(step, color="0.8", linewidth=1, zorder=0)
                if axis is axes[0, 0]:
                    axis.annotate(f" {size} px", (step, 1), xycoords=("data", "axes fraction"),
                                  va="bottom", fontsize=8)  # fmt: skip
            axis.set_ylabel(name, fontsize=8)
            axis.set_yscale("log" if is_logarithmic else "linear")
            axis.legend(fontsize=7, ncols=4, loc="best", frameon=False)
            axis.spines[["top", "right"]].set_visible(False)
        axes[-1, 0].set_xlabel("step")
        figure.suptitle(title)
        figure.tight_layout()


if __name__ == "__main__":
    sys.exit(flags.run(main))
