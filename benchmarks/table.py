"""The documents' tables of speed on processors, from benchmarks/results/*.json.

python -m benchmarks.table [FILE ...]
python -m benchmarks.table --write [FILE ...]

The first prints all of some results, by default of the newest of each machine. The second puts
their tables between the markers of the documents; the README takes those of the last one alone.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import FOLDER

# Documents, and what stands between their markers.
SHORT = ("README.md", "README.zh-CN.md")
FULL = ("docs/speed.md",)
VARIANTS = ("textbook", "exact", "bf16")
MARKED = re.compile(r"(<!-- speed: begin .*?-->\n).*?(<!-- speed: end -->)", re.DOTALL)


def steps(found: dict[str, Any]) -> str:
    """Markdown: the field and training steps, textbook and ours."""
    threads, torch = _threads(found["threads"]), found["torch"]
    title = f"{found['machine']}, {threads}, PyTorch {torch}; {_clock(found)}"
    return _variants(title, *(found[name] for name in VARIANTS))


def wide_steps(found: dict[str, Any]) -> str:
    """Markdown: the steps of wide networks on all cores."""
    variants = (found[f"all cores, {name}"] for name in VARIANTS)
    return _variants(f"{_threads(found['cores'])}, wall time", *variants)


def _clock(found: dict[str, Any]) -> str:
    return "wall time" if found["clock"] == "wall" else "processor time"


def _threads(number: int) -> str:
    return "one thread" if number == 1 else f"{number} threads"


def _variants(
    title: str, textbook: dict[str, float], exact: dict[str, float], bf16: dict[str, float]
) -> str:
    lines = [
        f"| {title}, ms | textbook | exact | ratio | bf16 | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for name, slow in textbook.items():
        lines.append(
            f"| {name} | {slow * 1e3:.0f} | {exact[name] * 1e3:.0f} | {slow / exact[name]:.1f} "
            f"| {bf16[name] * 1e3:.0f} | {slow / bf16[name]:.1f} |"
        )
    return "\n".join(lines)


def views(found: dict[str, Any]) -> str:
    """Markdown: time and memory of one finished picture."""
    lines = []
    key = "seconds" if found["clock"] == "wall" else "cpu_seconds"
    for precision in ("exact", "fast"):
        view = found[f"view {precision}"]
        lines.append(
            f"A 256 px view of CelebA's networks, 24 + 24 samples, `--precision {precision}`:\n"
            f"{view[key]:.1f} s of {_clock(found)}, {view['peak_mb']:.0f} MB."
        )
    if "trained view" in found:  # results of before it was measured lack it
        view = found["trained view"]
        lines.append(
            f"The same view by the shipped demo generator: {view['exact']:.2f} s of processor time "
            f"exact, {view['fast']:.2f} s fast;\n"
            f"the pictures agree to {view['psnr_db']:.0f} dB or better."
        )
    return "\n".join(lines)


def limits(found: dict[str, Any]) -> str:
    """Markdown: what the machine gives at most, and the image cache beside PIL."""
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in found["limits"].items())
    cache, pil = found["data"]["cache"], found["data"]["PIL"]
    return (
        f"Largest matrix product, GFLOP/s: {rates}.\n"
        f"Images per second of processor time: {cache:.0f} from the cache, "
        f"{pil:.0f} by PIL ({cache / pil:.0f} x)."
    )


def sizes(found: dict[str, Any]) -> str:
    """Markdown: cost per point over picture sizes and samples."""
    lines = [
        "| size | samples | objects | processor ns per point | peak MB |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['image_size']} | {row['steps']} + {row['steps']} | {row['objects']} "
        f"| {row['ns_per_point']:.0f} | {row['peak_mb']:.0f} |"
        for row in found["sizes"]
    ]
    return "\n".join(lines)


def demo(found: dict[str, Any]) -> str:
    """Markdown: the whole training of make demo, and as many steps of the textbook's."""
    lines = [
        "| `make demo`, wall time | steps | steps/s | textbook, steps/s | ratio |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {row['steps']:,} | {row['steps'] / row['seconds']:.1f} "
        f"| {row['steps'] / row['textbook']:.1f} | {row['textbook'] / row['seconds']:.1f} |"
        for name, row in found["demo"].items()
    ]
    return "\n".join(lines)


def profiles(found: dict[str, Any]) -> str:
    """Markdown: the operations that take longest of a training step, textbook's and ours."""
    lines = []
    for variant in VARIANTS:
        *rows, (_, calls, seconds) = found[f"profile {variant}"]
        shares = ", ".join(f"{name} {time / seconds:.0%}" for name, _, time in rows)
        lines.append(f"- {variant}, {seconds * 1e3:,.0f} ms, {calls:,} operations: {shares}")
    return f"{found['profiled']}, one thread, under the profiler:\n\n" + "\n".join(lines)


def short(path: Path) -> str:
    """Markdown of one result, as the README shows it."""
    found = json.loads(path.read_text("utf-8"))
    parts = [steps(found)]
    if "all cores, textbook" in found:  # where the others are not of all cores
        parts.append(wide_steps(found))
    if "demo" in found:  # measured where --demo asked for it
        parts.append(demo(found))
    return "\n\n".join([*parts, views(found)])


def of_file(path: Path) -> str:
    """Markdown of all of one result of benchmarks.cpu."""
    found = json.loads(path.read_text("utf-8"))
    return "\n\n".join([short(path), limits(found), sizes(found), profiles(found)])


def newest() -> list[Path]:
    """Of each machine the newest result of benchmarks.cpu (not of benchmarks/gpu.py), by date."""
    of_machine = {}
    for path in sorted(FOLDER.glob("*.json")):  # by date
        found = json.loads(path.read_text("utf-8"))
        if "textbook" in found:
            of_machine[found["machine"]] = path
    return sorted(of_machine.values())


def written(document: str, text: str) -> str:
    """The document with text between its markers."""
    return MARKED.sub(lambda match: f"{match[1]}{text}\n{match[2]}", document)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables, or write them into the documents."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="*", type=Path, help="default: the newest of each machine")
    parser.add_argument("--write", action="store_true", help="put them into the documents")
    args = parser.parse_args(argv)
    results = args.results or newest()
    whole = "\n\n".join(of_file(path) for path in results)
    if not args.write:
        print(whole)
        return
    for names, text in ((SHORT, short(results[-1])), (FULL, whole)):
        for name in names:
            document = FOLDER.parent.parent / name
            document.write_text(written(document.read_text("utf-8"), text), "utf-8")


if __name__ == "__main__":
    main()
