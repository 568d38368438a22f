"""Bad arguments: one line each, exit code 2, no traceback, and nothing is written."""

import os
import shutil
import sys
from pathlib import Path

import published_files
import pytest
import torch
from PIL import Image
from wrong_arguments import (
    OF_ALL,
    OF_COMMAND,
    OF_INVERSION,
    OF_OTHERS,
    OF_TRAINING,
    OF_VIEWERS,
    VIEWERS,
    WITHOUT_A_SOURCE,
)

import curriculums
import inverse_render
import train
from system import flags, machine
from training import memory


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Return a working folder that holds a foreign file and an empty folder."""
    (tmp_path / "FILE").write_bytes(b"not what you look for\n")
    (tmp_path / "DIR").mkdir()
    (tmp_path / "LOCKED").mkdir(mode=0o555)
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(monkeypatch, capsys, module, words, expected):
    """Run a command as from a shell; fail unless it is refused as expected."""
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *words])
    before = snapshot()
    code = flags.run(module.main)
    output = capsys.readouterr()
    assert code == 2, (words, output.err)
    assert output.err.count("\n") == 1, (words, output.err)
    assert output.err.startswith("error: ")
    assert "Traceback" not in output.err
    assert expected in output.err, (words, output.err)
    assert snapshot() == before, words


def snapshot():
    """Return all files and folders here with their sizes."""
    return sorted(
        (os.path.join(folder, name), os.path.getsize(os.path.join(folder, name)))
        for folder, folders, files in os.walk(".")
        for name in [*folders, *files]
        if name != "tiny_run" or folders
    )


def without_root(cases):
    """Root, and Windows, may write to folders that are read-only for everybody else."""
    is_root = getattr(os, "geteuid", int)() == 0
    return [c for c in cases if not is_root or not any("LOCKED" in word for word in c[0])]


@pytest.mark.parametrize("module", OF_OTHERS, ids=lambda module: module.__name__)
def test_the_other_commands(place, tiny_run, monkeypatch, capsys, module, counted):
    published_files.write_run(place / "published")
    (place / "run").mkdir()
    (place / "run" / "log.jsonl").write_text('{"step": 10, "d_real": 0.5}\n')
    (place / "reals").mkdir()
    Image.new("RGB", (8, 8)).save(place / "reals" / "0.png")
    usual, cases = OF_OTHERS[module]
    lines = [(usual, words, expected) for words, expected in without_root(cases)]
    lines += [([], words, expected) for own, words, expected in WITHOUT_A_SOURCE if own is module]
    for known, words, expected in lines:
        generator = str(tiny_run / "generator.pth")
        if words and words[0] == "GENERATOR" and known:
            generator, words = words[1], []
        typed = [generator if word == "GENERATOR" else word for word in [*known, *words]]
        refused(monkeypatch, capsys, module, typed, expected)
    counted(f"{module.__name__}: {len(lines)} wrong command lines, one line each")


def test_every_command_is_among_them():
    root = Path(__file__).parent.parent
    commands = {path.stem for path in root.glob("*.py") if "def build_parser" in path.read_text()}
    tried = {module.__name__ for module in [*VIEWERS.values(), *OF_OTHERS, inverse_render, train]}
    assert tried == commands | {"docs.gallery", "docs.toy_photos"}


@pytest.mark.parametrize("name", VIEWERS)
def test_viewing_commands(place, tiny_run, monkeypatch, capsys, name, counted):
    cases = without_root([*OF_ALL, *OF_VIEWERS, *OF_COMMAND[name]])
    for words, expected in cases:
        generator = str(tiny_run / "generator.pth")
        if words[0] == "GENERATOR":
            generator, words = words[1], []
        refused(monkeypatch, capsys, VIEWERS[name], [generator, *words], expected)
    refused(monkeypatch, capsys, VIEWERS[name], [], "generator.pth")
    counted(f"{name}: {len(cases) + 1} wrong command lines, one line each")


def test_inverse_render(place, tiny_run, monkeypatch, capsys, counted):
    cases = without_root([*OF_ALL, *OF_INVERSION])
    for words, expected in cases:
        photo = "photo.png"
        if words[0] == "PHOTO":
            photo, words = words[1], []
        generator = str(tiny_run / "generator.pth")
        refused(monkeypatch, capsys, inverse_render, [generator, photo, *words], expected)
    counted(f"inverse_render: {len(cases)} wrong command lines, one line each")


def test_train(place, tiny_run, monkeypatch, capsys, counted):
    shutil.copytree(tiny_run, "EXPORTED")
    cases = without_root([*OF_ALL, *OF_TRAINING])
    for words, expected in cases:
        usual = ["--curriculum", "Demo", "--set", "num_images=4"]
        refused(monkeypatch, capsys, train, [*usual, *words], expected)
    refused(monkeypatch, capsys, train, [], "--curriculum is missing")
    counted(f"train: {len(cases) + 1} wrong command lines, one line each")


def test_ten_times_more_samples_than_memory(place, monkeypatch, capsys):
    """Work that just fits is accepted; work of ten times the memory is refused at once."""

    def needed(*overrides):
        curriculum = curriculums.load("Demo", overrides=overrides)
        way = memory.Way("cpu", is_half=False, is_alone=True)
        return max(memory.estimated_bytes(curriculum, s, way) for s, _ in curriculum.stages)

    fits, many = needed(), "1500.num_steps=2500"
    assert needed(many) > 10 * fits
    monkeypatch.setattr(machine, "memory_bytes", lambda device: fits)
    started = []
    monkeypatch.setattr(train.processes, "launch", lambda *args, **_: started.append(args) or 0)
    assert train.main(["--curriculum", "Demo", "--device", "cpu"]) == 0
    assert len(started) == 1
    words = ["--curriculum", "Demo", "--device", "cpu", "--set", many]
    refused(monkeypatch, capsys, train, words, "try --set 1500.batch_split=")
    assert len(started) == 1


def test_memory_is_that_of_the_machine(monkeypatch, tmp_path):
    there = machine.memory_bytes(torch.device("cpu"))
    assert 2**28 < there < 2**45
    (tmp_path / "memory.max").write_text("123456789\n")
    monkeypatch.setattr(machine, "CGROUP_LIMIT", tmp_path / "memory.max")
    assert machine.memory_bytes(torch.device("cpu")) == 123456789
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.memory_bytes(torch.device("cpu")) >= there
