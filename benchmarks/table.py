"""The README's tables of speed on processors, from benchmarks/results/*.json.

python -m benchmarks.table benchmarks/results/DATE-MACHINE.json
"""

import json
import sys
from pathlib import Path


def of_file(path: Path) -> str:
    """Markdown of one result of benchmarks.cpu."""
    found = json.loads(path.read_text())
    what = "wall time" if found["clock"] == "wall" else "processor time"
    lines = [
        f"| {found['machine']}, {found['threads']} threads, PyTorch {found['torch']}; {what}, ms |"
        " textbook | exact | ratio | bf16 | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for name, slow in found["textbook"].items():
        exact, half = found["exact"][name], found["bf16"][name]
        lines.append(
            f"| {name} | {slow * 1e3:.0f} | {exact * 1e3:.0f} | {slow / exact:.1f} "
            f"| {half * 1e3:.0f} | {slow / half:.1f} |"
        )
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in found["limits"].items())
    lines += ["", f"Largest matrix product, GFLOP/s: {rates}.", ""]
    for precision in ("exact", "fast"):
        view = found[f"view {precision}"]
        lines.append(
            f"A 256 px view of CelebA's networks, 24 + 24 samples, {precision}: "
            f"{view['seconds']:.1f} s ({view['cpu_seconds']:.1f} s of processor time), "
            f"{view['peak_mb']:.0f} MB."
        )
    cache, pil = found["data"]["cache"], found["data"]["PIL"]
    lines += ["", f"Images/s: {cache:.0f} from the cache, {pil:.0f} by PIL ({cache / pil:.0f} x)."]
    lines += ["", "| size | samples | objects | ns per point | peak MB |", "|---|---|---|---|---|"]
    for row in found["sizes"]:
        lines.append(
            f"| {row['image_size']} | {row['steps']} + {row['steps']} | {row['objects']} "
            f"| {row['ns_per_point']:.0f} | {row['peak_mb']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print("\n\n".join(of_file(Path(name)) for name in sys.argv[1:]))
