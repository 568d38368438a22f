"""How fast this machine's processor is; run as python -m benchmarks.cpu.

Each variant runs in a process of its own: the textbook one as PyTorch comes out of the box, ours
with freed memory kept, in float32 and with bfloat16 operands. Prints tables and writes
benchmarks/results/DATE-MACHINE.json. Seconds are medians, of the wall or, with --clock cpu, of the
process on all its cores: the figure to take where others use the machine too.
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

import curriculums
import machine
from benchmarks import data, results, sizes, table, view
from benchmarks.textbook import TextbookGame, twin_of
from siren.fused.arithmetic import product
from training.adversarial import AdversarialGame, OptimizerOptions, Precision

FIELD_POINTS = 16_384
REPEATS = 5
VARIANTS = ("textbook", "exact", "bf16")
LIMIT_SIZE = 2048  # of the square matrices whose product is the machine's limit
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class StepCase:
    """A training step: curriculum, changes of it, number of the step, whose generator.

    is_trained: the generator that the repository ships, in whose space most is empty; else a fresh
    one, in whose space hardly anything is.
    """

    curriculum: str
    step: int
    overrides: tuple[str, ...] = ()
    is_trained: bool = False


STEPS = {
    "Demo step, 16 px, untrained": StepCase("Demo", 500),
    "Demo step, 16 px, trained generator": StepCase("Demo", 500, is_trained=True),
    "Demo step, 32 px, untrained": StepCase("Demo", 10**6),
    "Demo step, 32 px, trained generator": StepCase("Demo", 10**6, is_trained=True),
    "CelebA step, batch 2, 32 px, untrained": StepCase(
        "CelebA", 6000, ("0.batch_size=2", "0.batch_split=1", "0.img_size=32")
    ),
}


def median_seconds(work: Callable[[], object], clock: str, repeats: int = REPEATS) -> float:
    """Median time of work after one warm-up call, seconds."""
    work()
    seconds = []
    for _ in range(repeats):
        start = CLOCKS[clock]()
        work()
        seconds.append(CLOCKS[clock]() - start)
    return statistics.median(seconds)


def measure(variant: str, clock: str) -> dict[str, float]:
    """Seconds of each piece of work in this process."""
    if variant != "textbook":
        machine.keep_freed_memory()
    seconds: dict[str, float] = {}
    for name in ("Demo", "CelebA"):
        seconds |= _field_seconds(name, variant, clock)
    for title, case in STEPS.items():
        seconds[title] = _step_seconds(case, variant, clock)
    return seconds


def _field_seconds(name: str, variant: str, clock: str) -> dict[str, float]:
    """Evaluation of one object's field at FIELD_POINTS points, with and without gradients."""
    curriculum = curriculums.load(name)
    siren = curriculum.build_generator().siren
    siren = twin_of(siren) if variant == "textbook" else siren
    film = siren.mapping_network(torch.randn(1, siren.z_dim))
    points = torch.rand(1, FIELD_POINTS, 3) * 0.2 - 0.1
    direction = torch.tensor([[[0.0, 0.0, -1.0]]])

    def evaluate() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=variant == "bf16"):
            samples: torch.Tensor = siren(points, direction, film)
        return samples

    with torch.no_grad():
        forward = median_seconds(evaluate, clock)
    title = f"{name} field, {FIELD_POINTS:,} points"
    both = median_seconds(lambda: evaluate().sum().backward(retain_graph=True), clock)
    return {title: forward, f"{title}, with gradient": both}


def _step_seconds(case: StepCase, variant: str, clock: str) -> float:
    """One update of both networks on random pictures, with its share of the R1 penalties."""
    torch.manual_seed(0)
    curriculum = curriculums.load(case.curriculum, overrides=case.overrides)
    generator = view.trained().generator if case.is_trained else curriculum.build_generator()
    precision = Precision(autocast_dtype=torch.bfloat16 if variant == "bf16" else None)
    kind = TextbookGame if variant == "textbook" else AdversarialGame
    game = kind(
        generator.requires_grad_(True),
        curriculum.build_discriminator(),
        OptimizerOptions(),
        precision,
        seed=0,
    )
    # Without a learning rate the updates cost the same, and all are of the same networks.
    stage = replace(curriculum.at(case.step), generator_lr=0.0, discriminator_lr=0.0)
    size = stage.render.image_size
    real = torch.rand(stage.batch_size, 3, size, size) * 2 - 1

    def steps() -> None:
        for later in range(stage.r1_interval):
            game.step(real, replace(stage, step=stage.step + later))

    return median_seconds(steps, clock) / stage.r1_interval


def limits(clock: str) -> dict[str, float]:
    """GFLOP/s of a large matrix product, by PyTorch's default library and the fastest it has."""
    flops = 2 * LIMIT_SIZE**3
    one = torch.randn(LIMIT_SIZE, LIMIT_SIZE)
    half = one.bfloat16()
    work = {
        "float32, torch.mm": lambda: one @ one,
        "float32, oneDNN": lambda: product(one, one),
        "bfloat16": lambda: half @ half,
    }
    return {name: flops / median_seconds(call, clock) / 1e9 for name, call in work.items()}


def _in_its_own_process(part: str, args: argparse.Namespace) -> Any:
    command = [sys.executable, "-m", "benchmarks.cpu", "--part", part]
    command += ["--threads", str(args.threads), "--clock", args.clock]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


PARTS: dict[str, Callable[[str], Any]] = {
    "limits": limits,
    "data": lambda clock: data.measure(),
    "sizes": lambda clock: sizes.measure(),
    "view exact": lambda clock: view.measure("exact"),
    "view fast": lambda clock: view.measure("fast"),
    "trained view": lambda clock: view.measure_trained(),
    **{variant: functools.partial(measure, variant) for variant in VARIANTS},
}


def main() -> int:
    """Measure every part in a process of its own, print the tables and keep them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--threads", type=int, default=machine.num_cores())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.part is not None:
        print(json.dumps(PARTS[args.part](args.clock)))
        return 0
    found = {part: _in_its_own_process(part, args) for part in PARTS}
    content = {"threads": args.threads, "clock": args.clock, **found}
    path = results.write(content, results.processor())
    print(table.of_file(path))
    print(f"\n{path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
