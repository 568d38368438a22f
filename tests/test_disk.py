"""A full or broken disk: the last good state stays, each failure is reported once, and the run
continues if it can."""

import errno
import os
from pathlib import Path

import pytest
from faults import entries_of, fill, state_of, tiny_arguments

import train
from checkpoint_io import checkpoints
from image_io import png
from system import flags
from system.errors import UsageError
from system.files import replaced
from training import log, snapshots, state

FULL_FROM, FULL_UNTIL = 10, 20  # steps between which the disk is full


def at_steps(monkeypatch, actions):
    """Do actions after given steps, before the run saves or measures."""
    between = snapshots.Keeper.between_steps

    def watched(keeper, **kwargs):
        actions.get(keeper.progress.step, lambda: None)()
        between(keeper, **kwargs)

    monkeypatch.setattr(snapshots.Keeper, "between_steps", watched)


def trained(tmp_path, out, last, *more):
    options = ["--sample_interval", "5", "--state_seconds", "1e-9", "--max_steps", str(last)]
    return train.main([*tiny_arguments(tmp_path), "--output_dir", str(out), *options, *more])


def test_a_full_disk(tmp_path, small_disk, monkeypatch, capsys):
    out = small_disk / "out"
    seen = {}

    def look():
        seen["step"] = state_of(out)["step"]
        (small_disk / "filler").unlink()

    at_steps(monkeypatch, {FULL_FROM: lambda: fill(small_disk), FULL_UNTIL: look})
    monkeypatch.setattr(snapshots, "RETRY_SECONDS", 0.0)
    assert trained(tmp_path, out, 30, "--model_save_interval", "12") == 0
    message = capsys.readouterr().err
    assert seen["step"] == FULL_FROM - 1  # what was saved last stays
    for what in ("training_state.pth", "a snapshot", "previews"):
        assert message.count(f"writing {what} failed (No space left on device)") == 1
        assert message.count(f"writing {what} works again") == 1
    assert state_of(out)["step"] == 30
    assert not list(out.glob(".*.tmp"))
    assert message.count("writing log.jsonl failed") <= 1  # its last block may have had room
    assert len(entries_of(out)) == len((out / "log.jsonl").read_text().splitlines())


def test_a_disk_that_stays_full_ends_with_the_last_good_state(
    tmp_path, small_disk, monkeypatch, capsys
):
    out = small_disk / "out"
    at_steps(monkeypatch, {FULL_FROM: lambda: fill(small_disk)})
    assert trained(tmp_path, out, 15) == 1
    assert "step 15 could not be saved; the last good state is" in capsys.readouterr().err
    assert state_of(out)["step"] == FULL_FROM - 1
    with pytest.raises(UsageError, match="cannot be written .No space left on device"):
        trained(tmp_path, out, 15, "--resume")
    monkeypatch.undo()
    (small_disk / "filler").unlink()
    assert trained(tmp_path, out, 15, "--resume") == 0
    assert state_of(out)["step"] == 15


@pytest.mark.parametrize(
    "writers",
    [
        [(os, "fsync", "training_state.pth")],
        [(state, "export", "training_state.pth")],
        [
            (png, "save_png", "previews"),
            (log.JsonLines, "append", "log.jsonl"),
            (log.RecordWriter, "write", "TensorBoard's files"),
        ],
    ],
    ids=["fsync", "export", "logs and previews"],
)
def test_a_broken_disk(tmp_path, monkeypatch, capsys, writers, counted):
    failures = []

    def breaking(function):
        def broken(*_, **__):
            failures.append(function)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        return broken

    with monkeypatch.context() as disk:

        def break_all():
            for owner, function, _ in writers:
                disk.setattr(owner, function, breaking(function))

        at_steps(monkeypatch, {FULL_FROM: break_all, FULL_UNTIL: disk.undo})
        monkeypatch.setattr(snapshots, "RETRY_SECONDS", 0.0)
        assert trained(tmp_path, tmp_path / "out", 22) == 0
    message = capsys.readouterr().err
    for _, function, told in writers:
        assert message.count(f"writing {told} failed (Input/output error); training goes on") == 1
        assert message.count(f"writing {told} works again") == 1
        counted(f"{function} failed {failures.count(function)} times, told once")
        assert failures.count(function) > 1
    assert state_of(tmp_path / "out")["step"] == 22
    assert checkpoints.read(tmp_path / "out" / "ema.pth", "generator")["step"] == 22
    assert not list((tmp_path / "out").glob(".*.tmp"))


def test_a_read_only_disk_is_told_by_the_name_of_the_file(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "draft")

    for function in ("open", "unlink"):  # even where there is no file
        monkeypatch.setattr(Path, function, refuse)
    with pytest.raises(OSError, match="file.zip") as caught, replaced(tmp_path / "file.zip"):
        pass
    assert caught.value.filename == str(tmp_path / "file.zip")


def test_a_screen_that_cannot_be_written_does_not_stop_a_run(tmp_path, small_disk, monkeypatch):
    fill(small_disk)
    with (small_disk / "screen.txt").open("w", buffering=1) as screen:
        monkeypatch.setattr("sys.stderr", screen)
        assert flags.run(lambda _: trained(tmp_path, tmp_path / "out", 12)) == 0
        monkeypatch.undo()
        (small_disk / "filler").unlink()  # lets Python close the file
