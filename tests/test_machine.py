"""The number of threads of a training, and processors without bfloat16 instructions."""

import os
import subprocess
import sys

import pytest
import torch
from documented import ROOT

import curriculums
from system import machine


@pytest.fixture
def threads(monkeypatch):
    """Record the requested numbers of threads instead of setting them."""
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    return asked


def test_narrow_networks_take_one_thread_unless_told_otherwise(threads, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert machine.use_one_thread_for(curriculums.load("Demo").field_width())
    assert not machine.use_one_thread_for(curriculums.load("CelebA").field_width())
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert not machine.use_one_thread_for(64)
    assert threads == [1]


def test_the_width_of_a_field_is_the_curriculums_or_its_classs():
    assert curriculums.load("Demo").field_width() == 64
    assert curriculums.load("CelebA").field_width() == 256
    small = curriculums.load("CelebA", overrides=["model=EmbeddingPiGAN128"])
    assert small.field_width() == 128


OLD = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}  # of PyTorch's two libraries
ASK = """
import torch
from generators.generators import ImplicitGenerator3d
from rendering import viewing
from siren.siren import SPATIALSIRENBASELINE
generator = ImplicitGenerator3d(SPATIALSIRENBASELINE(z_dim=2, hidden_dim=8, num_layers=1))
viewing.set_precision(generator, "fast")
print(generator.field_dtype, generator.skips_empty_space)
"""


@pytest.mark.skipif(
    not torch.cpu._is_avx2_supported(), reason="simulates an old x86 processor on a newer one"
)
def test_fast_keeps_float32_where_bfloat16_is_slow():
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        cwd=ROOT, env={**os.environ, **OLD}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "None True\n"
