"""The GPU tests are found on a machine with PyTorch's own packages and pytest alone."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
BARE = """
import sys, warnings

class Bare:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"av", "viser", "mrcfile", "trimesh", "torch_fidelity",
                                      "pytorch_fid", "xdist", "selenium", "hypothesis"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if name == "train":
            warnings.warn("newer packages warn", DeprecationWarning)

sys.meta_path.insert(0, Bare())
"""


def test_the_gpu_tests_are_found_without_the_other_packages_and_despite_warnings(tmp_path):
    (tmp_path / "bare.py").write_text(BARE)
    (words,) = re.findall(r"\$\(PYTEST\) (-m gpu.*)", (ROOT / "Makefile").read_text())
    bare = {"PYTHONPATH": str(tmp_path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "bare", "-p", "no:cacheprovider",
         *shlex.split(words)],
        cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, **bare, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "newer packages warn" in done.stdout
    (last,) = re.findall(r"= (\d+) skipped, .*", done.stdout.splitlines()[-1])
    assert int(last) > 30  # steps, pictures, ranks and kernels
    assert "passed" not in done.stdout
    assert "error" not in done.stdout
