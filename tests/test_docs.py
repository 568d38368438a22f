"""Names, tables and examples in the documents are correct."""

import ast
import re
import subprocess
from typing import get_args

import pytest
import torch
from documented import ROOT

import curriculums
import datasets
import discriminators.discriminators
import siren.siren
from benchmarks import table
from config import curriculum, schema
from training import losses

LANGUAGES = ("README.md", "README.zh-CN.md")
METHOD = (ROOT / "docs" / "method.md").read_text("utf-8")


def defined(path):
    """Return the names of a module's functions, classes and methods (as Class.method)."""
    names = set()
    for node in ast.parse((ROOT / path).read_text("utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{n.name}" for n in node.body if isinstance(n, ast.FunctionDef)}
    return names


NAMED = [r"`([\w/]+\.py): ([\w.]+)`", r"`(tests/\w+\.py)::(\w+)`"]


@pytest.mark.parametrize(
    ("path", "name"), [found for pattern in NAMED for found in re.findall(pattern, METHOD)]
)
def test_code_and_tests_named_in_the_method_exist(path, name):
    assert name in defined(path)


def test_every_section_of_the_method_names_its_code_and_its_tests():
    sections = METHOD.split("\n## ")[1:]
    assert len(sections) == 13
    assert all("- Code: `" in section and "- Tests: `" in section for section in sections)


def example(module):
    """Return the Python block of CONTRIBUTING.md whose first line names a module."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    (block,) = re.findall(rf"```python\n# {re.escape(module)}\n(.*?)```", text, re.DOTALL)
    return block


def test_every_module_of_the_root_is_installed():
    listed = re.search(r"py-modules = \[.*?\n\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL)
    names = set(re.findall(r'"(\w+)"', listed[0]))
    found = {path.stem for path in ROOT.glob("*.py")}
    assert names <= found
    if (ROOT / ".git").exists():  # a user's own scripts may lie beside
        tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, stdout=subprocess.PIPE, check=True)
        found &= {name.removesuffix(".py") for name in tracked.stdout.decode().splitlines()}
    assert found == names


def test_the_curriculum_of_the_contributing_guide(tmp_path):
    file = tmp_path / "my_curricula.py"
    file.write_text(example("my_curricula.py"))
    portraits = curriculums.load("Portraits", file=file)
    assert portraits.at(0).render.image_size == 32
    assert portraits.at(30_000).render.image_size == 64


def test_the_data_set_of_the_contributing_guide(tmp_path, monkeypatch):
    names = dict(vars(schema))
    exec(example("config/schema.py"), names)
    assert set(get_args(names["DatasetKind"])) == {*datasets.KINDS, "Boats"}
    monkeypatch.setattr(datasets, "_DEFAULTS", dict(datasets._DEFAULTS))
    exec(example("datasets.py"), dict(vars(datasets)))
    options = datasets.dataset_options("Boats", str(tmp_path))
    assert (options.crop, options.flip) == ("center", True)


def test_the_networks_of_the_contributing_guide(monkeypatch):
    fields, critics = curriculum.FIELDS, curriculum.DISCRIMINATORS
    # The tables themselves, since the schema holds them; what the examples add is taken out again.
    monkeypatch.setitem(fields, "GridField", None)
    monkeypatch.setitem(critics, "SlimDiscriminator", None)
    exec(example("siren/siren.py"), dict(vars(siren.siren)))
    exec(example("discriminators/discriminators.py"), dict(vars(discriminators.discriminators)))
    overrides = ["model=GridField", "discriminator=SlimDiscriminator"]
    changed = curriculums.load("CelebA", overrides=overrides)
    field = changed.build_generator().siren
    assert (field.hidden_dim, field.spatial_embeddings.shape[1]) == (128, 8)
    verdict = changed.build_discriminator()(torch.zeros(2, 3, 64, 64), 1.0)
    assert verdict.logits.shape == (2,)


def test_the_loss_of_the_contributing_guide(monkeypatch):
    monkeypatch.setitem(losses.LOSSES, "hinge", None)
    exec(example("training/losses.py"), dict(vars(losses)))
    hinge = losses.LOSSES["hinge"]
    on_real, on_fake = torch.tensor([-3.0, 2.0]), torch.tensor([0.5, -1.5])
    found = {key: float(term) for key, term in hinge.of_discriminator(on_real, on_fake).items()}
    assert found == {"d_real": 2.0, "d_fake": 0.75}
    assert hinge.slopes(on_real, on_fake).tolist() == [-0.5, 0, 0.5, 0]


def test_the_readme_is_the_same_in_both_languages():
    outlines = [outline((ROOT / name).read_text("utf-8")) for name in LANGUAGES]
    for key, parts in outlines[0].items():
        assert parts, key
        assert parts == outlines[1][key], key


def outline(text):
    """Return the parts of a README that must be the same in both languages."""
    blocks = re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL)
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    commands = [re.sub(r" +#.*", "", code) if kind == "sh" else code for kind, code in blocks]
    links = re.findall(r"\]\(([^)\s]+)\)", prose)
    return {
        "headings": [len(level) for level in re.findall(r"^(#+) ", prose, re.MULTILINE)],
        "code": commands,
        "links": sorted(link for link in links if link not in LANGUAGES),
        "rows": [line.count(" | ") for line in prose.splitlines() if line.startswith("|")],
        "items": len(re.findall(r"^- ", prose, re.MULTILINE)),
        "words of code": sorted(re.findall(r"`([^`]+)`", prose)),
    }


def test_the_speed_tables_are_those_of_the_results():
    document = table.DOCUMENT.read_text("utf-8")
    text = "\n\n".join(map(table.of_file, table.newest()))
    assert text in document
    assert table.written(document, text) == document, "python -m benchmarks.table --write"


@pytest.mark.parametrize("document", LANGUAGES)
def test_the_readme_has_at_most_250_lines(document):
    assert len((ROOT / document).read_text("utf-8").splitlines()) <= 250


@pytest.mark.parametrize("document", LANGUAGES)
def test_the_table_of_curricula_is_right(document):
    row = re.compile(r"^\| (`\w+`(?:, `\w+`)*) \| [^|]+ \| ([\d, ]+) \| ([\d,]+) \|", re.MULTILINE)
    found = {}
    for names, sizes, steps in row.findall((ROOT / document).read_text("utf-8")):
        for name in re.findall(r"\w+", names):
            found[name] = [int(size) for size in sizes.split(", ")], int(steps.replace(",", ""))
    wanted = {}
    for name in curriculums.PRESETS:
        preset = curriculums.load(name)
        wanted[name] = sorted({stage.img_size for _, stage in preset.stages}), preset.end
    assert found == wanted
