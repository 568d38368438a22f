"""What the compiler makes of the kernels for a Hopper GPU; no GPU is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

ROOT = Path(__file__).parent.parent
HOPPER_SHARED_MEMORY = 227 * 1024  # bytes that one program may take


def compile_fields(folder, *fields):
    """In a process of its own: in this one Triton interprets."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder), "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "compile_kernels.py", folder, *fields],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(kernel):
    name = f"{kernel['kernel']} {kernel['constants']}"
    assert kernel["all"]["HGMMA"] > 0, f"{name}: no use of Hopper's matrix units"
    assert "HMMA" not in kernel["all"], f"{name}: products on the slower matrix units"
    assert kernel["shared"] <= HOPPER_SHARED_MEMORY, name
    # Around the loops a few values may wait in local memory, inside them hardly any.
    assert kernel["stack"] <= 1024, name
    spills = kernel["loops"].get("LDL", 0) + kernel["loops"].get("STL", 0)
    assert spills <= 0.02 * sum(kernel["loops"].values()), f"{name}: {spills} spills in its loops"


@pytest.mark.slow
def test_all_kernels_compile_for_hopper(tmp_path):
    kernels = compile_fields(tmp_path, "64+0", "128+0", "128+32", "256+0", "256+32")
    assert {kernel["kernel"] for kernel in kernels} == {
        "forward_kernel", "backward_kernel", "reduction_kernel",
    }  # fmt: skip
    for kernel in kernels:
        check(kernel)
        loops = kernel["loops"]
        assert loops["LDGSTS"] > 0, "weights are not fetched ahead"
