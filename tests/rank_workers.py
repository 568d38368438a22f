"""Workers of the ranks in test_distributed, in a module that new processes can import.

As a command, `python tests/rank_workers.py COUNT FOLDER`: ranks that step until they are stopped.
"""

import errno
import os
import signal
import sys
import time
from pathlib import Path

import torch

from distributed import collectives, processes
from distributed.supervision import StopSignal
from system import flags
from system.errors import UsageError

FOREVER = 600.0  # seconds; whatever waits so long must be killed


def exchange(place, folder):
    """Run all collective operations and write their results to a file."""
    mine = float(place.rank + 1)
    torch.set_default_device(place.device)
    weight = torch.full((2, 3, 4, 4), mine).contiguous(memory_format=torch.channels_last)
    tensors = [weight, torch.tensor(mine), torch.full((3,), mine, dtype=torch.float64)]
    torch.manual_seed(place.rank)
    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5))
    collectives.average(tensors)
    collectives.broadcast_state(module.state_dict().values())
    results = {
        "averaged": tensors,
        "broadcast": module.state_dict(),
        "trained": trained(place),
        "terms": collectives.mean_over_ranks(
            {"b": torch.tensor(mine), "a": torch.tensor(10 * mine)}
            if place.is_main
            else {"a": torch.tensor(10 * mine), "b": torch.tensor(mine)}
        ),
        "nobody": collectives.agree_to_stop(False),
        "somebody": collectives.agree_to_stop(place.rank == 1),
    }
    torch.set_default_device("cpu")
    torch.save(results, folder / f"{place.rank}.pth")
    return 7


def trained(place):
    """Return parameters after steps of the mean gradient; each rank has its own data."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    rng = torch.Generator(place.device).manual_seed(place.rank)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 4, generator=rng)).square().mean().backward()
        collectives.average(p.grad for p in model.parameters())
        optimizer.step()
    return model.state_dict()


def fail(place, kind):
    """Fail on rank 1; rank 0 waits for it in a collective operation or outside of one."""
    collectives.agree_to_stop(False)
    if place.rank == 0 and kind != "killed":
        collectives.agree_to_stop(False)
    if place.rank == 0:
        time.sleep(FOREVER)
    if kind == "usage":
        raise UsageError("no pictures in 'cats'")
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "disk":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "cat.png")
    raise ZeroDivisionError("the failure itself")


def slow_and_lost(place, job):
    """Be slow where allowed, then hang, stop or die on rank 1 in a step."""
    folder, kind = job
    timeout = collectives.STEP_SECONDS = 2.0 if place.device.type == "cpu" else 3.0
    collectives.STEP_FACTOR = 0.0
    timeouts = collectives.StepTimeouts()
    gradient = torch.ones(1000, device=place.device)
    for step, stage in enumerate("aaabb"):
        with timeouts.step(stage, 2):
            is_first = step in (0, 3)
            time.sleep(1.5 * timeout * (is_first and place.rank == 1))  # kernels compile
            collectives.average([gradient])
        time.sleep(1.5 * timeout * (step == 2 and place.is_main))  # saving
        timeouts.wait_for_rank_0()
    if place.is_main:
        (folder / "last step").write_text(str(time.time()))
    with timeouts.step("b", 2):
        if place.rank == 1:
            {"stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
             "die": lambda: os.kill(os.getpid(), signal.SIGKILL),
             "sleep": lambda: time.sleep(FOREVER)}[kind]()  # fmt: skip
        collectives.average([gradient])
        assert gradient.sum().item() == 1000  # waits for the device
        collectives.agree_to_stop(False)
    return 0


def step_until_stopped(place, folder):
    """Make slower steps on rank 1 than on rank 0; both must end after the same step."""
    (folder / f"{place.rank}.pid").write_text(str(os.getpid()))
    with StopSignal() as stop:
        step = 0
        while not collectives.agree_to_stop(stop.requested):
            step += 1
            time.sleep(0.02 * (1 + place.rank))
            if step == 3:
                (folder / f"{place.rank}.started").touch()
    (folder / f"{place.rank}.steps").write_text(str(step))
    return 0


def wait_outside_of_stop_signal(place, folder):
    """Do work that a signal may end at any time, such as preparing data."""
    (folder / f"{place.rank}.started").touch()
    time.sleep(FOREVER)
    return 0


def main(_):
    work, count, folder = sys.argv[1:]
    places = processes.plan("cpu", int(count) or None, os.environ)
    return processes.launch(globals()[work], Path(folder), places)


if __name__ == "__main__":
    sys.exit(flags.run(main))
