"""How fast this machine's processor is; run as python -m benchmarks.cpu.

Each variant runs in a process of its own: the textbook one as PyTorch comes out of the box, ours
with freed memory kept, in float32 and with bfloat16 operands. Prints tables and writes
benchmarks/results/DATE-MACHINE.json. Seconds are medians, of the wall or, with --clock cpu, of the
process on all its cores: the figure to take where others use the machine too. --demo RUN adds the
whole training of a run of make demo.
"""

import argparse
import functools
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import curriculums
import flags
import machine
from benchmarks import data, demo, results, sizes, table, view
from benchmarks.table import VARIANTS
from benchmarks.textbook import TextbookGame, twin_of
from siren.fused.arithmetic import HAS_ONEDNN_LINEAR, onednn_product
from training.adversarial import AdversarialGame, OptimizerOptions, Precision

FIELD_POINTS = 16_384
REPEATS = 3
PROCESSES = 3
PROFILED = "CelebA step, batch 2, 32 px, untrained"
TOP = 8  # operations that a profile names
TEXTBOOK_DEMO = "textbook's demo"
ALL_CORES = "all cores, "  # before a variant
LIMIT_SIZE = 2048  # of the square matrices whose product is the machine's limit
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class StepCase:
    """A training step: curriculum, changes of it, number of the step, whose generator.

    is_trained: the generator that the repository ships, in whose space most is empty; else a fresh
    one, in whose space hardly anything is. is_emptied: a fresh one made as empty as trained ones.
    """

    curriculum: str
    step: int
    overrides: tuple[str, ...] = ()
    is_trained: bool = False
    is_emptied: bool = False


SMALL = ("0.batch_size=2", "0.batch_split=1", "0.img_size=32")
STEPS = {
    "Demo step, 16 px, untrained": StepCase("Demo", 500),
    "Demo step, 16 px, trained generator": StepCase("Demo", 500, is_trained=True),
    "Demo step, 32 px, untrained": StepCase("Demo", 10**6),
    "Demo step, 32 px, trained generator": StepCase("Demo", 10**6, is_trained=True),
    "CelebA step, batch 2, 32 px, untrained": StepCase("CelebA", 6000, SMALL),
    "CelebA step, batch 2, 32 px, space as empty as in trained heads": StepCase(
        "CelebA", 6000, SMALL, is_emptied=True
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


def _steps(case: StepCase, variant: str) -> tuple[Callable[[], None], int]:
    """Updates of both networks on random pictures, and how many: one of them has the R1 penalty."""
    torch.manual_seed(0)
    curriculum = curriculums.load(case.curriculum, overrides=case.overrides)
    generator = view.trained().generator if case.is_trained else curriculum.build_generator()
    if case.is_emptied:
        film = generator.mapping(torch.randn(1, generator.z_dim))
        view.empty_all_but(generator, film, view.SHARE)
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

    return steps, stage.r1_interval


def _step_seconds(case: StepCase, variant: str, clock: str) -> float:
    steps, count = _steps(case, variant)
    return median_seconds(steps, clock) / count


def profile(variant: str) -> list[tuple[str, int, float]]:
    """Name, calls and seconds of the operations that take longest of a step of PROFILED.

    Seconds are of the operation itself, without the ones that it calls, by the profiler's clock.
    """
    if variant != "textbook":
        machine.keep_freed_memory()
    steps, count = _steps(STEPS[PROFILED], variant)
    steps()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        steps()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    rows = [(event.key, event.count, event.self_cpu_time_total / 1e6) for event in events]
    whole = ("all", sum(row[1] for row in rows), sum(row[2] for row in rows))
    return [(name, calls // count, time / count) for name, calls, time in [*rows[:TOP], whole]]


def limits(clock: str) -> dict[str, float]:
    """GFLOP/s of a large matrix product, by PyTorch's default library (MKL) and by oneDNN."""
    flops = 2 * LIMIT_SIZE**3
    one = torch.randn(LIMIT_SIZE, LIMIT_SIZE)
    half = one.bfloat16()
    work = {"float32, torch.mm": lambda: one @ one, "bfloat16": lambda: half @ half}
    if HAS_ONEDNN_LINEAR:
        work["float32, oneDNN"] = lambda: onednn_product(one, one, None)
    return {name: flops / median_seconds(call, clock) / 1e9 for name, call in work.items()}


def wide_steps(variant: str) -> dict[str, float]:
    """Wall seconds of CelebA's steps with the threads that this process has."""
    if variant != "textbook":
        machine.keep_freed_memory()
    cases = {title: case for title, case in STEPS.items() if case.curriculum == "CelebA"}
    return {title: _step_seconds(case, variant, "wall") for title, case in cases.items()}


def _textbook_demo() -> dict[int, float]:
    """Wall seconds of the textbook's step of the demo by image size: the least of its cases."""
    seconds: dict[int, float] = {}
    for case in (case for case in STEPS.values() if case.curriculum == "Demo"):
        size = curriculums.load("Demo").at(case.step).render.image_size
        seconds[size] = min(
            seconds.get(size, math.inf), _step_seconds(case, "textbook", clock="wall")
        )
    return seconds


def _in_its_own_process(part: str, threads: int, clock: str) -> Any:
    command = [sys.executable, "-m", "benchmarks.cpu", "--part", part]
    command += ["--threads", str(threads), "--clock", clock]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.stderr.write(done.stderr)
        done.check_returncode()
    return json.loads(done.stdout)


def _measured(threads: int, clock: str) -> dict[str, Any]:
    """What every part found, of variants the medians of PROCESSES.

    How memory happens to lie makes some processes slower than others from start to end.
    """
    parts = [part for part in PARTS if part not in (*VARIANTS, TEXTBOOK_DEMO)]
    if (threads, clock) == (machine.num_cores(), "wall"):  # the variants show it already
        parts = [part for part in parts if not part.startswith(ALL_CORES)]
    runs: dict[str, list[Any]] = {}
    for part in tqdm([*parts, *VARIANTS * PROCESSES], unit="part"):
        used = machine.num_cores() if part.startswith(ALL_CORES) else threads
        runs.setdefault(part, []).append(_in_its_own_process(part, used, clock))
    medians = {
        variant: {name: statistics.median(run[name] for run in runs[variant]) for name in first}
        for variant, first in ((variant, runs[variant][0]) for variant in VARIANTS)
    }
    return {part: found[0] for part, found in runs.items()} | medians


def _without_clock(measure_it: Callable[..., Any], *args: str) -> Callable[[str], Any]:
    return lambda clock: measure_it(*args)


PARTS: dict[str, Callable[[str], Any]] = {
    "limits": limits,
    "data": _without_clock(data.measure),
    "sizes": _without_clock(sizes.measure),
    "view exact": _without_clock(view.measure, "exact"),
    "view fast": _without_clock(view.measure, "fast"),
    "trained view": _without_clock(view.measure_trained),
    TEXTBOOK_DEMO: _without_clock(_textbook_demo),
    **{variant: functools.partial(measure, variant) for variant in VARIANTS},
    **{f"{ALL_CORES}{variant}": _without_clock(wide_steps, variant) for variant in VARIANTS},
    **{f"profile {variant}": _without_clock(profile, variant) for variant in VARIANTS},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every part in a process of its own, print the tables and keep them.

    Raises:
        UsageError: --demo names no finished run of the demo.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--threads", type=int, default=machine.num_cores())
    parser.add_argument("--demo", type=Path, metavar="RUN", help="a finished run of make demo")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.part is not None:
        print(json.dumps(PARTS[args.part](args.clock)))
        return 0
    whole = {}
    if args.demo is not None:
        ours = demo.seconds_by_size(args.demo)
        textbook = _in_its_own_process(TEXTBOOK_DEMO, machine.num_cores(), "wall")
        whole = {"demo": demo.compared(ours, textbook)}
    found = _measured(args.threads, args.clock)
    content = {
        "cores": machine.num_cores(),
        "threads": args.threads,
        "clock": args.clock,
        **found,
        **whole,
    }
    path = results.write(content, results.processor())
    print(table.of_file(path))
    print(f"\n{path}")
    return 0


if __name__ == "__main__":
    sys.exit(flags.run(main))
