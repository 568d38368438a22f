"""BOUNDARY: what a run that is gone on with does otherwise than before its last save."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from config.curriculum import Curriculum
from config.schema import StageSettings
from datasets import ImageSet

OPTIONS_FILE = "options.json"


def with_pictures_of(curriculum: Curriculum, before: Curriculum) -> Curriculum:
    """The curriculum on the pictures that the run learned from, where nothing else was said.

    Another curriculum than the run's keeps the pictures that it names itself.
    """
    path, own = before.settings.dataset_path, curriculum.settings.dataset_path
    is_other = own is not None and before.name != curriculum.name
    if path is None or path == own or is_other:
        return curriculum
    return curriculum.with_dataset_path(path)


def changes(before: Curriculum, now: Curriculum) -> list[str]:
    """What differs, as texts such as "fov 30 -> 12" and "3000.batch_size 16 -> 8"."""
    pairs: list[tuple[str, object, object]] = [("curriculum", before.name, now.name)]
    pairs += _differing("", before.settings, now.settings)
    old, new = dict(before.stages), dict(now.stages)
    for start in sorted({*old, *new}):
        pairs += _differing(f"{start}.", old.get(start), new.get(start))
    pairs.append(("end", before.end, now.end))
    return [f"{name} {_shown(a)} -> {_shown(b)}" for name, a, b in pairs if a != b]


def _differing(prefix: str, before: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """The fields that differ, or the whole stage where one of the two has none."""
    if before is None or now is None:
        yield f"stage {prefix.rstrip('.')}", before, now
        return
    for field in dataclasses.fields(before):
        yield f"{prefix}{field.name}", getattr(before, field.name), getattr(now, field.name)


def _shown(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, StageSettings):
        return f"{value.img_size} px"
    return f"{value:g}" if isinstance(value, float) else str(value)


def data_record(images: Mapping[int, ImageSet]) -> dict[str, Any]:
    """What options.json says of the pictures: by size their number and a checksum."""
    return {
        str(size): {"count": len(found), "checksum": found.checksum}
        for size, found in images.items()
    }


def data_changes(folder: Path, now: Mapping[str, Any]) -> list[str]:
    """How the pictures differ from those of the run in folder; nothing where it does not say.

    Only sizes that both have are compared.
    """
    try:
        before = json.loads((folder / OPTIONS_FILE).read_text("utf-8"))["images"]
        pairs = [(before[size], now[size]) for size in now if size in before]
        counts = [(old["count"], new["count"]) for old, new in pairs]
        sums = [(old["checksum"], new["checksum"]) for old, new in pairs]
    except (OSError, ValueError, KeyError, TypeError):  # of an earlier version, or damaged
        return []
    for old, new in counts:
        if old != new:
            return [f"number of pictures {old} -> {new}"]
    return ["the pictures themselves"] if any(old != new for old, new in sums) else []
