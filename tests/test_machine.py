"""The number of threads of a training."""

import pytest
import torch

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
