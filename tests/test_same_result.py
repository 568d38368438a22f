"""Same seed, same machine: the same files, byte for byte."""

import hashlib
import json

import pytest
from faults import run, tiny_arguments

TIMES = ("images_per_second", "seconds_per_step", "memory_bytes")


def contents(folder):
    """A hash of every file by name, without the times of day in logs."""
    result = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or name.startswith(("tensorboard", "cache")):
            continue
        data = path.read_bytes()
        if name == "log.jsonl":
            entries = [json.loads(line) for line in data.splitlines()]
            data = repr([{k: v for k, v in e.items() if k not in TIMES} for e in entries]).encode()
        result[name] = hashlib.sha256(data.replace(str(folder).encode(), b"")).hexdigest()
    return result


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_training_and_previews(tmp_path, processes):
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        out = tmp_path / name / "out"
        arguments = [*tiny_arguments(tmp_path), "--output_dir", out, "--max_steps", "12",
                     "--sample_interval", "6", "--model_save_interval", "6",
                     "--num_processes", processes]  # fmt: skip
        code, error = run(arguments)
        assert code == 0, error
        found.append(contents(out))
    differing = [name for name in found[0] if found[0][name] != found[1].get(name)]
    assert set(found[0]) == set(found[1])
    assert differing == []
    print(f"{processes} processes: {len(found[0])} files are the same, byte for byte")
    assert len(found[0]) >= 5 + 10 + 2 * 5
