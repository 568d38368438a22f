"""A run killed at any instant resumes from its last announced state with equal results."""

import random
import signal
import time

import faults
import pytest

from checkpoint_io import checkpoints

NETWORK_FILES = {"generator.pth": "generator", "ema.pth": "generator", "ema2.pth": "generator",
                 "discriminator.pth": "discriminator"}  # fmt: skip


def announced(folder):
    """Return the last step that the log reports as saved."""
    return max((e["step"] for e in faults.entries_of(folder) if e.get("saved")), default=0)


def is_saving(folder):
    return any(folder.glob(".*.tmp"))


def check_files(folder):
    """Check that all files are complete, and no older than the last announced save."""
    state = folder / "training_state.pth"
    if state.exists():
        assert checkpoints.read(state, "training_state")["step"] >= announced(folder)
    for path in folder.glob("*.pth"):
        if path.name in NETWORK_FILES:
            checkpoints.read(path, NETWORK_FILES[path.name])
    for snapshot in folder.glob("snapshot_????????"):
        assert {p.name for p in snapshot.iterdir()} == {*NETWORK_FILES, "training_state.pth"}


def kill_again_and_again(tmp_path, processes, kills, rng):
    """Kill a run again and again; (kills while saving, steps at which it was found, its folder)."""
    count = ["--num_processes", str(processes)]
    tiny = [*faults.tiny_arguments(tmp_path), *count, "--state_seconds", "0.05", "--keep", "1",
            "--sample_interval", "1000000", "--model_save_interval", "7"]  # fmt: skip
    out = tmp_path / "out"
    kills_while_saving, found = 0, []
    for number in range(kills):
        way = ["--load_dir", out] if number % 2 and (out / "training_state.pth").exists() else []
        before = announced(out)
        process = faults.start([*tiny, "--output_dir", out, *(way or ["--resume"])], {"slow": 0.02})
        faults.wait_for(lambda log=out / "log.jsonl": log.exists(), process)
        if number % 5 == 4:  # anywhere, the start included
            time.sleep(rng.uniform(0, 1.5))
        else:
            seen = announced(out)
            faults.wait_for(lambda seen=seen: announced(out) > seen, process)  # it continues
            faults.wait_for(lambda: is_saving(out), process)
            time.sleep(rng.uniform(0, 0.15))
        kills_while_saving += is_saving(out)
        faults.kill(process)
        check_files(out)
        assert announced(out) >= before
        found.append(announced(out))
    last = (
        faults.state_of(out)["step"] + 2
    )  # a state that is whole may be newer than what was announced
    faults.complete([*tiny, "--output_dir", out, "--resume", "--max_steps", last])
    faults.complete([*tiny, "--output_dir", tmp_path / "whole", "--max_steps", last])
    faults.assert_same_state(out, tmp_path / "whole")
    assert not is_saving(out)  # no half-written files remain
    steps = [entry["step"] for entry in faults.entries_of(out) if "d_real" in entry]
    assert steps == sorted(set(steps))  # no step is logged twice
    return kills_while_saving, found


def test_two_kills(tmp_path, counted):
    while_saving, found = kill_again_and_again(tmp_path, 1, 2, random.Random(0))
    counted(f"2 kills, {while_saving} while saving, at steps {found}")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_thirty_kills(tmp_path, processes, counted):
    while_saving, found = kill_again_and_again(tmp_path, processes, 30, random.Random(processes))
    counted(f"{processes} processes: 30 kills, {while_saving} while saving, at steps {found}")
    assert while_saving >= 10


@pytest.mark.slow
def test_a_preempted_torchrun_job_goes_on_by_the_same_command(tmp_path, counted):
    tiny = [*faults.tiny_arguments(tmp_path), "--output_dir", tmp_path / "out", "--resume"]
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    log, size, steps = tmp_path / "out" / "log.jsonl", 0, []
    for _ in range(2):
        process = faults.start(tiny, launcher=torchrun)
        faults.wait_for(lambda size=size: log.exists() and log.stat().st_size > size + 99, process)
        process.send_signal(signal.SIGTERM)
        _, error = faults.finish(process)
        size = log.stat().st_size
        steps.append(faults.state_of(tmp_path / "out")["step"])
        assert f"saved at step {steps[-1]}" in error
    assert steps[0] < steps[1]
    counted(f"torchrun was preempted at steps {steps}")
