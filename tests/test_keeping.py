"""Files of a run: limited previews, complete logs and snapshots, one lock."""

import contextlib
import io
import json
import os
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import windows
from faults import (
    assert_same_state,
    complete,
    entries_of,
    run,
    state_of,
    tiny_arguments,
)
from hypothesis import given
from hypothesis import strategies as st

import curriculums
import train
from checkpoint_io import checkpoints
from distributed.collectives import PeerLost
from distributed.processes import Place
from system import files, screen
from system.errors import UsageError
from system.files import remove_drafts, replaced, replaced_folder
from training import collapse, loop, losses, setup, snapshots, state
from training.adversarial import AdversarialGame
from training.log import Board, JsonLines, RunLog
from training.snapshots import SHEETS_PER_KEEP, steps_to_keep
from training.state import NotFinite


@given(st.sets(st.integers(1, 10**6), max_size=200), st.integers(1, 1000), st.integers(1, 5))
def test_previews_are_bounded_and_the_newest_stay(steps, interval, keep):
    stay = steps_to_keep(steps, interval, keep)
    assert stay <= steps
    assert len(stay) <= SHEETS_PER_KEEP * keep
    assert set(sorted(steps)[-keep:]) <= stay
    assert stay == steps or len(steps) > SHEETS_PER_KEEP * keep


def test_previews_thin_out_evenly_however_long_the_run():
    there = set()
    for step in range(200, 200_001, 200):
        there = steps_to_keep(there | {step}, 200, 1)
        assert len(there) <= 10
    ordered = [0, *sorted(there)]
    assert max(b - a for a, b in zip(ordered, ordered[1:], strict=False)) <= 51_200


def test_only_previews_of_the_run_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshots, "SHEETS_PER_KEEP", 3)
    out = tmp_path / "out"
    out.mkdir()
    others = ["000001_mine.png", "000002_fixed.jpg", "notes.txt", "fixed.png", "x000001_fixed.png"]
    for name in others:
        (out / name).write_text(name)
    options = ["--max_steps", "6", "--sample_interval", "1", "--keep", "1"]
    assert train.main([*tiny_arguments(tmp_path), "--output_dir", str(out), *options]) == 0
    sheets = {path.name.partition("_")[0] for path in out.glob("??????_random.png")}
    assert len(sheets) <= 3
    assert "000006" in sheets
    assert len(list(out.glob("*_*.png"))) == 5 * len(sheets) + 2
    assert [(out / name).read_text() for name in others] == others


def test_the_bar_is_about_the_present_stage(tmp_path, monkeypatch):
    monkeypatch.setattr(screen, "LOG_SECONDS", 0.0)
    shown = io.StringIO()
    monkeypatch.setattr("sys.stderr", shown)
    demo = curriculums.load("Demo")
    first, last = 1480, 3420
    parts = [demo.part(step, last) for step in range(first, last)]
    with RunLog(tmp_path, first, last, parts[0], torch.device("cpu")) as log:
        for step, part in enumerate(parts, first):
            log.step(step + 1, demo.at(step), {}, 16, part)
    for text in (
        "step 1490/3420, stage 1/3 (16 px):  99%|#########9| 1490/1500 [",
        "step 1510/3420, stage 2/3 (32 px):   1%|          | 10/1900 [",
        "step 3420/3420, stage 3/3 (32 px): 100%|##########| 20/20 [",
    ):
        assert text in shown.getvalue()


@pytest.mark.parametrize("num_refusals", [2, 10**6])
def test_windows_files_that_are_being_read_are_replaced_later(tmp_path, monkeypatch, num_refusals):
    path, refusals, rename = tmp_path / "state.pth", [], Path.replace

    def busy(draft, other):
        refusals.append(draft)
        if len(refusals) <= num_refusals:
            raise PermissionError(13, "Access is denied")
        rename(draft, other)

    monkeypatch.setattr(files, "fcntl", None)
    monkeypatch.setattr(files, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(files, "RENAME_SECONDS", 0.1 if num_refusals > 2 else 60)
    monkeypatch.setattr(Path, "replace", busy)
    is_refused = pytest.raises(PermissionError, match="state.pth")
    with is_refused if num_refusals > 2 else contextlib.nullcontext(), replaced(path) as file:
        file.write(b"new")
    assert path.exists() == (num_refusals == 2)
    assert len(list(tmp_path.iterdir())) == path.exists()


def test_json_has_no_nan():
    content = {"a": [1.5, float("nan"), {"b": (float("-inf"), np.float64("inf"))}], "c": "NaN"}
    text = files.json_bytes(content).decode()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": [1.5, None, {"b": [None, None]}],
        "c": "NaN",
    }


def test_a_log_drops_what_was_torn_and_what_comes_again(tmp_path):
    path = tmp_path / "log.jsonl"
    lines = [json.dumps({"step": step}) for step in (10, 20, 20, 30)]
    path.write_text("\n".join(lines) + '\n{"step": 40, "d_re')
    log = JsonLines(path, 20)
    log.append({"step": 25, "loss": float("inf")})
    log.close()
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [10, 20, 20, 25]
    assert entries[-1]["loss"] is None


def events_of(folder):
    """Return (tag, step, value) of all scalars, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder))
    reader.Reload()
    tags = reader.Tags()
    scalars = [(t, e.step, e.value) for t in tags["scalars"] for e in reader.Scalars(t)]
    images = [(t, e.step, (e.width, e.height)) for t in tags["images"] for e in reader.Images(t)]
    return scalars, images


def test_tensorboard_reads_what_is_written_also_after_resuming(tmp_path):
    first = Board(tmp_path, 0)
    for step in (10, 20, 30):
        first.scalars({"loss/g": step / 10}, step)
    first.image("previews/fixed", torch.zeros(3, 4, 6, dtype=torch.uint8), 30)
    first.close()
    second = Board(tmp_path, 20)
    second.scalars({"loss/g": 7.0}, 30)
    second.close()
    scalars, _ = events_of(tmp_path)
    assert scalars == [("loss/g", 10, 1.0), ("loss/g", 20, 2.0), ("loss/g", 30, 7.0)]
    third = Board(tmp_path, 30)
    third.image("previews/fixed", torch.zeros(3, 4, 6, dtype=torch.uint8), 40)
    third.close()
    assert events_of(tmp_path)[1] == [("previews/fixed", 40, (6, 4))]


@pytest.fixture(params=["fcntl", "msvcrt"])
def _locks(request, monkeypatch):
    """Lock as Linux does, and as Windows does."""
    if request.param == "msvcrt":
        windows.install_locks(monkeypatch)


@pytest.mark.usefixtures("_locks")
def test_one_run_holds_a_folder_and_leaves_nothing_after_an_error(tmp_path):
    folder = tmp_path / "deep" / "out"

    def work():
        with files.run_folder(folder):
            assert str(os.getpid()) in (folder / "run.lock").read_text()
            with files.run_folder(folder):
                pass

    with pytest.raises(UsageError, match="another run uses it .process"):
        work()
    assert list(tmp_path.iterdir()) == []
    folder.mkdir(parents=True)
    (folder / "run.lock").write_text("process 1 on a machine that was switched off\n")
    with files.run_folder(folder):
        pass
    assert list(folder.iterdir()) == []


def test_a_system_without_locks_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(files, "fcntl", None)
    monkeypatch.setattr(files, "msvcrt", None)
    with files.run_folder(tmp_path):
        assert "supports no locks" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_locks")
def test_a_lock_is_waited_for(tmp_path):
    path, seen = tmp_path / "x.lock", []
    held = threading.Event()

    def hold():
        with files.locked(path, seen.append):
            held.set()
            time.sleep(2 * files.POLL_SECONDS)
            seen.append("released")

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with files.locked(path, seen.append) as is_locked:
        assert is_locked
        assert str(os.getpid()) in seen[0]
        assert seen[1:] == ["released"]  # told once
    thread.join()


def test_a_lock_file_that_is_replaced_meanwhile_is_not_held(tmp_path, monkeypatch):
    flock, calls = files.fcntl.flock, []

    def late(file, operation):
        if not calls:
            (tmp_path / "run.lock").unlink()  # as its last holder may do on ending
        calls.append(operation)
        flock(file, operation)

    monkeypatch.setattr(files.fcntl, "flock", late)
    with files.run_folder(tmp_path):
        assert len(calls) == 2
        assert (tmp_path / "run.lock").exists()


def test_a_snapshot_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "snapshot_00000007"

    def write_half():
        with replaced_folder(path) as draft:
            (draft / "training_state.pth").write_text("half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_half()
    assert list(tmp_path.iterdir()) == []
    for text in ("old", "new"):
        with replaced_folder(path) as draft:
            (draft / "training_state.pth").write_text(text)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert (path / "training_state.pth").read_text() == "new"


def test_drafts_of_killed_processes_are_removed_and_nothing_else(tmp_path):
    drafts = [".generator.pth.123.tmp", ".snapshot_00000007.99.tmp"]
    others = [".hidden.tmp", "x.1.tmp", ".profile", ".a.12x.tmp"]
    (tmp_path / drafts[1]).mkdir()
    (tmp_path / drafts[1] / "ema.pth").touch()
    for name in [drafts[0], *others]:
        (tmp_path / name).touch()
    remove_drafts(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(others)


@pytest.mark.parametrize("what", ["parameter", "average", "moment"])
def test_states_that_are_not_finite_are_neither_saved_nor_resumed(
    tmp_path, monkeypatch, capsys, what
):
    out = tmp_path / "out"
    arguments = [*tiny_arguments(tmp_path), "--output_dir", str(out), "--model_save_interval", "5"]
    assert train.main([*arguments, "--max_steps", "4"]) == 0
    before = (out / "training_state.pth").read_bytes()
    between = snapshots.Keeper.between_steps

    def spoil(keeper, **kwargs):
        game = keeper.game
        tensor = {
            "parameter": next(game.discriminator.parameters()).data,
            "average": game.averages[1].shadow[0],
            "moment": next(iter(game.generator_optimizer.state.values()))["exp_avg_sq"],
        }[what]
        tensor[(0,) * tensor.ndim] = float("inf")
        between(keeper, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(snapshots.Keeper, "between_steps", spoil)
        assert train.main([*arguments, "--max_steps", "9", "--resume"]) == 1
    error = capsys.readouterr().err
    assert "is not finite" in error
    assert "the last good state is" in error
    assert (out / "training_state.pth").read_bytes() == before
    assert not list(out.glob("snapshot*"))
    content = state_of(out)
    content["generator"]["siren.final_layer.bias"][0] = float("nan")
    checkpoints.save(out / "training_state.pth", "training_state", content)
    with pytest.raises(UsageError, match="not finite, in siren.final_layer.bias"):
        train.main([*arguments, "--max_steps", "9", "--resume"])


@pytest.mark.parametrize("shares", [True, False])
def test_too_little_memory_is_told_in_one_line_with_what_helps(
    tmp_path, monkeypatch, capsys, shares
):
    out = tmp_path / "out"
    words = [*tiny_arguments(tmp_path), "--set", f"shares_fakes={shares}"]
    words += ["--output_dir", str(out), "--max_steps", "4"]

    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(AdversarialGame, "generator_step", fail)
    assert train.main(words) == 1
    *_, line = capsys.readouterr().err.splitlines()
    more = " --set shares_fakes=false" if shares else ""
    assert re.fullmatch(
        rf"error: cpu had too little free memory at step 0, of \d+ pixels\. The same command with "
        rf"--resume --set 0\.batch_split=2{more} needs less; no state was saved", line
    )  # fmt: skip


@pytest.mark.parametrize(
    ("error", "is_saved"),
    [
        (PeerLost("rank 1 did not answer"), True),
        (torch.distributed.DistBackendError("NCCL error: remote process exited\nand more"), True),
        (NotFinite("generator: bias is not finite"), False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
    ],
)
def test_a_rank_that_cannot_go_on_ends_without_waiting_for_the_others(
    error, is_saved, tmp_path, monkeypatch, capsys
):
    place = Place(device=torch.device("cpu"), rank=1, world_size=2)
    run = object.__new__(loop.TrainingRun)
    run.place, run.copy = place, None
    run.options = SimpleNamespace(output_dir=tmp_path / "out")
    run.curriculum, run.progress = curriculums.load("Demo"), SimpleNamespace(step=1700)
    run.ending = SimpleNamespace(is_reached=lambda step: False)
    written = []
    monkeypatch.setattr(loop, "write_state", lambda folder, content: written.append(content))
    monkeypatch.setattr(loop, "content_of", lambda *_: "state")

    def stop_with(*_):
        raise error

    run.game = None
    run._loop = stop_with
    with pytest.raises(PeerLost):
        run.run()
    assert written == ["state"] * is_saved
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert str(error).splitlines()[0] in line or "batch_split" in line


def fill_space(game, density):
    game.generator.siren.final_layer.bias.data.fill_(density)


def make_alike(game):
    for parameter in game.generator.siren.mapping_network.parameters():
        parameter.data.zero_()


def misguess(game):
    game.discriminator.final_layer.bias.data[-2:] = 1000.0


COLLAPSES = {  # what is done to a game, and a piece of the line
    "empty": (lambda game: fill_space(game, -1e4), "space has been empty for "),
    "full": (lambda game: fill_space(game, 1e4), "space has been full for "),
    "alike": (make_alike, "all objects have looked alike for "),
    "heads": (misguess, "the discriminator's guesses of latent and pose have been "),
    "loss": (None, "the discriminator's loss has been near zero "),
}


@pytest.mark.parametrize("sign", COLLAPSES)
def test_signs_of_collapse_are_in_the_log(tmp_path, monkeypatch, capsys, sign):
    """Each sign is reported once while it lasts, on the screen and in log.jsonl."""
    spoil, words = COLLAPSES[sign]
    monkeypatch.setattr(snapshots, "PROBE_INTERVAL", 2)
    monkeypatch.setattr(collapse, "PATIENCE", dict.fromkeys(collapse.PATIENCE, 10))
    build = setup.build_game

    def spoiled(*args):
        game = build(*args)
        if spoil is not None:
            spoil(game)
        return game

    monkeypatch.setattr(setup, "build_game", spoiled)
    if sign == "loss":
        logistic = losses.logistic
        monkeypatch.setattr(losses, "logistic", lambda *args, **kw: 1e-3 * logistic(*args, **kw))
    out = tmp_path / "out"
    arguments = [*tiny_arguments(tmp_path, stage2=1000), "--output_dir", str(out)]
    arguments += ["--set", "discriminator=CCSEncoderDiscriminator", "--set", "pos_lambda=15"]
    assert train.main([*arguments, "--max_steps", "30"]) == 0
    entries = [entry for entry in entries_of(out) if words in entry.get("warning", "")]
    error = capsys.readouterr().err
    assert len(entries) == 1
    assert entries[0]["step"] in (12, 20)  # losses are checked every ten steps
    line = f"warning at step {entries[0]['step']}: {entries[0]['warning']}"
    assert error.count(line) == error.count(words) == 1


def test_exports_are_brought_up_to_date_when_a_run_goes_on(tmp_path, monkeypatch):
    out = tmp_path / "out"
    arguments = [*tiny_arguments(tmp_path), "--output_dir", str(out)]
    assert train.main([*arguments, "--max_steps", "2"]) == 0
    monkeypatch.setattr(state, "export", lambda *_: None)  # killed between state and exports
    assert train.main([*arguments, "--max_steps", "4", "--resume"]) == 0
    assert checkpoints.read(out / "ema.pth", "generator")["step"] == 2
    monkeypatch.undo()
    assert train.main([*arguments, "--max_steps", "4", "--resume"]) == 0  # nothing else to do
    assert checkpoints.read(out / "ema.pth", "generator")["step"] == 4


@pytest.mark.parametrize("has_copy", [True, False])
def test_a_copy_is_saved_if_a_peer_is_lost_and_the_live_state_cannot_be_read(tmp_path, has_copy):
    """Simulates CUDA, where an operation with the lost process may never end."""
    arguments = [*tiny_arguments(tmp_path), "--num_processes", "2", "--output_dir"]
    faults = {"die": [1, 5], "apart": 0 if has_copy else 600}
    code, error = run([*arguments, tmp_path / "out"], faults)
    assert code != 0
    assert "run the same command with --resume" in error
    assert "Traceback" not in error
    assert ("saved at step 5 in" in error) == has_copy
    assert (tmp_path / "out" / "training_state.pth").exists() == has_copy
    if has_copy:
        complete([*arguments, tmp_path / "out", "--max_steps", "8", "--resume"])
        complete([*arguments, tmp_path / "whole", "--max_steps", "8"])
        assert_same_state(tmp_path / "out", tmp_path / "whole")
