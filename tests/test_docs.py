"""What the documents name must exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
METHOD = (ROOT / "docs" / "method.md").read_text("utf-8")


def defined(path):
    """Names of a module's functions, classes and methods, methods as Class.method."""
    names = set()
    for node in ast.parse((ROOT / path).read_text("utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{n.name}" for n in node.body if isinstance(n, ast.FunctionDef)}
    return names


@pytest.mark.parametrize(("path", "name"), re.findall(r"`([\w/]+\.py): ([\w.]+)`", METHOD))
def test_code_named_in_the_method_exists(path, name):
    assert name in defined(path)


@pytest.mark.parametrize(("path", "name"), re.findall(r"`(tests/\w+\.py)::(\w+)`", METHOD))
def test_tests_named_in_the_method_exist(path, name):
    assert name in defined(path)


def test_every_section_of_the_method_names_its_code_and_its_tests():
    sections = METHOD.split("\n## ")[1:]
    assert len(sections) == 10
    assert all("- Code: `" in section and "- Tests: `" in section for section in sections)
