"""Several ranks in one run: places, collective operations, failures, signals and memory."""

import dataclasses
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import forks
import pytest
import rank_workers
import torch
from faults import ROOT, finish, start, wait_for
from torch.multiprocessing import start_processes

from distributed import collectives, processes, supervision
from distributed.processes import Place
from distributed.supervision import StopSignal
from system import machine
from system.errors import UsageError

TWO = processes.plan("cpu", 2, {})
TOLD = f"\n{supervision.STOPPING}\n"  # at once, by the process that the terminal has started
TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}  # fmt: skip


def place_with_cuda(monkeypatch, count):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


class TestPlan:
    @pytest.mark.parametrize(
        ("count", "device", "num_processes", "expected"),
        [
            (0, "auto", None, ["cpu"]),
            (0, "cpu", 3, ["cpu"] * 3),
            (4, "auto", None, ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
            (4, "cuda", 2, ["cuda:0", "cuda:1"]),
            (4, "cuda:2", None, ["cuda:2"]),
        ],
    )
    def test_as_many_as_asked_or_one_per_device(
        self, monkeypatch, count, device, num_processes, expected
    ):
        place_with_cuda(monkeypatch, count)
        places = processes.plan(device, num_processes, {})
        assert [str(place.device) for place in places] == expected
        ranks = [(p.rank, p.local_rank, p.world_size, p.local_world_size) for p in places]
        assert ranks == [(i, i, len(places), len(places)) for i in range(len(places))]
        assert [place.is_main for place in places] == [i == 0 for i in range(len(places))]

    def test_torchrun(self, monkeypatch):
        place_with_cuda(monkeypatch, 4)
        device = torch.device("cuda", 1)
        expected = Place(device=device, rank=5, world_size=8, local_rank=1, local_world_size=4)
        assert processes.plan("auto", None, TORCHRUN) == (expected,)
        assert processes.plan("cpu", 4, TORCHRUN)[0].device == torch.device("cpu")

    def test_every_device_must_be_one_that_pytorch_has_code_for(self, monkeypatch):
        place_with_cuda(monkeypatch, 2)
        monkeypatch.setattr(machine, "unsupported_gpu", lambda index: "too old" if index else "")
        with pytest.raises(UsageError, match="--device cuda:1: too old"):
            processes.plan("auto", None, {})
        assert len(processes.plan("auto", 1, {})) == 1

    def test_a_task_that_sees_one_device_takes_it(self, monkeypatch):
        """SLURM shows each task of a machine its own device, always as number 0."""
        place_with_cuda(monkeypatch, 1)
        (place,) = processes.plan("auto", None, TORCHRUN)
        assert (place.local_rank, place.device) == (1, torch.device("cuda", 0))

    @pytest.mark.parametrize(
        ("environ", "device", "num_processes", "message"),
        [
            ({}, "cuda:2", 2, "--device cuda:2 is a single device"),
            ({}, "auto", 5, "--num_processes 5: there are only 4 visible CUDA"),
            (TORCHRUN | {"MASTER_PORT": None}, "auto", None, "but MASTER_PORT is not"),
            (TORCHRUN | {"RANK": "first"}, "auto", None, "torchrun's environment is damaged"),
            (TORCHRUN, "auto", 2, "--num_processes 2: torchrun has started 4 here"),
            (TORCHRUN | {"LOCAL_RANK": "4"}, "auto", None,
             "cuda:4: the devices here are cuda:0 to cuda:3"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_is_refused(self, monkeypatch, environ, device, num_processes, message):
        place_with_cuda(monkeypatch, 4)
        present = {key: value for key, value in environ.items() if value is not None}
        with pytest.raises(UsageError, match=message):
            processes.plan(device, num_processes, present)


class TestOneProcess:
    def test_work_runs_in_this_process_and_its_result_or_error_is_passed_on(self):
        (place,) = processes.plan("cpu", None, {})
        here = os.getpid()
        assert processes.launch(lambda *_: 3 * (os.getpid() == here), None, (place,)) == 3
        with pytest.raises(ZeroDivisionError):
            processes.launch(lambda *_: 1 // 0, None, (place,))

    def test_collective_operations_change_nothing_in_one_process(self):
        tensor = torch.arange(3.0)
        collectives.average([tensor])
        collectives.broadcast_state([tensor])
        assert tensor.tolist() == [0, 1, 2]
        assert collectives.mean_over_ranks({"a": tensor[1]}) == {"a": tensor[1]}
        assert [collectives.agree_to_stop(flag) for flag in (True, False)] == [True, False]


def two_places(monkeypatch, device):
    """Return two places, on the same CUDA device if there is only one."""
    if device == "cpu":
        return TWO
    monkeypatch.setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1")
    indices = [0, 1 if torch.cuda.device_count() > 1 else 0]
    return tuple(
        dataclasses.replace(place, device=torch.device("cuda", index))
        for place, index in zip(TWO, indices, strict=True)
    )


@pytest.fixture
def _quick_ranks(monkeypatch):
    """Fork the ranks that a test of the CPU starts, where that is possible."""
    if forks.CAN_FORK:
        context = forks.server().get_start_method()
        monkeypatch.setattr(
            processes, "start_processes", partial(start_processes, start_method=context)
        )


class TestTwoProcesses:
    @pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
    def test_tensors_and_flags_are_exchanged_between_ranks(self, tmp_path, monkeypatch, device):
        places = two_places(monkeypatch, device)
        assert processes.launch(rank_workers.exchange, tmp_path, places) == 7
        first, second = (
            torch.load(tmp_path / f"{rank}.pth", map_location="cpu") for rank in (0, 1)
        )
        for tensor in (*first["averaged"], *second["averaged"]):
            assert (tensor == 1.5).all()
        assert first["averaged"][0].is_contiguous(memory_format=torch.channels_last)
        for kind in ("broadcast", "trained"):
            for name, tensor in first[kind].items():
                assert torch.equal(tensor, second[kind][name])
        for results in (first, second):
            assert results["terms"] == {"a": 15, "b": 1.5}
            assert (results["nobody"], results["somebody"]) == (False, True)

    @pytest.mark.usefixtures("_quick_ranks")
    @pytest.mark.parametrize(
        ("kind", "code", "message"),
        [
            ("bug", 1, "ZeroDivisionError: the failure itself"),
            ("killed", 137, "rank 1 was ended"),
            ("disk", 1, "error: cannot write cat.png (No space left on device)\n"),
        ],
    )
    def test_one_failure_ends_the_run(self, capfd, kind, code, message):
        start = time.monotonic()
        assert processes.launch(rank_workers.fail, kind, TWO) == code
        assert time.monotonic() - start < 60  # the waiting rank would take 600
        error = capfd.readouterr().err
        assert message in error
        assert error.count("Traceback") == (kind == "bug")  # its own, not its peer's complaint

    def test_ranks_on_windows_end_by_themselves(self, capfd, monkeypatch):
        monkeypatch.setattr(processes, "HAS_LIBUV", False)
        monkeypatch.setattr(supervision, "CAN_TERMINATE", False)
        monkeypatch.setattr(supervision, "GRACE_SECONDS", 300)
        killed = []  # as Windows' terminate does, without time to save
        monkeypatch.setattr(BaseProcess, "terminate", lambda rank: killed.append(rank))
        assert processes.launch(rank_workers.fail, "bug", TWO) == 1
        assert killed == []
        assert capfd.readouterr().err.count("Traceback") == 1

    @pytest.mark.usefixtures("_quick_ranks")
    def test_a_usage_error_of_a_rank_is_raised_as_one(self, capfd):
        with pytest.raises(UsageError, match="^no pictures in 'cats'$"):
            processes.launch(rank_workers.fail, "usage", TWO)
        assert capfd.readouterr().err == ""

    @pytest.mark.parametrize(
        ("device", "kind"),
        [
            ("cpu", "sleep"),
            pytest.param("cpu", "stop", marks=pytest.mark.slow),
            *(pytest.param("cuda", kind, marks=pytest.mark.gpu) for kind in ("stop", "die")),
        ],
    )
    def test_slow_ranks_are_waited_for_and_lost_ones_are_not(
        self, tmp_path, capfd, monkeypatch, request, device, kind
    ):
        if device == "cpu":
            request.getfixturevalue("_quick_ranks")
            monkeypatch.setattr(supervision, "SILENT_SECONDS", 1.0)
        places = two_places(monkeypatch, device)
        code = processes.launch(rank_workers.slow_and_lost, (tmp_path, kind), places)
        seconds = time.time() - float((tmp_path / "last step").read_text())
        assert code != 0
        assert seconds < 30  # a timeout of 3, at most 10 until SIGKILL, and time for busy cores
        error = capfd.readouterr().err
        assert "error: rank 1 was ended by SIG" in error
        if device == "cpu":
            assert error.startswith("error: rank 0: rank 1 did not answer in time\n")


class TestPort:
    @pytest.mark.parametrize("turns", [3, None])
    def test_gpus_must_receive_what_others_send(self, monkeypatch, turns):
        turn = itertools.count(1)
        event = SimpleNamespace(query=lambda: next(turn) == turns)
        stream = SimpleNamespace(record_event=lambda: event)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
        monkeypatch.setattr(processes.dist, "all_reduce", lambda tensor: None)
        monkeypatch.setattr(processes, "ANSWER_SECONDS", 5.0 if turns else 0.0)
        if turns:
            processes._require_answers(torch.device("cpu"))
            assert next(turn) == turns + 1
        else:
            with pytest.raises(UsageError, match="NCCL_P2P_DISABLE=1"):
                processes._require_answers(torch.device("cpu"))

    def test_a_taken_port_is_refused(self, monkeypatch):
        monkeypatch.setattr(processes, "start_processes", None)  # no process may be started
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            with pytest.raises(UsageError, match=f"--port {port} is taken; --port .* is free"):
                processes.launch(rank_workers.exchange, None, TWO, port=port)


def started(work, count, folder):
    """Start a command in its own process group and wait until all its ranks work."""
    process = start([work, count, folder], program=rank_workers.__file__)
    is_at_work = lambda: len(list(folder.glob("*.started"))) == max(1, count)  # noqa: E731
    assert wait_for(is_at_work, process), process.stderr.read()
    return process


class TestSignals:
    @pytest.mark.parametrize(
        ("send", "told"),
        [
            (lambda process: process.terminate(), ""),
            (lambda process: os.killpg(process.pid, signal.SIGINT), TOLD),
        ],
        ids=["SIGTERM", "Ctrl-C in the terminal"],
    )
    def test_a_signal_stops_all_ranks_after_the_same_step(self, tmp_path, send, told):
        process = started("step_until_stopped", 2, tmp_path)
        send(process)
        assert finish(process, 30) == (0, told)
        first, second = ((tmp_path / f"{rank}.steps").read_text() for rank in (0, 1))
        assert first == second

    def test_before_the_loop_ctrl_c_ends_at_once(self, tmp_path):
        process = started("wait_outside_of_stop_signal", 2, tmp_path)
        process.send_signal(signal.SIGINT)
        assert finish(process, 30) == (130, f"{TOLD}interrupted\n")

    def test_ranks_do_not_outlive_a_killed_parent(self, tmp_path):
        process = started("step_until_stopped", 2, tmp_path)
        pids = [int((tmp_path / f"{rank}.pid").read_text()) for rank in (0, 1)]
        process.kill()
        finish(process, 30)
        wait_for(lambda: not any(is_running(pid) for pid in pids), seconds=10)

    @pytest.mark.slow
    @pytest.mark.parametrize("number", supervision.STOP_SIGNALS)
    def test_every_stop_signal_ends_a_run_of_one_process(self, tmp_path, number):
        process = started("step_until_stopped", 0, tmp_path)
        process.send_signal(number)
        assert finish(process, 30) == (0, TOLD if number == signal.SIGINT else "")


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


class TestStopSignal:
    @pytest.mark.parametrize("number", supervision.STOP_SIGNALS)
    def test_the_first_signal_only_requests_a_stop(self, number):
        before = signal.getsignal(number)
        with StopSignal() as stop:
            assert not stop.requested
            signal.raise_signal(number)
            signal.raise_signal(number)  # the same one, heard twice
            assert (stop.requested, stop.signum) == (True, number)
        assert signal.getsignal(number) is before

    def test_a_second_ctrl_c_ends_the_process(self, monkeypatch):
        monkeypatch.setattr(supervision, "REPEAT_SECONDS", -1.0)
        with StopSignal() as stop:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            assert stop.requested
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)

    def test_an_ignored_signal_stays_ignored(self):
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with StopSignal() as stop:
                signal.raise_signal(signal.SIGINT)
                assert not stop.requested
        finally:
            signal.signal(signal.SIGINT, before)

    def test_in_a_thread_signals_are_not_handled(self):
        def work():
            with StopSignal() as stop:
                return stop.requested

        with ThreadPoolExecutor() as threads:
            assert threads.submit(work).result() is False


COUNT_FAULTS = """
import resource, torch
from system import machine
print(machine.keep_freed_memory())
for round in range(6):
    if round == 4:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [torch.zeros(10, 2**20) + 1 for _ in range(3)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is asked, and Linux counts")
def test_freed_memory_is_used_again_without_page_faults():
    output = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    could, faults = output.split()
    # Two rounds of six tensors of 40 MiB, 10240 pages each: all of them without the setting. The
    # heap may still grow a little where freed pieces do not fit together.
    assert could == "False" or int(faults) < 2 * 6 * 10_240 / 2


@pytest.mark.slow
def test_torchrun(tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    words, program = ["exchange", "0", tmp_path], rank_workers.__file__
    code, error = finish(start(words, launcher=launcher, program=program))
    assert code == 1, error  # torchrun's, as both ranks returned 7
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1))
    assert first["terms"] == second["terms"] == {"a": 15, "b": 1.5}
