"""What all tests share: one thread each, repeatable arithmetic, and no GPU tests without a GPU."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # for the commands that tests start, and read when torch loads

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _repeatable(request):
    """Same numbers in every run; on the CPU also NaN in memory that nobody has written yet."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(request.node.get_closest_marker("gpu") is None)
