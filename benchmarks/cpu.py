"""How fast this machine's processor is; run as python -m benchmarks.cpu.

Each variant runs in a process of its own, and each step of wide networks: the textbook one as
PyTorch comes out of the box, ours with freed memory kept, in float32 and with bfloat16 operands.
Prints tables and writes benchmarks/results/DATE-MACHINE.json. Seconds are medians, of the wall or,
with --clock cpu, of the process on all its cores: the figure to take where others use the machine
too. --demo RUN adds the whole training of make demo, into a new folder RUN.
"""

import argparse
import functools
import itertools
import json
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
from benchmarks import data, demo, results, sizes, table, view
from benchmarks.table import VARIANTS
from benchmarks.textbook import TextbookGame, twin_of
from config.stage import OptimizerOptions, Precision
from siren.fused.arithmetic import HAS_ONEDNN_LINEAR, onednn_product
from system import flags, machine
from training.adversarial import AdversarialGame

# What a 64 px picture asks for at once, 12 points on each ray, and a third of it: arrays that are
# small enough for the C library to keep their memory, which is what the textbook's time depends on.
FIELD_POINTS = (49_152, 16_384)
REPEATS = 3
ENOUGH = 2.0  # seconds after which the work is not repeated
PROCESSES = 3
PROFILED = "CelebA step, batch 1, 64 px, untrained"
UNTRAINED = "untrained"
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


SMALL = ("0.batch_size=1", "0.batch_split=1")
STEPS = {
    "Demo step, 16 px, untrained": StepCase("Demo", 500),
    "Demo step, 16 px, trained generator": StepCase("Demo", 500, is_trained=True),
    "Demo step, 32 px, untrained": StepCase("Demo", 10**6),
    "Demo step, 32 px, trained generator": StepCase("Demo", 10**6, is_trained=True),
    "CelebA step, batch 1, 64 px, untrained": StepCase("CelebA", 6000, SMALL),
    "CelebA step, batch 1, 64 px, space as empty as in trained heads": StepCase(
        "CelebA", 6000, SMALL, is_emptied=True
    ),
}
WIDE_STEPS = [title for title, case in STEPS.items() if case.curriculum == "CelebA"]


def median_seconds(work: Callable[[], object], clock: str) -> float:
    """Median time of work after one warm-up call, seconds; at least one repeat."""
    work()
    seconds: list[float] = []
    while len(seconds) < REPEATS and sum(seconds) < ENOUGH:
        start = CLOCKS[clock]()
        work()
        seconds.append(CLOCKS[clock]() - start)
    return statistics.median(seconds)


def measure(variant: str, clock: str) -> dict[str, float]:
    """Seconds of the field, and of steps of narrow networks, in this process."""
    _prepare(variant)
    seconds: dict[str, float] = {}
    for name, num_points in itertools.product(("Demo", "CelebA"), FIELD_POINTS):
        seconds |= _field_seconds(name, num_points, variant, clock)
    for title in _steps_of(variant):
        if title not in WIDE_STEPS:
            seconds[title] = _step_seconds(STEPS[title], variant, clock)
    return seconds


def measure_wide(variant: str, title: str, clock: str) -> dict[str, float]:
    """Seconds of one step of wide networks, with nothing before it in this process."""
    _prepare(variant)
    return {title: _step_seconds(STEPS[title], variant, clock)}


def _prepare(variant: str) -> None:
    if variant != "textbook":
        machine.keep_freed_memory()


def _steps_of(variant: str) -> list[str]:
    """Of the steps those to measure: the textbook's work is the same whatever space holds."""
    return [title for title in STEPS if variant != "textbook" or UNTRAINED in title]


def _of_untrained(title: str) -> str:
    """The step of an untrained generator that is else the same."""
    return f"{title.rpartition(', ')[0]}, {UNTRAINED}"


def _field_seconds(name: str, num_points: int, variant: str, clock: str) -> dict[str, float]:
    """Evaluation of one object's field at some points, with and without gradients."""
    curriculum = curriculums.load(name)
    siren = curriculum.build_generator().siren
    siren = twin_of(siren) if variant == "textbook" else siren
    film = siren.mapping_network(torch.randn(1, siren.z_dim))
    points = torch.rand(1, num_points, 3) * 0.2 - 0.1
    direction = torch.tensor([[[0.0, 0.0, -1.0]]])

    def evaluate() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=variant == "bf16"):
            samples: torch.Tensor = siren(points, direction, film)
        return samples

    with torch.no_grad():
        forward = median_seconds(evaluate, clock)
    title = f"{name} field, {num_points:,} points"
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
    _prepare(variant)
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


def _textbook_demo() -> dict[int, float]:
    """Wall seconds of the textbook's step of the demo by image size."""
    seconds: dict[int, float] = {}
    for title in _steps_of("textbook"):
        if title not in WIDE_STEPS:
            case = STEPS[title]
            size = curriculums.load("Demo").at(case.step).render.image_size
            seconds[size] = _step_seconds(case, "textbook", clock="wall")
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
    jobs = [(part, part, 1 if part in PROFILES else threads, clock) for part in ONCE]
    for variant in VARIANTS * PROCESSES:
        wide = [f"{variant}, {title}" for title in WIDE_STEPS if title in _steps_of(variant)]
        jobs += [(variant, part, threads, clock) for part in (variant, *wide)]
        if (threads, clock) != (machine.num_cores(), "wall"):  # else the variants show it already
            jobs += [(f"{ALL_CORES}{variant}", part, machine.num_cores(), "wall") for part in wide]
    runs: dict[str, list[Any]] = {}
    for name, *job in tqdm(jobs, unit="part"):
        runs.setdefault(name, []).append(_in_its_own_process(*job))
    found: dict[str, Any] = {
        name: runs_of[0] if name in ONCE else demo.medians(runs_of)
        for name, runs_of in runs.items()
    }
    for before in ("", ALL_CORES):
        if f"{before}textbook" in found:
            textbook, exact = found[f"{before}textbook"], found[f"{before}exact"]
            found[f"{before}textbook"] = {
                title: textbook[title if title in textbook else _of_untrained(title)]
                for title in exact
            }
    return found


def _without_clock(measure_it: Callable[..., Any], *args: str) -> Callable[[str], Any]:
    return lambda clock: measure_it(*args)


# The profiler names no operations of the threads that do our chunks: on one thread there are none.
PROFILES = {f"profile {variant}": _without_clock(profile, variant) for variant in VARIANTS}
ONCE: dict[str, Callable[[str], Any]] = {
    "limits": limits,
    "data": _without_clock(data.measure),
    "sizes": _without_clock(sizes.measure),
    "view exact": _without_clock(view.measure, "exact"),
    "view fast": _without_clock(view.measure, "fast"),
    "trained view": _without_clock(view.measure_trained),
    **PROFILES,
}
PARTS: dict[str, Callable[[str], Any]] = {
    **ONCE,
    TEXTBOOK_DEMO: _without_clock(_textbook_demo),
    **{variant: functools.partial(measure, variant) for variant in VARIANTS},
    **{
        f"{variant}, {title}": functools.partial(measure_wide, variant, title)
        for variant, title in itertools.product(VARIANTS, WIDE_STEPS)
    },
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every part in a process of its own, print the tables and keep them.

    Raises:
        UsageError: --demo names something that is there.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--threads", type=int, default=machine.num_cores())
    parser.add_argument("--demo", type=Path, metavar="RUN", help="train the demo there")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.part is not None:
        print(json.dumps(PARTS[args.part](args.clock)))
        return 0
    whole = {}
    if args.demo is not None:
        textbook = functools.partial(
            _in_its_own_process, TEXTBOOK_DEMO, machine.num_cores(), "wall"
        )
        whole = {"demo": demo.measure(args.demo, textbook)}
    found = _measured(args.threads, args.clock)
    content = {
        "cores": machine.num_cores(),
        "threads": args.threads,
        "clock": args.clock,
        "profiled": PROFILED,
        **found,
        **whole,
    }
    path = results.write(content, results.processor())
    print(table.of_file(path))
    print(f"\n{path}")
    return 0


if __name__ == "__main__":
    sys.exit(flags.run(main))
