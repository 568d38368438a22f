"""How fast this machine trains on its processor; run as python -m benchmarks.cpu.

Each variant runs in a process of its own: the textbook one as PyTorch comes out of the box, ours
with freed memory kept. Prints one table; ratios are of medians.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

import curriculums
import machine
from benchmarks.textbook import twin_of
from curriculum import Curriculum
from training.adversarial import AdversarialGame, OptimizerOptions, Precision

FIELD_POINTS = 16_384
REPEATS = 7
STEPS: dict[str, tuple[str, list[str], int]] = {  # name: curriculum, overrides, step
    "Demo step, first stage": ("Demo", [], 500),
    "Demo step, last stage": ("Demo", [], 10**6),
    "CelebA step, batch 2, 32 px": (
        "CelebA",
        ["0.batch_size=2", "0.batch_split=1", "0.img_size=32"],
        6000,
    ),
}


def median_seconds(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median wall time of work after one warm-up call, seconds."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure(is_textbook: bool) -> dict[str, float]:
    """Seconds of each piece of work in this process."""
    if not is_textbook:
        machine.keep_freed_memory()
    seconds: dict[str, float] = {}
    for name in ("Demo", "CelebA"):
        seconds |= _field_seconds(name, is_textbook)
    for title, (name, overrides, step) in STEPS.items():
        seconds[title] = _step_seconds(
            curriculums.load(name, overrides=overrides), step, is_textbook
        )
    return seconds


def _field_seconds(name: str, is_textbook: bool) -> dict[str, float]:
    """Evaluation of one object's field at FIELD_POINTS points, with and without gradients."""
    curriculum = curriculums.load(name)
    siren = curriculum.build_generator().siren
    siren = twin_of(siren) if is_textbook else siren
    z = torch.randn(1, siren.z_dim)
    points = torch.rand(1, FIELD_POINTS, 3) * 0.2 - 0.1
    direction = torch.tensor([[[0.0, 0.0, -1.0]]])

    def evaluate() -> torch.Tensor:
        samples: torch.Tensor = siren(points, direction, siren.mapping_network(z))
        return samples

    with torch.no_grad():
        forward = median_seconds(evaluate)
    return {
        f"{name} field, forward": forward,
        f"{name} field, with gradient": median_seconds(lambda: evaluate().sum().backward()),
    }


def _step_seconds(curriculum: Curriculum, step: int, is_textbook: bool) -> float:
    """One update of both networks on random pictures, untrained networks."""
    torch.manual_seed(0)
    generator, stage = curriculum.build_generator(), curriculum.at(step)
    if is_textbook:
        generator.siren = twin_of(generator.siren)
    game = AdversarialGame(
        generator, curriculum.build_discriminator(), OptimizerOptions(), Precision(), seed=0
    )
    size = stage.render.image_size
    real = torch.rand(stage.batch_size, 3, size, size) * 2 - 1
    return median_seconds(lambda: game.step(real, stage))


def _in_its_own_process(variant: str, threads: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.cpu", "--variant", variant]
    command += ["--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds: dict[str, float] = json.loads(done.stdout)
    return seconds


def main() -> int:
    """Measure both variants and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", choices=("textbook", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=machine.num_cores())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.variant is not None:
        print(json.dumps(measure(args.variant == "textbook")))
        return 0
    textbook = _in_its_own_process("textbook", args.threads)
    ours = _in_its_own_process("ours", args.threads)
    processor = platform.processor() or platform.machine()
    print(f"{processor}, {args.threads} threads, torch {torch.__version__}; milliseconds\n")
    print(f"{'':34}{'textbook':>10}{'ours':>10}{'ratio':>8}")
    for name, slow in textbook.items():
        fast = ours[name]
        print(f"{name:34}{slow * 1e3:10.1f}{fast * 1e3:10.1f}{slow / fast:8.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
