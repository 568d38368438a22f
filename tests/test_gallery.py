"""Pictures of the documents are up to date, complete, and small."""

import hashlib
import json
import re

import documented
import numpy as np
import pytest
from documented import ROOT
from PIL import Image

from checkpoint_io import checkpoints
from docs import gallery
from system.outputs import OUTPUTS_FILE

MANIFEST = json.loads((ROOT / gallery.MANIFEST).read_text("utf-8"))


@pytest.fixture
def root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", gallery.PICTURES)
def test_a_picture_is_what_its_command_made_of_the_generator(name, root):
    content = (gallery.ASSETS / name).read_bytes()
    assert MANIFEST[name] == {
        "command": gallery.PICTURES[name].command,
        "made_from": gallery.hash_of_demo(),
        "sha256": hashlib.sha256(content).hexdigest(),
    }, "older than what made it: make gallery"


def test_the_text_beside_the_generator_is_up_to_date(root):
    assert (gallery.DEMO / "README.md").read_text("utf-8") == gallery.about_demo()


def test_nothing_else_lies_in_assets_and_all_of_it_is_small(root):
    files = {path: path.stat().st_size for path in gallery.ASSETS.rglob("*") if path.is_file()}
    ours = {gallery.ASSETS / name for name in (*gallery.PICTURES, *gallery.BY_HAND)}
    ours |= {gallery.DEMO / name for name in (*gallery.TAKEN, "README.md")} | {gallery.MANIFEST}
    # git ignores what building them leaves
    files = {path: size for path, size in files.items() if path.name != OUTPUTS_FILE}
    assert set(files) == ours
    assert max(files.values()) < 700_000
    assert sum(files.values()) < 3_000_000
    assert sum(size for path, size in files.items() if gallery.DEMO in path.parents) < 2_000_000


def test_every_picture_is_shown_and_every_link_leads_somewhere():
    shown = set()
    for document in (*documented.DOCUMENTS, "docs/method.md", "CHANGELOG.md"):
        text = documented.text_of(document)
        targets = re.findall(r'\]\(([^)\s]+)\)|src="([^"]+)"', text)
        for target in ("".join(pair) for pair in targets):
            if not target.startswith("https://"):
                file, _, anchor = target.partition("#")
                path = (ROOT / document).parent / file if file else ROOT / document
                path = path.resolve()
                assert path.is_file(), (document, target)
                assert not anchor or anchor in anchors(path), (document, target)
                shown.add(path)
    pictures = [name for name in gallery.PICTURES if not name.endswith(".json")]
    assert {(ROOT / gallery.ASSETS / name).resolve() for name in pictures} <= shown


def anchors(path):
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_shipped_generator_is_the_demo(root):
    saved = checkpoints.load_generator(gallery.DEMO / "generator.pth")
    assert (saved.curriculum.name, saved.average) == ("Demo64", "ema")
    assert saved.step == saved.curriculum.end


@pytest.mark.slow
def test_a_picture_made_again_is_the_same(root, tmp_path):
    for name, content in gallery.render(["multiview.png"]):
        (tmp_path / name).write_bytes(content)
        with Image.open(tmp_path / name) as new, Image.open(gallery.ASSETS / name) as old:
            difference = np.abs(np.asarray(new, dtype=float) - np.asarray(old, dtype=float))
    assert difference.mean() < 0.5  # other processors round differently
