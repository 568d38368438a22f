"""Independent parts of work run in parallel, one core each."""

import os
import subprocess
import sys
import threading

import pytest
import torch

from siren.fused import cores


@pytest.fixture(params=[2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_every_part_is_done_once_by_a_thread_that_uses_one_core(threads):
    def work(parts):
        return parts, torch.get_num_threads(), threading.get_ident(), torch.is_grad_enabled()

    expected = {
        2: [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10]],
        3: [[0, 1, 2], [3, 4, 5, 6], [7, 8, 9, 10]],
    }
    found = cores.spread(work, list(range(11)))
    assert [parts for parts, *_ in found] == expected[threads]  # the same ones every time
    assert {used for _, used, *_ in found} == {1}
    assert threading.get_ident() not in {thread for _, _, thread, _ in found}
    assert not any(is_recording for *_, is_recording in found)
    assert torch.get_num_threads() == threads  # those of the caller


def test_what_was_made_in_inference_mode_can_be_filled(threads):
    with torch.inference_mode():
        array = torch.zeros(8)
        cores.spread(lambda parts: [array[part].add_(part) for part in parts], list(range(8)))
    assert array.tolist() == list(range(8))


def test_few_parts_are_done_by_the_calling_thread(threads):
    def work(parts):
        return parts, torch.get_num_threads(), threading.get_ident()

    parts = list(range(2 * threads - 1))
    assert cores.spread(work, parts) == [(parts, threads, threading.get_ident())]


def test_an_error_of_one_part_reaches_the_caller_and_later_work_is_done(threads):
    def work(parts):
        if 1 in parts:
            raise ValueError("part 1")
        return parts

    with pytest.raises(ValueError, match="part 1"):
        cores.spread(work, list(range(8)))
    assert sum(cores.spread(len, list(range(8)))) == 8


FORKING = """
import os, torch
from siren.fused import cores
torch.set_num_threads(2)
parts = list(range(8))
cores.spread(len, parts)
child = os.fork()
if child == 0:
    os._exit(sum(cores.spread(len, parts)))
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_makes_threads_of_its_own():
    # Waiting for a thread that stayed with the parent would never end.
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKING], timeout=60)
    assert done.returncode == 8
