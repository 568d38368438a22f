"""The examples of docs/python.md run, on a file of the published kind and on the demo's."""

import re
import shutil

import numpy as np
import published_files
import pytest
import torch
import trimesh
from documented import ROOT
from PIL import Image

import extract_shapes
import pigan
import render_multiview_images
from system.errors import UsageError

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
LOAD = 'pigan.load("celeba/generator.pth", curriculum="CelebA")'
DEMO = 'pigan.load("assets/demo/generator.pth")'


@pytest.fixture
def network(tmp_path, monkeypatch):
    """A published generator whose average lies beside it; its parameters are the averaged ones."""
    made = published_files.generator()
    with torch.no_grad():
        made.siren.final_layer.weight.mul_(1000)  # so that there is a surface
    folder = tmp_path / "celeba"
    folder.mkdir()
    average = published_files.ExponentialMovingAverage(made.parameters(), 0.999)
    published_files.save(made, folder / "generator.pth")
    published_files.save(average, folder / "ema.pth")
    with torch.no_grad():
        for parameter, averaged in zip(made.parameters(), average.shadow_params, strict=True):
            parameter.copy_(averaged)
    shutil.copytree(ROOT / "assets" / "demo", tmp_path / "assets" / "demo")
    monkeypatch.chdir(tmp_path)
    return made


def run_page(load=LOAD):
    """Run all examples in order; returns the names that they define."""
    text = "\n".join(BLOCKS)
    assert text.count(LOAD) == 1
    names = {}
    exec(text.replace(LOAD, load), names)
    return names


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize(
    ("load", "words"),
    [(LOAD, ["celeba/generator.pth", "--curriculum", "CelebA"]),
     (DEMO, ["assets/demo/generator.pth"])],
    ids=["published", "demo"],
)  # fmt: skip
def test_the_examples_give_what_the_commands_give(network, load, words):
    names = run_page(load)
    assert names["saved"].average == "ema"
    assert names["images"].shape == (1, 3, 128, 128)
    assert names["depths"].shape == names["opacities"].shape == (1, 128, 128)
    assert names["density"].shape == (1000,)
    assert names["fakes"].shape == (2, 3, 16, 16)
    assert pixels("pictures.png").shape == (32, 64, 3)
    words = [*words, "--device", "cpu"]
    common = [*words, "--seeds", "0", "--psi", "0.7"]
    render_multiview_images.main([*common, "--yaws", "0.3", "--image_size", "128"])
    np.testing.assert_array_equal(pixels("picture.png"), pixels("imgs/grid_0.png"))
    render_multiview_images.main(
        [*words, "--seeds", "0", "--psi", "0", "--yaws", "0", "--image_size", "32",
         "--output_dir", "mean"]
    )  # fmt: skip
    np.testing.assert_array_equal(pixels("mean.png"), pixels("mean/grid_0.png"))
    extract_shapes.main([*common, "--voxel_resolution", "64", "--format", "glb"])
    own, wanted = (trimesh.load(path, force="mesh") for path in ("object.glb", "shapes/0.glb"))
    assert len(own.faces) > 50
    np.testing.assert_array_equal(own.vertices, wanted.vertices)


@torch.no_grad()
def test_film_mean_and_density_are_those_of_the_published_network(network):
    names = run_page()
    torch.manual_seed(0)
    frequencies, phases = network.siren.mapping_network(torch.randn(1, published_files.Z_DIM))
    full = pigan.film(names["saved"], seed=0)
    torch.testing.assert_close(full.frequencies, frequencies)
    torch.testing.assert_close(full.phase_shifts, phases)
    torch.manual_seed(0)
    many = network.siren.mapping_network(torch.randn(10_000, published_files.Z_DIM))
    for mean, found, own in zip(
        (part.mean(0) for part in many),
        (names["mean"].frequencies, names["mean"].phase_shifts),
        (names["film"].frequencies, names["film"].phase_shifts),
        strict=True,
    ):
        torch.testing.assert_close(found[0], mean)
        whole = frequencies if found is names["mean"].frequencies else phases
        torch.testing.assert_close(own, mean + 0.7 * (whole - mean))
    points, film = names["points"][None], names["film"]
    raw = network.siren(points, film.frequencies, film.phase_shifts, torch.zeros_like(points))
    assert raw[0, :, 3].std() > 0.1
    torch.testing.assert_close(names["density"], raw[0, :, 3], atol=1e-3, rtol=1e-4)


def test_a_missing_curriculum_and_unknown_names_are_named(network):
    with pytest.raises(UsageError, match="does not say its curriculum"):
        pigan.load("celeba/generator.pth")
    with pytest.raises(UsageError, match=r"average 'ema3'; choose one of ema, ema2, none"):
        pigan.load("assets/demo/generator.pth", ema="ema3")
    saved = pigan.load("assets/demo/generator.pth")
    shape = pigan.mesh(saved, pigan.film(saved, seed=15), resolution=16, level=10)
    with pytest.raises(UsageError, match=r"mesh format.*'glbb'.*glb"):
        pigan.save_mesh("object.glbb", shape)
