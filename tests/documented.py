"""Find the command lines in the documents."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
DOCUMENTS = (
    "README.md",
    "README.zh-CN.md",
    "CONTRIBUTING.md",
    "docs/commands.md",
    "docs/training.md",
    "docs/faq.md",
    "docs/own_photos.md",
    "docs/speed.md",
    "docs/promises.md",
    "docs/published.md",
    "docs/python.md",
    "assets/demo/README.md",
)
PROGRAMS = ("python", "torchrun", "make", "pip", "bash")


class Line(NamedTuple):
    """The words of one command line, and the document that shows it."""

    document: str
    words: tuple[str, ...]

    def __str__(self):
        return f"{self.document}: {shlex.join(self.words)}"

    def command(self):
        """Return (module, its arguments) if the line runs a command of the root, else None."""
        if self.words[0] not in ("python", "torchrun"):
            return None
        found = [i for i, word in enumerate(self.words) if re.fullmatch(r"\w+\.py", word)]
        if not found:
            return None
        return self.words[found[0]].removesuffix(".py"), list(self.words[found[0] + 1 :])


def text_of(document):
    return (ROOT / document).read_text("utf-8")


def shell_text(text):
    """Return the lines of ```sh blocks and indented blocks, with continued lines joined."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    without = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    lines = "\n".join(blocks).splitlines()
    lines += [line for line in without.splitlines() if re.match(r" {4,}\S", line)]
    return re.sub(r"\\\n\s*", "", "\n".join(lines))


def lines(document):
    """Yield all command lines of a document: those in blocks first, then those in sentences."""
    text = text_of(document)
    found = shell_text(text).splitlines()
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    found += [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]
    for line in found:
        words = shlex.split(line, comments=True) if starts(line) else []
        if len(words) > 1 and "COMMAND.py" not in words:
            yield Line(document, tuple(words))


def starts(line):
    return line.strip().split(" ")[0] in PROGRAMS


def all_lines():
    return [line for document in DOCUMENTS for line in lines(document)]
