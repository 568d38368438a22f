"""What benchmarks make of a run's log."""

import json

import pytest

from benchmarks import demo
from system.errors import UsageError


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


def test_the_textbooks_step_is_timed_after_each_part_of_the_demo(tmp_path, monkeypatch):
    run, entries, turns = tmp_path / "run", [], []

    def train(words, **_):
        stop = int(words[-1].split()[-1])
        turns.append(stop)
        entries.append(entry(stop, 16 if stop <= 1500 else 32, 0.1))
        log(run, entries)

    def textbook():
        turns.append("textbook")
        return {"16": 0.2, "32": float(len(entries))}

    monkeypatch.setattr(demo.subprocess, "run", train)
    found = demo.measure(run, textbook)
    assert turns == [turn for stop in range(500, 4001, 500) for turn in (stop, "textbook")]
    assert found["whole"]["steps"] == 4000
    assert found["16 px"] == {"steps": 1500, "seconds": pytest.approx(150), "textbook": 300}
    assert found["32 px"]["textbook"] == 2500 * 4.5  # the median of 1 to 8
