"""Saved generators: the file that is chosen, its checks, and one clear line about a bad file."""

from dataclasses import replace

import pytest
import torch
from conftest import TINY

import curriculums
from checkpoint_io import checkpoints
from config import curriculum
from generators.trajectories import Camera, SceneObject
from rendering import fitting
from system.errors import UsageError


def parameters_of(path):
    return checkpoints.read(path, "generator")["state"]


def assert_holds(saved, path):
    for name, value in saved.generator.state_dict().items():
        assert torch.equal(value, parameters_of(path)[name]), name


@pytest.mark.parametrize(
    ("asked", "ema", "taken", "average"),
    [
        ("generator.pth", "ema", "ema.pth", "ema"),
        ("generator.pth", "ema2", "ema2.pth", "ema2"),
        ("generator.pth", "none", "generator.pth", "none"),
        ("ema.pth", "ema2", "ema.pth", "ema"),
        ("ema2.pth", "ema", "ema2.pth", "ema2"),
    ],
)
def test_the_averaged_file_beside_a_generator_is_taken(tiny_run, asked, ema, taken, average):
    saved = checkpoints.load_generator(tiny_run / asked, ema=ema)
    assert_holds(saved, tiny_run / taken)
    assert (saved.path, saved.average, saved.step) == (tiny_run / taken, average, 6)
    assert saved.curriculum.name == "Tiny"
    assert not saved.generator.training
    assert not any(parameter.requires_grad for parameter in saved.generator.parameters())


def test_a_prefix_of_the_name_finds_its_own_average(tiny_run):
    for name in ("generator", "ema"):
        (tiny_run / f"{name}.pth").rename(tiny_run / f"05--12:30--{name}.pth")
    saved = checkpoints.load_generator(tiny_run / "05--12:30--generator.pth")
    assert saved.path == tiny_run / "05--12:30--ema.pth"


def test_without_an_average_the_generator_is_raw_and_says_so(tiny_run):
    (tiny_run / "ema.pth").unlink()
    saved = checkpoints.load_generator(tiny_run / "generator.pth")
    assert saved.average == "none"
    assert_holds(saved, tiny_run / "generator.pth")


def test_a_generator_saved_where_a_stage_begins_is_rendered_as_it_was_trained(tiny_run):
    content = checkpoints.read(tiny_run / "ema.pth", "generator")
    later = {**TINY[0], "num_steps": 5, "img_size": 16}
    content["curriculum"] = {**content["curriculum"], content["step"]: later, 9: {}}
    torch.save(content, tiny_run / "ema.pth")
    saved = checkpoints.load_generator(tiny_run / "ema.pth")
    options = fitting.render_options(saved, size=None, fov_degrees=None, is_locked=False)
    assert (saved.step, options.num_steps) == (6, TINY[0]["num_steps"])
    assert replace(saved, step=7).last_step == 6
    assert replace(saved, step=0).last_step == 0


def test_another_curriculum_than_the_files_is_refused(tiny_run):
    with pytest.raises(UsageError, match="CARLA: .*was trained with Tiny"):
        checkpoints.load_generator(tiny_run / "generator.pth", curriculum=curriculums.load("CARLA"))
    same = curriculum.build("Tiny", TINY)
    assert checkpoints.load_generator(tiny_run / "ema.pth", curriculum=same).step == 6


def test_a_file_that_is_missing_is_named_with_its_neighbour(tiny_run):
    with pytest.raises(UsageError, match="no such file. Did you mean .*generator.pth"):
        checkpoints.load_generator(tiny_run / "generater.pth")


@pytest.mark.parametrize(
    ("place", "key", "value", "complaint"),
    [
        ("state", "siren.final_layer.weight", torch.zeros(1, 3),
         r"ema.pth: has siren.final_layer.weight of shape \[1, 3\], not \[1, 8\]"),
        ("curriculum", 0, {**TINY[0], "gen_lr": torch.zeros(2, 2)},
         "gen_lr is tensor.*it must be a number"),
        ("curriculum", "num_layers", 10**9,
         "num_layers is 1000000000, it must be .* at most 1000"),
    ],
)  # fmt: skip
def test_wrong_content_is_refused_in_one_line(tiny_run, place, key, value, complaint):
    content = checkpoints.read(tiny_run / "ema.pth", "generator")
    content[place][key] = value
    checkpoints.save(tiny_run / "ema.pth", "generator", content)
    with pytest.raises(UsageError, match=complaint) as caught:
        checkpoints.load_generator(tiny_run / "generator.pth")
    assert str(caught.value).isprintable()


def test_a_fit_comes_back_and_only_with_its_generator(tiny_run, tmp_path):
    saved = checkpoints.load_generator(tiny_run / "generator.pth")
    film = saved.generator.mapping(torch.randn(1, 6))
    fit = SceneObject("cat", film, Camera(1.25, 1.5, 13.5))
    checkpoints.save_fit(tmp_path / "fit.pth", fit, saved)
    again = checkpoints.load_fit(tmp_path / "fit.pth", saved)
    assert torch.equal(again.film.frequencies, film.frequencies)
    assert torch.equal(again.film.phase_shifts, film.phase_shifts)
    assert again.camera[:3] == (1.25, 1.5, 13.5)
    other = checkpoints.load_generator(tiny_run / "generator.pth", ema="ema2")
    with pytest.raises(UsageError, match="was fitted with another generator"):
        checkpoints.load_fit(tmp_path / "fit.pth", other)
