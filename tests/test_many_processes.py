"""Several processes: one run per folder, a shared cache, and ranks that die or hang."""

import time

import faults
import pytest

TWO = ["--num_processes", "2"]


def test_a_second_run_in_a_folder_is_refused_and_the_first_goes_on(tmp_path):
    tiny, out = faults.tiny_arguments(tmp_path), tmp_path / "out"
    first = faults.start([*tiny, "--output_dir", out])
    try:
        faults.wait_for(lambda: faults.entries_of(out), first)
        before = sorted(path.name for path in tmp_path.iterdir())
        code, error = faults.run([*tiny, "--output_dir", out, "--resume"])
        assert code == 2
        assert error.count("\n") == 1
        assert f"another run uses it (process {first.pid} on" in error
        assert sorted(path.name for path in tmp_path.iterdir()) == before
        size = len(faults.entries_of(out))
        faults.wait_for(lambda: len(faults.entries_of(out)) > size, first)
    finally:
        faults.kill(first)
    assert (out / "run.lock").exists()  # the system has dropped the lock of the killed run
    faults.complete([*tiny, "--output_dir", out, "--max_steps", "5"])
    assert not (out / "run.lock").exists()


def test_two_runs_share_a_cache(tmp_path):
    tiny = faults.tiny_arguments(tmp_path)
    runs = [
        faults.start([*tiny, "--output_dir", tmp_path / name, "--max_steps", "4"])
        for name in ("a", "b")
    ]
    for process in runs:
        code, error = faults.finish(process)
        assert code == 0, error
    faults.assert_same_state(tmp_path / "a", tmp_path / "b")
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
    tiny, out = [*faults.tiny_arguments(tmp_path), *TWO], tmp_path / "out"
    last = 40
    process = faults.start([*tiny, "--output_dir", out], {kind: [rank, last]})
    faults.wait_for(lambda: len(faults.entries_of(out)) >= 3, process)
    began = time.monotonic()
    code, error = faults.finish(process, 120)
    seconds = time.monotonic() - began
    assert code != 0
    assert f"rank {1 - rank}: " in error
    assert told.format(rank) in error
    assert f"error: rank {rank} was ended by SIGKILL" in error
    assert f"saved at step {last} in {out}; run the same command with --resume" in error
    assert "Traceback" not in error
    assert faults.state_of(out)["step"] == last
    faults.complete([*tiny, "--output_dir", out, "--resume", "--max_steps", last + 3])
    faults.complete([*tiny, "--output_dir", tmp_path / "whole", "--max_steps", last + 3])
    faults.assert_same_state(out, tmp_path / "whole")
    counted(f"rank {rank} {kind}: all over {seconds:.0f} s after step 30, saved at {last}")
    assert seconds < (20 if kind == "die" else 60)


@pytest.mark.slow
def test_a_healthy_run_is_not_ended_however_slow(tmp_path, counted):
    """The first step of each stage, saving, previews and FID take longer than a step's timeout."""
    pause, steps = 12, 12
    words = ["--model_save_interval", "7", "--sample_interval", "8", "--eval_freq", "9"]
    arguments = [*faults.tiny_arguments(tmp_path), *TWO, "--max_steps", steps, *words]
    began = time.monotonic()
    slowed = {"pause": pause, "step_seconds": 6}
    faults.complete([*arguments, "--output_dir", tmp_path / "slow"], slowed, 400)
    seconds = time.monotonic() - began
    assert seconds > 6 * pause  # 2 first steps, 2 saves, previews, FID
    faults.complete([*arguments, "--output_dir", tmp_path / "fast", "--eval_freq", "99"])
    faults.assert_same_state(tmp_path / "slow", tmp_path / "fast")
    counted(f"{steps} steps with pauses of {pause} s and a timeout of 6 s: {seconds:.0f} s")


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_data_set_smaller_than_a_batch(tmp_path, processes):
    words = ["--num_processes", processes, "--max_steps", "4", "--set", "num_images=1"]
    faults.complete([*faults.tiny_arguments(tmp_path), "--output_dir", tmp_path / "out", *words])
    assert faults.state_of(tmp_path / "out")["images_seen"] == processes * (3 * 3 + 2)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["image", "gradient", "loss", "scaler"])
@pytest.mark.parametrize("rank", [0, 1])
def test_bad_numbers_on_one_rank_of_two(tmp_path, rank, what, counted):
    """Both ranks skip and count bad updates, and stop after ten with the cause."""
    tiny, out = [*faults.tiny_arguments(tmp_path), *TWO], tmp_path / "out"
    code, error = faults.run([*tiny, "--output_dir", out], {"nan": [rank, 20, what]})
    assert code == 1
    network = "discriminator" if what == "image" else "generator"
    assert f"error: 10 updates of the {network} in a row were not finite, up to step 30" in error
    assert "no state was saved" in error
    assert "Traceback" not in error
    assert not (out / "training_state.pth").exists()
    assert "were not finite" in faults.entries_of(out)[-1]["error"]
    counted(f"rank {rank}, {what}: stopped at step 30 on both ranks")
