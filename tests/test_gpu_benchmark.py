"""The GPU benchmark runs to its end; what it measures needs a GPU."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_checks
from benchmarks.bench import Bench, Sizes
from generators import fast_rays
from siren.siren import EmbeddingPiGAN128

ROOT = Path(__file__).parent.parent
TINY = Sizes(
    matrices=(16,),
    checked_points=7,
    objects=2,
    field_points=24,
    overrides=("0.img_size=4", "0.batch_size=4", "hidden_dim=8", "num_layers=2",
               "discriminator_width=8"),
    larger=("0.img_size=8",),
    picture=8,
    picture_steps=3,
    picture_chunk=64,
    repeats=2,
)  # fmt: skip


def test_every_section_runs(capsys, monkeypatch):
    loose = {torch.bfloat16: (0.1, 1.0)}  # the reference under autocast
    monkeypatch.setattr(gpu_checks, "TOLERANCE", loose)
    monkeypatch.setattr(EmbeddingPiGAN128, "embedding_shape", (32, 5, 0.1))
    bench = gpu.measure(torch.device("cpu"), TINY)
    capsys.readouterr()
    assert bench.failures == []
    assert bench.results["training step, ratio"] > 0
    assert bench.results["picture, dB against float32"] > 20
    assert bench.results["picture, skipping, images/s"] > 0
    assert bench.results["waits for the device in a step"] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton interprets no kernel")
def test_a_wrong_kernel_of_rays_is_a_failure(capsys, monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed")
    bench = Bench(torch.device("cpu"), TINY)
    gpu_checks.check_rays(bench)
    assert bench.results["rays"]["gradient"] < 1e-5
    right = fast_rays.importance_depths
    monkeypatch.setattr(
        fast_rays, "importance_depths", lambda *args, **more: right(*args, **more) + 0.01
    )
    with pytest.raises(RuntimeError, match="errors of the rays' kernels are too large"):
        gpu_checks.check_rays(bench)


def test_a_failure_is_counted_and_the_rest_goes_on(capsys):
    def fail(bench):
        raise RuntimeError("broken kernel")

    bench = Bench(torch.device("cpu"), TINY)
    bench.section("Something", fail)
    assert bench.failures == ["Something"]
    assert "FAILED: Something" in capsys.readouterr().out


def test_memory_that_cannot_be_freed_after_an_error_on_the_device_does_not_end_the_run(
    capsys, monkeypatch
):
    def fail(*_):
        raise RuntimeError("device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "empty_cache", fail)
    bench = Bench(torch.device("cuda"), TINY)
    bench.section("Something", fail)
    bench.section("The next", lambda _: None)
    assert bench.failures == ["Something", "The next"]
    assert capsys.readouterr().out.count("FAILED") == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("how", [["benchmarks/gpu.py"], ["-m", "benchmarks.gpu"]])
def test_without_a_device_one_line_says_so(how, tmp_path):
    done = subprocess.run(
        [sys.executable, *how, "--output_dir", tmp_path / "results"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("no CUDA device: nothing was measured")
    assert not (tmp_path / "results").exists()
