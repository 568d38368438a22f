"""The commands where Python lacks what Windows lacks; tests/windows_site takes it away."""

import os
import subprocess
import sys

import elsewhere
import pytest
from documented import ROOT
from faults import tiny_arguments
from test_documented_commands import COMMANDS

DRIVER = """
import importlib, sys, warnings

for own in sys.argv[1].split():  # text files must not be opened in the system's encoding
    warnings.filterwarnings("error", category=EncodingWarning, module=rf"{own}(\\\\..*)?")
if __name__ == "__main__":
    from system import files, machine

    assert files.fcntl is files.msvcrt is machine.resource is None
    for name in sys.argv[2].split():
        try:
            importlib.import_module(name).main(["--help"])
        except SystemExit as end:
            assert not end.code
    import extract_shapes, render_multiview_images, train

    *words, run = sys.argv[3:]
    assert train.main([*words, "--output_dir", run, "--max_steps", "1"]) == 0
    two = ["--num_processes", "2", "--max_steps", "2", "--resume"]
    assert train.main([*words, "--output_dir", run, *two]) == 0
    render_multiview_images.main([f"{run}/generator.pth", "--seeds", "0", "--image_size", "8",
                                  "--output_dir", f"{run}/views"])
    extract_shapes.main(["assets/demo/generator.pth", "--seed", "0", "--voxel_resolution", "16",
                         "--output_dir", f"{run}/shapes", "--format", "glb,stl,mrc"])
"""


def test_commands_need_nothing_that_windows_lacks(tmp_path):
    driver, run = tmp_path / "driver.py", tmp_path / "run"
    driver.write_text(DRIVER)
    own = [path.name.removesuffix(".py") for path in ROOT.iterdir() if path.suffix in ("", ".py")]
    path = os.pathsep.join([str(ROOT / "tests" / "windows_site"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, driver, " ".join(own), " ".join(COMMANDS), *tiny_arguments(tmp_path), run],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path,
                                             "PYTHONWARNDEFAULTENCODING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "supports no locks" in done.stderr
    assert "memory_bytes" not in (run / "log.jsonl").read_text()
    assert (run / "views" / "sheet.png").stat().st_size
    assert {path.suffix for path in (run / "shapes").iterdir()} == {"", ".glb", ".stl", ".mrc", ".png"}


@pytest.mark.parametrize("name", [*elsewhere.LINUX_ONLY, *elsewhere.NOT_ON_WINDOWS])
def test_skipped_tests_are_there(name):
    file, *parts = name.partition("[")[0].split("::")
    text = (ROOT / "tests" / file).read_text("utf-8")
    assert all(f"class {part}:" in text or f"def {part}" in text for part in parts)
    assert elsewhere.reason_to_skip(name, "win32")
    assert not elsewhere.reason_to_skip(name, "linux")
