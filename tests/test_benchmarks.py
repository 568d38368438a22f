"""What benchmarks make of a run's log."""

import json

import pytest

from benchmarks import demo
from flags import UsageError


def log(folder, entries):
    folder.mkdir(exist_ok=True)
    lines = [{"step": 0, "saved": True}, *entries]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def entry(step, size, seconds):
    return {"step": step, "image_size": size, "seconds_per_step": seconds}


def test_seconds_of_a_run_and_of_as_many_steps_of_the_textbook(tmp_path):
    run = log(tmp_path, [entry(10, 16, 0.5), entry(1500, 16, 0.1), entry(4000, 32, 0.2)])
    ours = demo.seconds_by_size(run)
    assert ours == {16: (1500, pytest.approx(154.0)), 32: (2500, pytest.approx(500.0))}
    found = demo.compared(ours, {"16": 0.2, "32": 0.6})
    assert found["32 px"] == {"steps": 2500, "seconds": pytest.approx(500), "textbook": 1500}
    assert found["whole"] == {"steps": 4000, "seconds": pytest.approx(654), "textbook": 1800}


def test_the_demo_is_not_trained_over_another_run(tmp_path):
    with pytest.raises(UsageError, match=f"--demo {tmp_path}: is there already"):
        demo.measure(tmp_path, dict)
