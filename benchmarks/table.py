"""Save the results of benchmarks as tables, and show them as Markdown.

python -m benchmarks.table [FILE ...]  prints results, by default the newest of each machine
python -m benchmarks.table --write     puts them between the markers of docs/speed.md
"""

import argparse
import json
import platform
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from system import flags
from system.files import json_bytes

FOLDER = Path(__file__).parent / "results"
DOCUMENT = Path(__file__).parent.parent / "docs" / "speed.md"
MARKED = re.compile(r"(<!-- speed: begin .*?-->\n).*?(<!-- speed: end -->)", re.DOTALL)


class Table(NamedTuple):
    """Titles of columns, and rows of numbers and texts; None is an empty cell."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def markdown(self) -> str:
        """Return the table as Markdown."""
        rows = [self.columns, ["---"] * len(self.columns), *([*map(cell, r)] for r in self.rows)]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cell(value: object) -> str:
    """Return the text of a cell: integers above 100, else two decimals."""
    if isinstance(value, float):
        return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def processor() -> str:
    """Return the name of the processor, and how wide its vectors are."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text("utf-8"))
    except OSError:
        found = None
    name = found[1].strip() if found else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def words(text: str) -> str:
    """Return text with a hyphen in place of all that is neither letter nor digit, for a file."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")


def write(machine: str, tables: Sequence[Table], folder: Path, **more: object) -> Path:
    """Write tables and more results into folder/DATE-MACHINE.json."""
    content = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine,
        "torch": torch.__version__,
        "tables": [table._asdict() for table in tables],
        **more,
    }
    path = folder / f"{content['date']}-{words(machine)}.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(json_bytes(content, indent=1) + b"\n")
    return path


def of_file(path: Path) -> str:
    """Return the Markdown of all tables of a result."""
    found = json.loads(path.read_text("utf-8"))
    title = f"**{found['machine']}**, PyTorch {found['torch']}, {found['date']}:"
    return "\n\n".join([title, *(Table(**table).markdown() for table in found["tables"])])


def newest() -> list[Path]:
    """Return the newest result of each machine, by date."""
    by_date = sorted(FOLDER.glob("*.json"))
    return sorted(
        {json.loads(path.read_text("utf-8"))["machine"]: path for path in by_date}.values()
    )


def written(document: str, text: str) -> str:
    """Return the document with text between its markers."""
    return MARKED.sub(lambda match: f"{match[1]}{text}\n{match[2]}", document)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables, or write them into the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="*", type=Path, help="default: the newest of each machine")
    parser.add_argument("--write", action="store_true", help=f"put them into {DOCUMENT.name}")
    args = parser.parse_args(argv)
    text = "\n\n".join(map(of_file, args.results or newest()))
    if args.write:
        DOCUMENT.write_text(written(DOCUMENT.read_text("utf-8"), text), "utf-8")
    else:
        print(text)


if __name__ == "__main__":
    sys.exit(flags.run(main))
