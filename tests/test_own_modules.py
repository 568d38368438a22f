"""Commands and pigan work where others have loaded modules of the same names, and keep those."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# As in a notebook: %run puts the command's folder first on the path.
NOTEBOOK = f"""
import runpy, sys, types
names = ("datasets", "datasets.load", "config", "system")
theirs = {{name: types.ModuleType(name) for name in names}}
sys.modules.update(theirs)
sys.path.insert(IN_FRONT, {str(ROOT)!r})
for _ in range(2):
    TRY
    assert all(sys.modules[name] is module for name, module in theirs.items())
"""
COMMANDS = [str(path) for path in ROOT.glob("*.py") if "build_parser" in path.read_text("utf-8")]
COMMAND = f"""
    for command in {COMMANDS}:
        sys.argv = [command, "--help"]
        try:
            runpy.run_path(command, run_name="__main__")
        except SystemExit as end:
            assert end.code == 0
"""
LIBRARY = f"""
    import pigan
    saved = pigan.load({str(ROOT / "assets/demo/generator.pth")!r})
    assert pigan.render(saved, pigan.film(saved, seed=0), image_size=4).images.shape[-1] == 4
"""


@pytest.mark.parametrize(
    ("in_front", "work"), [("0", COMMAND), ("0", LIBRARY), ("len(sys.path)", LIBRARY)]
)
def test_modules_of_others_are_set_aside_and_put_back(tmp_path, in_front, work):
    for name in ("curriculums", "datasets", "config", "geometry"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('a module of somebody else')")
    code = NOTEBOOK.replace("IN_FRONT", in_front).replace("    TRY", work)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_a_command_started_as_a_module_from_a_folder_with_such_names(tmp_path):
    (tmp_path / "curriculums.py").write_text("raise RuntimeError('a module of somebody else')")
    done = subprocess.run(
        [sys.executable, "-m", "train", "--list_curricula"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert b"CelebA128" in done.stdout


def test_ctrl_c_while_a_command_imports_ends_it_in_one_line(tmp_path):
    (tmp_path / "torch.py").write_text("""
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)
except BaseException:  # as some packages do
    pass
raise RuntimeError("still there")
""")
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--list_curricula"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_ctrl_c_interrupts_a_python_session_in_the_repository_as_usual():
    code = "import own_modules, signal; signal.raise_signal(signal.SIGINT)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert b"KeyboardInterrupt" in done.stderr


def test_ctrl_c_is_heard_again_when_the_command_works(tmp_path):
    code = f"""
import os, runpy, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import __main__, pathlib
__main__.__file__ = {str(ROOT / "train.py")!r}
import own_modules
assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
from system import flags

def work(_):
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    os.kill(os.getpid(), signal.SIGINT)

sys.exit(flags.run(work))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
