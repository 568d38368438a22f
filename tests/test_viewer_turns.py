"""Who has a turn next."""

import threading

import pytest

from web_viewer.turns import Turns


def work(name, steps, log):
    """Work of so many steps that says in log what it does."""

    def begin():
        for step in range(steps):
            log.append(f"{name}{step}")
            yield

    return begin


def run_out(turns, limit=100):
    for _ in range(limit):
        if not turns.step():
            return
    pytest.fail("it goes on for ever")


def test_visitors_have_turns_one_step_each():
    turns, log = Turns(), []
    turns.join("a", work("a", 3, log))
    turns.join("b", work("b", 2, log))
    run_out(turns)
    assert log == ["a0", "b0", "a1", "b1", "a2"]


def test_wanted_many_times_meanwhile_begins_once_more():
    turns, log = Turns(), []
    turns.join("a", work("a", 2, log))
    turns.step()
    assert not turns.is_wanted("a")
    turns.want("a")
    turns.want("a")
    assert turns.is_wanted("a")
    run_out(turns)
    assert log == ["a0", "a1", "a0", "a1"]


def test_who_leaves_gets_no_further_step_and_costs_the_others_nothing():
    turns, log = Turns(), []
    turns.join("a", work("a", 50, log))
    turns.join("b", work("b", 2, log))
    turns.step()
    turns.leave("a")
    turns.leave("a")
    turns.want("a")
    run_out(turns)
    assert log == ["a0", "b0", "b1"]


def test_who_leaves_during_its_own_step_is_gone():
    turns, log = Turns(), []

    def begin():
        turns.leave("a")
        log.append("a")
        yield
        log.append("never")

    turns.join("a", begin)
    run_out(turns)
    assert log == ["a"]


def test_one_visitors_mishap_is_not_the_others(capsys):
    turns, log = Turns(), []

    def begin():
        yield
        raise ZeroDivisionError("mine")

    turns.join("a", begin)
    turns.join("b", work("b", 3, log))
    run_out(turns)
    assert log == ["b0", "b1", "b2"]
    assert "ZeroDivisionError: mine" in capsys.readouterr().err
    turns.want("a")
    assert turns.step()  # it may try again


def test_the_thread_works_looks_around_and_ends():
    turns, log = Turns(), []
    done, looked = threading.Event(), threading.Event()

    def begin():
        log.append(threading.current_thread().name)
        yield
        done.set()

    thread = threading.Thread(
        target=lambda: turns.run(seconds=0.02, look_around=looked.set), name="painter"
    )
    thread.start()
    turns.join("a", begin)
    assert done.wait(10)
    assert looked.wait(10)
    turns.close()
    thread.join(10)
    assert not thread.is_alive()
    assert log == ["painter"]
