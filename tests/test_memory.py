"""The estimate of a training step's memory, against the bytes counted in fake steps."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
from fake_steps import run_steps

import curriculums
import train
from discriminators.discriminators import DISCRIMINATORS
from discriminators.linearized import RecordedLayers
from distributed.processes import Place
from system import machine
from system.errors import UsageError
from training import memory
from training.memory import Way, estimated_bytes, require_memory

GIB = 2**30
STAGES = [(name, start) for name in curriculums.PRESETS
          for start, _ in curriculums.load(name).stages]  # fmt: skip
PATHS = (("kernels", True), ("eager", False), ("eager", True))
QUICK = [("Demo", 0)]


def assert_close(monkeypatch, name, start, *overrides):
    """Covers every CUDA implementation and precision; the kernels take half precision only."""
    curriculum = curriculums.load(name, overrides=list(overrides))
    for path, is_half in PATHS:
        counted = run_steps(monkeypatch, curriculum, start, path, is_half=is_half).peak
        estimate = estimated_bytes(curriculum, start, Way(path, is_half, is_alone=True))
        assert estimate == pytest.approx(counted, rel=0.3), (path, is_half)


@pytest.mark.parametrize(("name", "start"), QUICK)
def test_the_estimate_is_near_the_bytes_of_a_step(monkeypatch, name, start):
    assert_close(monkeypatch, name, start)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "start"), [pair for pair in STAGES if pair not in QUICK])
def test_the_estimate_is_near_the_bytes_of_a_step_of_every_preset(monkeypatch, name, start):
    assert_close(monkeypatch, name, start)


@pytest.mark.parametrize(
    "overrides",
    [
        ("hidden_dim=128", "0.batch_size=4", "0.batch_split=2", "0.num_steps=24"),
        pytest.param(("model=EmbeddingPiGAN128",), marks=pytest.mark.slow),
        pytest.param(("0.batch_split=26",), marks=pytest.mark.slow),
        pytest.param(("0.batch_size=200", "0.batch_split=50"), marks=pytest.mark.slow),
        pytest.param(("discriminator_width=64", "hierarchical_sample=False"),
                     marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_the_estimate_holds_for_other_settings(monkeypatch, overrides):
    assert_close(monkeypatch, "CelebA128", 0, *overrides)


@pytest.mark.parametrize("name", DISCRIMINATORS)
@pytest.mark.parametrize("size", [2, 4, 32])
def test_numbers_at_the_rectifiers_are_those_of_a_pass(name, size):
    network, watched = DISCRIMINATORS[name](width=9), RecordedLayers()
    network(torch.zeros(1, 3, size, size), 0.5, watched)
    assert memory._rectified(network, size) == sum(t.numel() for t in watched.signs)


@pytest.mark.parametrize("name", curriculums.PRESETS)
@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
def test_presets_are_not_refused_on_a_card_of_10_gib(monkeypatch, name, precision):
    """They need at most 8.4 GiB, counted, where the kernels do not serve."""
    monkeypatch.setattr(machine, "memory_bytes", lambda device: 10 * GIB)
    monkeypatch.setattr(memory, "field_path", lambda *_: "eager")
    place = Place(device=torch.device("cuda", 0))
    require_memory(curriculums.load(name, overrides=[f"precision={precision}"]), [place])


def test_what_needs_far_more_is_refused_before_anything_starts(monkeypatch):
    monkeypatch.setattr(machine, "memory_bytes", lambda device: 10 * GIB)
    monkeypatch.setattr(memory, "field_path", lambda *_: "eager")
    curriculum = curriculums.load("CelebA", overrides=["0.num_steps=3000"])
    with pytest.raises(UsageError, match=r"stage 0: needs about \d+ GiB, and there are 10; try"):
        require_memory(curriculum, [Place(device=torch.device("cuda", 0))])


def test_the_device_with_the_least_memory_decides(monkeypatch):
    monkeypatch.setattr(machine, "memory_bytes", lambda device: (80, 0.5)[device.index] * GIB)
    monkeypatch.setattr(memory, "field_path", lambda *_: "eager")
    first, second = (Place(device=torch.device("cuda", index)) for index in (0, 1))
    curriculum = curriculums.load("CelebA")
    require_memory(curriculum, [first])
    with pytest.raises(UsageError, match="stage 0: needs about"):
        require_memory(curriculum, [first, second])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are measured on Linux")
def test_the_estimate_on_the_cpu_is_near_the_measured_peak(tmp_path, counted):
    words = ["--curriculum", "Demo", "--device", "cpu", "--set_step", "1500", "--max_steps", "1502",
             "--set", "num_images=100", "--eval_freq", "0",
             "--output_dir", str(tmp_path)]  # fmt: skip
    code = ("import resource, sys, train; train.main(sys.argv[1:]); "
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True,
                          cwd=Path(train.__file__).parent, timeout=600)  # fmt: skip
    assert done.returncode == 0, done.stderr
    measured = int(done.stdout) * 1024
    estimate = estimated_bytes(curriculums.load("Demo"), 1500, Way("cpu", False, is_alone=True))
    counted(f"measured {measured / 2**20:.0f} MiB, estimated {estimate / 2**20:.0f}")
    assert estimate == pytest.approx(measured, rel=0.3)
