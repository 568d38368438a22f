"""Several processes: one run per folder, a shared cache, and ranks that die or hang."""

import time

import pytest
from faults import (
    differences,
    entries_of,
    finish,
    kill,
    run,
    start,
    state_of,
    tiny_arguments,
    wait_for,
)

TWO = ["--num_processes", "2"]


def test_a_second_run_in_a_folder_is_refused_and_the_first_goes_on(tmp_path):
    tiny, out = tiny_arguments(tmp_path), tmp_path / "out"
    first = start([*tiny, "--output_dir", out])
    try:
        wait_for(lambda: (out / "log.jsonl").exists() and entries_of(out), first)
        before = sorted(path.name for path in tmp_path.iterdir())
        code, error = run([*tiny, "--output_dir", out, "--resume"])
        assert code == 2
        assert error.count("\n") == 1
        assert f"another run uses it (process {first.pid} on" in error
        assert sorted(path.name for path in tmp_path.iterdir()) == before
        size = len(entries_of(out))
        wait_for(lambda: len(entries_of(out)) > size, first)
    finally:
        kill(first)
    assert (out / "run.lock").exists()  # the system has dropped the lock of the killed run
    code, error = run([*tiny, "--output_dir", out, "--max_steps", "5"])
    assert code == 0, error
    assert not (out / "run.lock").exists()


def test_two_runs_share_a_cache(tmp_path):
    tiny = tiny_arguments(tmp_path)
    runs = [
        start([*tiny, "--output_dir", tmp_path / name, "--max_steps", "4"]) for name in ("a", "b")
    ]
    for process in runs:
        code, error = finish(process)
        assert code == 0, error
    assert differences(state_of(tmp_path / "a"), state_of(tmp_path / "b")) == []
    assert len(list((tmp_path / "cache").glob("*/pixels.u8"))) == 2  # one for each size
    assert not list((tmp_path / "cache").glob("*.tmp-*"))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("die", "the connection to rank {} broke"),
        ("hang", "rank {} did not answer in time"),
        ("sleep", "rank {} did not answer in time"),
    ],
)
def test_a_rank_that_is_lost_is_noticed_within_a_minute(tmp_path, kind, told, rank, counted):
    """die: SIGKILL; hang: SIGSTOP; sleep: only its main thread hangs."""
    tiny, out = [*tiny_arguments(tmp_path), *TWO], tmp_path / "out"
    last = 40
    process = start([*tiny, "--output_dir", out], {kind: [rank, last]})
    wait_for(lambda: (out / "log.jsonl").exists() and len(entries_of(out)) >= 3, process)
    began = time.monotonic()
    code, error = finish(process, 120)
    seconds = time.monotonic() - began
    assert code != 0
    assert f"rank {1 - rank}: " in error
    assert told.format(rank) in error
    assert f"error: rank {rank} was ended by SIGKILL" in error
    assert f"saved at step {last} in {out}; run the same command with --resume" in error
    assert "Traceback" not in error
    assert state_of(out)["step"] == last
    code, error = run([*tiny, "--output_dir", out, "--resume", "--max_steps", last + 3])
    assert code == 0, error
    code, error = run([*tiny, "--output_dir", tmp_path / "whole", "--max_steps", last + 3])
    assert code == 0, error
    assert differences(state_of(out), state_of(tmp_path / "whole")) == []
    counted(f"rank {rank} {kind}: all over {seconds:.0f} s after step 30, saved at {last}")
    assert seconds < (20 if kind == "die" else 60)


@pytest.mark.slow
def test_a_healthy_run_is_not_ended_however_slow(tmp_path, counted):
    """The first step of each stage, saving, previews and FID take longer than a step's timeout."""
    pause, steps = 12, 12
    arguments = [*tiny_arguments(tmp_path), *TWO, "--max_steps", steps, "--model_save_interval",
                 "7", "--sample_interval", "8", "--eval_freq", "9"]  # fmt: skip
    began = time.monotonic()
    faults = {"pause": pause, "step_seconds": 6}
    code, error = run([*arguments, "--output_dir", tmp_path / "slow"], faults, 400)
    assert code == 0, error
    seconds = time.monotonic() - began
    assert seconds > 6 * pause  # 2 first steps, 2 saves, previews, FID
    code, error = run([*arguments, "--output_dir", tmp_path / "fast", "--eval_freq", "99"])
    assert code == 0, error
    assert differences(state_of(tmp_path / "slow"), state_of(tmp_path / "fast")) == []
    counted(f"{steps} steps with pauses of {pause} s and a timeout of 6 s: {seconds:.0f} s")


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_data_set_smaller_than_a_batch(tmp_path, processes):
    arguments = [*tiny_arguments(tmp_path), "--num_processes", str(processes), "--output_dir",
                 tmp_path / "out", "--max_steps", "4", "--set", "num_images=1"]  # fmt: skip
    code, error = run(arguments)
    assert code == 0, error
    assert state_of(tmp_path / "out")["images_seen"] == processes * (3 * 3 + 2)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["image", "gradient", "loss", "scaler"])
@pytest.mark.parametrize("rank", [0, 1])
def test_bad_numbers_on_one_rank_of_two(tmp_path, rank, what, counted):
    """Both ranks skip and count bad updates, and stop after ten with the cause."""
    tiny, out = [*tiny_arguments(tmp_path), *TWO], tmp_path / "out"
    code, error = run([*tiny, "--output_dir", out], {"nan": [rank, 20, what]})
    assert code == 1
    network = "discriminator" if what == "image" else "generator"
    assert f"error: 10 updates of the {network} in a row were not finite, up to step 30" in error
    assert "no state was saved" in error
    assert "Traceback" not in error
    assert not (out / "training_state.pth").exists()
    assert "were not finite" in entries_of(out)[-1]["error"]
    counted(f"rank {rank}, {what}: stopped at step 30 on both ranks")
