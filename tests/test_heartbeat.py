"""Signs of life: who is lost, who is only busy, and when."""

import time

import pytest
from torch.distributed import TCPStore

from distributed import heartbeat
from distributed.heartbeat import Heartbeat


@pytest.fixture
def quick(monkeypatch):
    for name, seconds in {"BEAT": 0.02, "LOST": 0.4, "STUCK": 0.4, "FIRST": 1.5}.items():
        monkeypatch.setattr(heartbeat, f"{name}_SECONDS", seconds)


@pytest.fixture
def hearts(quick):
    """Two ranks that share a store."""
    master = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    pair = [
        Heartbeat(TCPStore("127.0.0.1", master.port, is_master=False), rank, 2) for rank in (0, 1)
    ]
    yield pair
    for heart in pair:
        heart.stop()


def complaint_within(heart, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if heart.complaint():
            return heart.complaint()
        time.sleep(0.02)
    return None


def test_all_live(hearts):
    assert complaint_within(hearts[0], 0.8) is None


def test_a_rank_that_fell_silent_is_named(hearts):
    hearts[1].stop()
    assert "rank 1 gave no sign of life" in complaint_within(hearts[0], 2)


def test_a_rank_that_stands_still_in_a_step_falls_silent(hearts):
    first, second = hearts
    with second.watched():
        time.sleep(0.01)  # a first step, of the usual length
    with second.watched():
        assert "rank 1 gave no sign of life" in complaint_within(first, 3)
    time.sleep(0.2)
    assert first.complaint() is None  # it was a pause only


def test_waiting_and_work_between_steps_are_no_standstill(hearts):
    first, second = hearts
    with second.watched():
        time.sleep(0.01)
    with second.watched(), second.waiting():
        assert complaint_within(first, 1.2) is None
    assert complaint_within(first, 1.0) is None  # saving, measuring, showing


def test_the_first_step_and_slow_steps_have_more_time(hearts):
    first, second = hearts
    with second.watched():
        assert complaint_within(first, 1.0) is None  # nothing is known yet
    with second.watched():
        assert complaint_within(first, 1.0) is None  # ten times as long as the first


def test_a_store_that_does_not_answer_is_named(quick):
    master = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    heart = Heartbeat(TCPStore("127.0.0.1", master.port, is_master=False), 1, 2)
    assert heart.complaint() is None
    del master
    assert "the machine of rank 0 has not answered" in complaint_within(heart, 3)
    heart.stop()
