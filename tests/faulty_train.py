"""Run train.py with the faults that the variable FAULTS names.

FAULTS is JSON: {"slow": seconds} makes every write to the disk take longer, in pieces, so that a
kill finds files half-written; {"hang": [rank, step]} and {"die": [rank, step]} stop or kill a rank;
{"nan": [rank, step, what]} puts NaN into a rank's computation; {"apart": seconds} copies the state
as on CUDA, where the live one cannot be read while waiting for a lost rank; {"step_seconds":
seconds} shortens the timeout of training steps, and {"pause": seconds} slows down saving, previews,
FID, and on rank 1 the first step of each stage; {"cameras": [spread, spread]} lets the ranks find
different spreads of yaw after every second step.
"""

import contextlib
import dataclasses
import json
import os
import signal
import sys
import time

import torch

import train
from checkpoint_io import checkpoints
from distributed import collectives
from system import flags
from training import loop, losses, photo_cameras, previews, setup, snapshots, state

FAULTS = json.loads(os.environ.get("FAULTS", "{}"))


class SlowFile:
    """A file that is written slowly, one part after the other."""

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
    """Make the training step of this rank fail at the steps that FAULTS names."""
    step = game.step
    if FAULTS.get("nan", [None])[-1] == "scaler":  # all ranks have one, as on CUDA
        game.precision = dataclasses.replace(game.precision, is_scaled=True)
        game.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def faulty_step(real, stage, held_out):
        for kind, act in {
            "hang": lambda: os.kill(os.getpid(), signal.SIGSTOP),
            "die": lambda: os.kill(os.getpid(), signal.SIGKILL),
            "sleep": lambda: time.sleep(600),
        }.items():
            if FAULTS.get(kind) == [place.rank, stage.step]:
                act()
        rank, when, what = FAULTS.get("nan", (-1, -1, ""))
        if rank != place.rank or stage.step < when:
            return step(real, stage, held_out)
        with contextlib.ExitStack() as undo:
            if what == "image":
                real = real * float("nan")
            elif what == "loss":
                undo.callback(setattr, losses, "logistic", losses.logistic)
                plain = losses.logistic
                losses.logistic = lambda *args, **kwargs: plain(*args, **kwargs) + float("inf")
            elif what == "scaler":
                game.scaler._scale.fill_(float("nan"))
            else:
                assert what == "gradient"
                weight = next(game.generator.parameters())
                undo.callback(weight.register_hook(lambda g: g * float("nan")).remove)
            return step(real, stage, held_out)

    game.step = faulty_step
    return game


class SlowMeter:
    """Stands for the FID meter; rank 0 finishes later than the others."""

    def measure(self, generator, step, place, is_stopped):
        time.sleep(FAULTS["pause"] * place.is_main)
        return 1.0


def pause(place):
    """Slow down saving, previews and first steps; stages of the tests begin at steps 0 and 3."""
    for module, name in ((state, "save_state"), (snapshots, "previews")):
        slow = getattr(module, name)
        setattr(module, name, lambda *a, slow=slow: (time.sleep(FAULTS["pause"]), slow(*a))[1])
    loop.open_meter = lambda *_: (SlowMeter(), "")
    build = setup.build_game

    def slow_game(place, options, seed):
        game = build(place, options, seed)
        step = game.step

        def slow_step(real, stage, held_out):
            time.sleep(FAULTS["pause"] * (place.rank == 1 and stage.step in (0, 3)))
            return step(real, stage, held_out)

        game.step = slow_step
        return game

    setup.build_game = slow_game


def find(place):
    """Let this rank find a spread of its own."""

    def learned(game, curriculum, *_):
        return dataclasses.replace(curriculum.poses(), yaw_spread=FAULTS["cameras"][place.rank])

    photo_cameras.LEARN_OFTEN, photo_cameras.learned = 2, learned


def faulty(place, options):
    """Run as the worker of each rank: new processes import this module and so its faults."""
    if "slow" in FAULTS:
        slow_down(FAULTS["slow"])
    if "apart" in FAULTS:
        loop.computes_apart, loop.COPY_SECONDS = lambda place: True, FAULTS["apart"]
    if "step_seconds" in FAULTS:
        collectives.STEP_SECONDS, collectives.STEP_FACTOR = FAULTS["step_seconds"], 0
    if "pause" in FAULTS:
        pause(place)
    if "cameras" in FAULTS:
        find(place)
    build = setup.build_game
    setup.build_game = lambda place, options, seed: spoil(build(place, options, seed), place)
    return train_properly(place, options)


previews.COUNT = previews.COLUMNS  # as in conftest.py
train_properly = train.train
train.train = faulty

if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(flags.run(train.main))
