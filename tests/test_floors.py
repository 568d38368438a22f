"""Modules import only their own or lower folders; mathematics depends only on its arguments.

The checks read source text and import nothing.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMANDS = {path.stem for path in ROOT.glob("*.py")} - {"curriculums", "datasets", "own_modules"}
FLOORS = [
    {"own_modules"},
    {"siren", "discriminators", "system"},
    {"generators", "image_io", "distributed"},
    {"config", "scenes", "geometry"},
    {"curriculums", "datasets", "checkpoint_io"},
    {"rendering", "metrics"},
    {"training", "web_viewer"},
    COMMANDS,
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
OUTSIDE = {"tests", "benchmarks", "docs"}  # may import every room; no room may import them

MATHEMATICS = {
    *("siren", "generators", "discriminators", "config", "scenes", "geometry", "metrics"),
    "training",
}
# Files of these folders that read or write files, show progress or start threads.
REACH_OUTSIDE = {
    f"{folder}/{name}.py"
    for folder, names in {
        "siren/fused": ("cores", "cuda"),
        "config": ("curriculum", "schema"),
        "geometry": ("mesh_extraction", "mesh_files"),
        "metrics": ("features", "inception", "real_images", "record", "report"),
        "training": ("dry_run", "fid", "log", "loop", "options", "setup", "snapshots", "start",
                     "state", "transfer"),
    }.items()
    for name in names
}  # fmt: skip
OUTER_MODULES = {
    *("argparse", "glob", "importlib", "io", "logging", "os", "pathlib", "pickle", "random"),
    *("shutil", "signal", "socket", "subprocess", "sys", "tempfile", "threading", "tqdm"),
    *("multiprocessing", "PIL", "torch.distributed", "torch.multiprocessing"),
}
OUTER_CALLS = {
    *("print", "open", "input", "exec", "eval", "torch.load", "torch.save", "torch.manual_seed"),
    *("torch.set_num_threads", "torch.set_default_dtype", "np.load", "np.save"),
}
RANDOM = {
    *("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "multinomial", "normal_"),
    *("bernoulli", "bernoulli_", "uniform_", "random_", "exponential_"),
}
MAKES_PARAMETERS = {"siren", "discriminators"}  # initialisation is seeded once, by the caller


def imported(tree):
    """Yield every module that is imported, with the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def breaches(path, source):
    """List a module's violations of the rules; path is relative to the root."""
    tree, room = ast.parse(source), path.split("/")[0].removesuffix(".py")
    if room not in FLOOR_OF:
        return [f"{path}: {room} is on no floor"]
    found = []
    for name, line in imported(tree):
        other = name.split(".")[0]
        if other in OUTSIDE or (other != room and FLOOR_OF.get(other, -1) >= FLOOR_OF[room]):
            found.append(f"{path}:{line}: {room} must not import {name}")
        if room in MATHEMATICS and path not in REACH_OUTSIDE:
            found += [f"{path}:{line}: imports {name}" for outer in OUTER_MODULES
                      if f"{name}.".startswith(f"{outer}.")]  # fmt: skip
    if room in MATHEMATICS and path not in REACH_OUTSIDE:
        calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
        found += [f"{path}:{call.lineno}: {text}" for call in calls for text in faults(call, room)]
    return found


def faults(call, room):
    """Yield the violations of a call in a folder of mathematics."""
    name = ast.unparse(call.func)
    if name in OUTER_CALLS or name.startswith(("np.random.rand", "np.random.seed")):
        yield f"calls {name}"
    is_stream = any(keyword.arg == "generator" for keyword in call.keywords)
    if name.split(".")[-1] in RANDOM and not is_stream and room not in MAKES_PARAMETERS:
        yield f"calls {name} without generator="


def sources():
    paths = [
        *ROOT.glob("*.py"),
        *(path for room in FLOOR_OF for path in (ROOT / room).rglob("*.py")),
    ]
    return {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in sorted(paths)}


def test_modules_import_lower_floors_and_mathematics_is_pure():
    assert [line for path, source in sources().items() for line in breaches(path, source)] == []


def test_every_folder_of_modules_is_on_a_floor():
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert rooms - OUTSIDE <= set(FLOOR_OF)


def test_files_that_reach_outside_exist():
    assert set(sources()) >= REACH_OUTSIDE


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("siren/film.py", "import generators.cameras"),
        ("generators/cameras.py", "from training import losses"),
        ("geometry/level.py", "from checkpoint_io import checkpoints"),
        ("training/losses.py", "import web_viewer.page"),
        ("train.py", "from viewer import main"),
        ("metrics/samples.py", "from benchmarks import inversion"),
        ("attic/old.py", ""),
        ("training/losses.py", "print('x')"),
        ("training/losses.py", "from pathlib import Path"),
        ("training/losses.py", "from torch import distributed"),
        ("geometry/level.py", "import torch\ntorch.manual_seed(0)"),
        ("generators/cameras.py", "import torch\ntorch.randn(3)"),
        ("metrics/samples.py", "def f(x):\n    (x + 1).normal_()"),
    ],
)
def test_a_breach_is_caught(path, source):
    assert len(breaches(path, source)) == 1
