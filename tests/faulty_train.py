"""train.py with faults: a command for the tests, which say in FAULTS what goes wrong.

FAULTS is JSON: {"slow": seconds} makes every write to the disk take longer, in pieces, so that a
kill finds files half-written; {"hang": [rank, step]} and {"die": [rank, step]} stop or kill a rank;
{"nan": [rank, step, what]} puts numbers that are none into what a rank computes.
"""

import dataclasses
import json
import os
import signal
import sys
import time

import torch

import train
from checkpoint_io import checkpoints
from system import flags
from training import losses, setup

FAULTS = json.loads(os.environ.get("FAULTS", "{}"))


class SlowFile:
    """A file whose bytes come one part after the other."""

    def __init__(self, file, seconds):
        self.file, self.seconds = file, seconds

    def write(self, data):
        data = bytes(data)
        parts = 8
        for part in range(parts):
            self.file.write(data[part * len(data) // parts : (part + 1) * len(data) // parts])
            self.file.flush()
            time.sleep(self.seconds / parts)
        return len(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


def slow_down(seconds):
    replaced = checkpoints.replaced

    def slow_replaced(path):
        context = replaced(path)
        enter = context.__enter__
        context.__class__ = type("Slow", (context.__class__,), {
            "__enter__": lambda self: SlowFile(enter(), seconds)})  # fmt: skip
        return context

    checkpoints.replaced = slow_replaced
    fsync = os.fsync
    os.fsync = lambda descriptor: (time.sleep(seconds), fsync(descriptor))[1]


def spoil(game, place):
    """Have the game of this rank go wrong at the steps that FAULTS names."""
    step = game.step
    if FAULTS.get("nan", [None])[-1] == "scaler":  # all ranks have one, as on CUDA
        game.precision = dataclasses.replace(game.precision, is_scaled=True)
        game.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def faulty_step(real, stage):
        for kind, number in (("hang", signal.SIGSTOP), ("die", signal.SIGKILL)):
            rank, when, *_ = FAULTS.get(kind, (-1, -1))
            if (rank, when) == (place.rank, stage.step):
                os.kill(os.getpid(), number)
        rank, when, *_ = FAULTS.get("sleep", (-1, -1))
        if (rank, when) == (place.rank, stage.step):
            time.sleep(600)
        rank, when, what = FAULTS.get("nan", (-1, -1, ""))
        if rank != place.rank or stage.step < when:
            return step(real, stage)
        if what == "image":
            return step(real * float("nan"), stage)
        if what == "loss":
            logistic = losses.logistic
            losses.logistic = lambda *args, **kwargs: logistic(*args, **kwargs) + float("inf")
            try:
                return step(real, stage)
            finally:
                losses.logistic = logistic
        if what == "scaler":
            game.scaler._scale.fill_(float("nan"))
            return step(real, stage)
        assert what == "gradient"
        weight = next(game.generator.parameters())
        handle = weight.register_hook(lambda gradient: gradient * float("nan"))
        try:
            return step(real, stage)
        finally:
            handle.remove()

    game.step = faulty_step
    return game


def faulty(place, options):
    """The worker of each rank: new processes import this module and are spoiled as well."""
    if "slow" in FAULTS:
        slow_down(FAULTS["slow"])
    build = setup.build_game
    setup.build_game = lambda place, options, seed: spoil(build(place, options, seed), place)
    return train_properly(place, options)


train_properly = train.train
train.train = faulty

if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(flags.run(train.main))
