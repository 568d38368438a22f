"""Two hosts, network namespaces with a virtual cable between them, train one run."""

import os
import shutil
import signal
import subprocess
import time

import pytest
from faults import assert_same_state, complete, start, state_of, tiny_arguments, wait_for

PORT = 29_611
ADDRESSES = ("10.213.77.1", "10.213.77.2")


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True)


class Network:
    """Two hosts that can reach each other and nothing else."""

    def __init__(self):
        self.hosts = [f"pigan{os.getpid()}{end}" for end in "ab"]
        self.cables = [f"pg{os.getpid() % 100_000}{end}" for end in "ab"]

    def set_up(self):
        """Set up both hosts; return False if that is not possible here."""
        if shutil.which("ip") is None or any(ip("netns", "add", h).returncode for h in self.hosts):
            return False
        first, second = self.cables
        if ip("link", "add", first, "type", "veth", "peer", "name", second).returncode:
            return False
        for host, cable, address in zip(self.hosts, self.cables, ADDRESSES, strict=True):
            ip("link", "set", cable, "netns", host)
            ip("-n", host, "addr", "add", f"{address}/24", "dev", cable)
            ip("-n", host, "link", "set", "lo", "up")
            ip("-n", host, "link", "set", cable, "up")
        return True

    def plug(self, *, is_in):
        ip("-n", self.hosts[1], "link", "set", self.cables[1], "up" if is_in else "down")

    def start(self, number, arguments):
        """Start torchrun on one of the hosts."""
        return start(
            arguments,
            before=("ip", "netns", "exec", self.hosts[number]),
            launcher=("-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1",
                      f"--node_rank={number}", f"--master_addr={ADDRESSES[0]}",
                      f"--master_port={PORT}"),
            GLOO_SOCKET_IFNAME=self.cables[number],
        )  # fmt: skip

    def kill(self, number, process):
        """Kill all processes of a host: killing torchrun alone would leave its ranks."""
        for pid in ip("netns", "pids", self.hosts[number]).stdout.split():
            os.kill(int(pid), signal.SIGKILL)
        process.communicate()

    def tear_down(self):
        for host in self.hosts:
            ip("netns", "del", host)
        ip("link", "del", self.cables[0])


@pytest.fixture
def network():
    made = Network()
    try:
        if not made.set_up():
            pytest.skip("network namespaces cannot be made here (needs root and iproute2)")
        yield made
    finally:
        made.tear_down()


def both(network, tmp_path, *more):
    """Start training on both hosts, each with its own folder as its disk."""
    hosts = []
    for number in (0, 1):
        disk = tmp_path / f"host{number}"
        disk.mkdir(exist_ok=True)
        words = [*tiny_arguments(disk), "--output_dir", disk / "out", "--resume", *more]
        hosts.append(network.start(number, words))
    return hosts


def ended(processes):
    """Wait for the processes; return their exit codes and stderr."""
    errors = [process.communicate(timeout=150)[1] for process in processes]
    return [process.returncode for process in processes], errors


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["cable", "host 0", "host 1"])
def test_two_machines(network, tmp_path, fault, counted):
    outs = [tmp_path / f"host{number}" / "out" for number in (0, 1)]
    hosts = both(network, tmp_path)
    log = outs[0] / "log.jsonl"
    wait_for(lambda: log.exists() and log.read_text().count("\n") >= 2, hosts[0], 120)
    began = time.monotonic()
    network.plug(is_in=False)
    left = [0, 1]
    if fault != "cable":  # as if the machine were lost: its processes end after the cut
        lost = int(fault[-1])
        network.kill(lost, hosts[lost])
        left = [1 - lost]
    for number in left:
        state = outs[number] / "training_state.pth"
        wait_for(state.exists, hosts[number], 100)
        counted(f"{fault}: host {number} had saved after {time.monotonic() - began:.0f} s")
    _, errors = ended([hosts[number] for number in left])
    seconds = time.monotonic() - began
    counted(f"{fault}: torchrun was over after {seconds:.0f} s")
    for number, error in zip(left, errors, strict=True):
        assert f"in {outs[number]}; run the same command with --resume" in error
    steps = [state_of(outs[number])["step"] for number in left]
    network.plug(is_in=True)
    last = max(steps) + 3
    hosts = both(network, tmp_path, "--max_steps", last)
    codes, errors = ended(hosts)
    assert codes == [0, 0], errors
    words = ["--num_processes", "2", "--max_steps", last, "--output_dir", tmp_path / "whole"]
    complete([*tiny_arguments(tmp_path), *words])
    assert_same_state(outs[0], tmp_path / "whole")
    counted(f"{fault}: saved at {steps}, went on to {last}, as one machine with two processes does")
    assert seconds < 60
