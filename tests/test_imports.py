"""The rules of the house: imports point one way, and folders are tensor mathematics only.

A room is a top-level folder, or one of the two sorts of root module: a command (it has an
`if __name__ == "__main__"`) or a boundary. The checks read source text and import nothing.
"""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

DISCRIMINATORS, SIREN = {"discriminators"}, {"siren"}
GENERATORS = {"generators"} | SIREN
TRAINING = {"training"} | GENERATORS | DISCRIMINATORS
EVALUATION = {"evaluation"} | GENERATORS
SCENES = {"scenes"} | GENERATORS
GEOMETRY = {"geometry"} | GENERATORS
BOUNDARY = {"boundary"} | TRAINING | EVALUATION | SCENES | GEOMETRY
MAY_IMPORT = {
    "command": BOUNDARY,
    "boundary": BOUNDARY,
    "training": TRAINING,
    "evaluation": EVALUATION,
    "scenes": SCENES,
    "geometry": GEOMETRY,
    "generators": GENERATORS,
    "siren": SIREN,
    "discriminators": DISCRIMINATORS,
}
OUTSIDE = {"tests", "benchmarks"}  # may import every room

# In folders. What reaches the world outside, or the random state that everybody shares:
FORBIDDEN_MODULES = {
    *("argparse", "glob", "importlib", "io", "logging", "os", "pathlib", "pickle", "random"),
    *("shutil", "signal", "socket", "subprocess", "sys", "tempfile", "threading", "tqdm"),
    *(
        "multiprocessing",
        "PIL",
        "torch.distributed",
        "torch.distributions",
        "torch.multiprocessing",
    ),
}
FORBIDDEN_CALLS = {
    *("print", "open", "input", "exec", "eval", "__import__"),
    *("torch.load", "torch.save", "torch.set_default_dtype", "torch.set_num_threads"),
    *("torch.manual_seed", "torch.seed", "torch.set_rng_state", "torch.random.manual_seed"),
    *("torch.cuda.manual_seed", "torch.cuda.manual_seed_all", "torch.get_rng_state"),
    *("numpy.load", "numpy.save", "numpy.savez", "numpy.loadtxt", "numpy.savetxt"),
}
# Threads for its own work, as PyTorch's operations have them, and none in a forked process.
ALLOWED = {
    "siren/fused/cores.py": {"imports os", "imports threading", "calls torch.set_num_threads"},
}
NUMPY_STREAMS = {"numpy.random.SeedSequence", "numpy.random.Generator", "numpy.random.PCG64"}
RANDOM_FUNCTIONS = {
    f"torch.{name}"
    for name in ("rand", "randn", "randint", "randperm", "multinomial", "normal", "bernoulli")
} | {f"torch.{name}_like" for name in ("rand", "randn", "randint")}
RANDOM_METHODS = {
    *("bernoulli", "bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_"),
    *("multinomial", "normal_", "random_", "uniform_"),
}
INITIALISING_ROOMS = {"siren", "discriminators"}


def sources():
    """{path from the root: source} of every module that is not a test or a benchmark."""
    packages = [path.parent for path in ROOT.glob("*/__init__.py")]
    paths = list(ROOT.glob("*.py"))
    for package in packages:
        if package.name not in OUTSIDE:
            paths += package.rglob("*.py")
    return {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in sorted(paths)}


def room_of(path, tree):
    """The room that a module is in."""
    if "/" in path:
        return path.split("/")[0]
    guards = (node.test for node in tree.body if isinstance(node, ast.If))
    return "command" if any("__main__" in ast.unparse(test) for test in guards) else "boundary"


def module_name(path):
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imported(tree, name):
    """Every module and name that a module imports, dotted, with the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = name.split(".")[: -node.level]
                base = ".".join([*parents, *filter(None, [base])])
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def aliases(tree, name):
    """{local name: what it stands for, dotted}."""
    table = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.split(".")[0]
                table[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                table[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return table


def dotted(node, table):
    """The full name of an expression such as `np.random.seed`; "" where it has none."""
    if isinstance(node, ast.Name):
        return table.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        base = dotted(node.value, table)
        return f"{base}.{node.attr}" if base else ""
    return ""


def starts_with(name, modules):
    return any(name == module or name.startswith(module + ".") for module in modules)


def violations(files):
    """One line for every breach of the rules in files, {path: source}."""
    trees = {path: ast.parse(source) for path, source in files.items()}
    rooms = {path: room_of(path, tree) for path, tree in trees.items()}
    owners = {path.split("/")[0].removesuffix(".py"): room for path, room in rooms.items()}
    found = []
    for path, tree in trees.items():
        room = rooms[path]
        if room not in MAY_IMPORT:
            found.append(f"{path}: {room}/ is no room of DESIGN")
            continue
        for name, line in imported(tree, module_name(path)):
            owner = owners.get(name.split(".")[0])
            if owner is not None and owner not in MAY_IMPORT[room]:
                found.append(f"{path}:{line}: {room} must not import {name} ({owner})")
        if "/" in path:
            faults = impurities(tree, room)
            allowed = ALLOWED.get(path, set())
            found += [f"{path}:{line}: {text}" for line, text in faults if text not in allowed]
    return found


def impurities(tree, room):
    """(line, text) of everything in a folder's module that is not tensor mathematics."""
    table = aliases(tree, "")
    for name, line in imported(tree, ""):
        if starts_with(name, FORBIDDEN_MODULES):
            yield line, f"imports {name}"
    exempt = initialising_calls(tree, table) if room in INITIALISING_ROOMS else set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node not in exempt:
            yield from ((node.lineno, text) for text in call_faults(node, table))


def initialising_calls(tree, table):
    """Calls that make parameters: nn.init's, those on a weight or bias, or within nn.Parameter."""
    calls = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func, table)
        if name.startswith("torch.nn.init.") or name.split(".")[-2:-1] in (["weight"], ["bias"]):
            calls.add(node)
        elif name == "torch.nn.Parameter":
            calls.update(ast.walk(node))
    return calls


def call_faults(call, table):
    """What is wrong with a call in a folder."""
    name = dotted(call.func, table)
    if name in FORBIDDEN_CALLS:
        yield f"calls {name}"
    if name.startswith("numpy.random.") and name not in NUMPY_STREAMS:
        yield f"calls {name}: numpy's shared random state, or a stream of its own"
    if name.startswith("torch.nn.init."):
        yield f"calls {name}: parameters are made in {' and '.join(sorted(INITIALISING_ROOMS))}"
    method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    is_random = name in RANDOM_FUNCTIONS or (
        method in RANDOM_METHODS and not name.startswith(("torch.", "numpy."))
    )
    if is_random and not any(keyword.arg == "generator" for keyword in call.keywords):
        yield f"calls {name or method} without generator="


def import_graph(files):
    """{module: modules of ours that it imports}, for finding cycles."""
    names = {module_name(path) for path in files}
    graph = {}
    for path, source in files.items():
        name = module_name(path)
        graph[name] = {
            target if target in names else target.rpartition(".")[0]
            for target, _ in imported(ast.parse(source), name)
        } & (names - {name})
    return graph


def test_the_house_keeps_its_rules():
    assert violations(sources()) == []


def test_no_module_imports_itself_by_way_of_others():
    graphlib.TopologicalSorter(import_graph(sources())).prepare()


def test_every_room_is_looked_at():
    looked_at = {path.split("/")[0] for path in sources()}
    assert {
        "train.py",
        "flags.py",
        "siren",
        "generators",
        "discriminators",
        "training",
    } <= looked_at


COMMAND = 'if __name__ == "__main__":\n    main()\n'
HOUSE = {
    "train.py": COMMAND,
    "flags.py": "",
    "training/losses.py": "",
    "generators/cameras.py": "",
    "siren/film.py": "",
    "siren/fused/__init__.py": "",
    "siren/fused/cpu.py": "",
    "discriminators/blocks.py": "",
    "scenes/toy_cars.py": "",
    "evaluation/depth.py": "",
    "geometry/level.py": "",
}


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("siren/film.py", "import generators.cameras"),
        ("siren/film.py", "from discriminators import blocks"),
        ("siren/fused/cpu.py", "def f():\n    from ...generators import cameras"),
        ("discriminators/blocks.py", "from siren.film import Film"),
        ("generators/cameras.py", "from training import losses"),
        ("generators/cameras.py", "from flags import UsageError"),
        ("training/losses.py", "import flags"),
        ("training/losses.py", "from scenes import toy_cars"),
        ("scenes/toy_cars.py", "import training.losses"),
        ("evaluation/depth.py", "import train"),
        ("geometry/level.py", "from training import losses"),
        ("flags.py", "import train"),
        ("viewer.py", "from train import main\n" + COMMAND),
        ("attic/old.py", ""),
    ],
)
def test_import_in_the_wrong_direction_is_caught(path, source):
    assert len(violations({**HOUSE, path: source})) == 1


@pytest.mark.parametrize(
    "source",
    [
        "print('x')",
        "open('x')",
        "import argparse",
        "from os import environ",
        "import sys\nsys.argv",
        "from pathlib import Path",
        "import torch\ntorch.manual_seed(0)",
        "from torch import manual_seed as seed\nseed(0)",
        "import numpy as np\nnp.random.seed(0)",
        "import numpy as np\nnp.random.rand(3)",
        "import numpy as np\nnp.random.default_rng()",
        "import random",
        "import torch\ntorch.randn(3)",
        "import torch\ndef f(x):\n    return torch.randn_like(x)",
        "from torch import rand\nrand(3, device='cpu')",
        "def f(weights):\n    return weights.multinomial(2)",
        "def f(x):\n    (x + 1).normal_()",
        "def f(linear):\n    linear.weight.normal_()",
        "from torch import nn\ndef f(x):\n    nn.init.normal_(x)",
        "import torch\ntorch.save({}, 'x')",
        "from torch.distributions import Normal",
        "from torch import distributed",
    ],
)
def test_folder_that_is_not_pure_is_caught(source):
    assert len(violations({**HOUSE, "training/losses.py": source})) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("train.py", "import flags, training.losses, scenes.toy_cars\n" + COMMAND),
        ("flags.py", "import os, sys\nfrom training.losses import logistic\nprint(open('x'))"),
        ("training/losses.py", "from training import ema\nfrom discriminators import blocks"),
        ("generators/cameras.py", "from siren.film import Film"),
        ("siren/fused/cpu.py", "from siren.film import Film\nfrom ..film import Film"),
        ("siren/film.py", "from torch import nn\ndef f(x):\n    nn.init.uniform_(x, -1, 1)"),
        ("siren/film.py", "def f(linear):\n    linear.weight.uniform_(-1, 1)"),
        ("siren/film.py", "import torch\ntorch.nn.Parameter(torch.randn(3) * 0.1)"),
        ("training/losses.py", "import torch\ntorch.randn(3, generator=rng)"),
        ("training/losses.py", "import numpy as np\nnp.random.SeedSequence([1])"),
        ("scenes/toy_cars.py", "def f(x, g):\n    return x.uniform_(0, 1, generator=g)"),
    ],
)
def test_what_the_rules_allow(path, source):
    assert violations({**HOUSE, path: source}) == []


def test_only_parameters_are_initialised_without_a_stream():
    source = "import torch\ndef f(x):\n    return x.normal_() + torch.randn(3)"
    assert len(violations({**HOUSE, "siren/film.py": source})) == 2


def test_circle_is_caught():
    files = {"a.py": "import b", "b.py": "from c import name", "c.py": "def f():\n    import a"}
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(import_graph(files)).prepare()
