"""Saved generators: the file that is chosen, its checks, and one clear line about a bad file."""

import os

import pytest
import torch
from conftest import TINY

import curriculums
from checkpoint_io import checkpoints
from config import curriculum
from generators.trajectories import Camera, SceneObject
from system.errors import UsageError
from system.files import replaced


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


def test_another_curriculum_than_the_files_is_refused(tiny_run):
    with pytest.raises(UsageError, match="CARLA: .*was trained with Tiny"):
        checkpoints.load_generator(tiny_run / "generator.pth", curriculum=curriculums.load("CARLA"))
    same = curriculum.build("Tiny", TINY)
    assert checkpoints.load_generator(tiny_run / "ema.pth", curriculum=same).step == 6


def test_a_file_that_is_missing_is_named_with_its_neighbour(tiny_run):
    with pytest.raises(UsageError, match="no such file. Did you mean .*generator.pth"):
        checkpoints.load_generator(tiny_run / "generater.pth")


def test_wrong_shapes_are_one_line(tiny_run):
    content = checkpoints.read(tiny_run / "ema.pth", "generator")
    content["state"]["siren.final_layer.weight"] = torch.zeros(1, 3)
    checkpoints.save(tiny_run / "ema.pth", "generator", content)
    with pytest.raises(
        UsageError, match=r"ema.pth: has siren.final_layer.weight of shape \[1, 3\], not \[1, 8\]"
    ):
        checkpoints.load_generator(tiny_run / "generator.pth")


def test_a_curriculum_of_tensors_is_one_line(tiny_run):
    content = checkpoints.read(tiny_run / "ema.pth", "generator")
    content["curriculum"][0]["gen_lr"] = torch.zeros(2, 2)
    checkpoints.save(tiny_run / "ema.pth", "generator", content)
    with pytest.raises(UsageError, match="gen_lr is tensor.*it must be a number") as caught:
        checkpoints.load_generator(tiny_run / "generator.pth")
    assert str(caught.value).isprintable()


def test_networks_without_end_in_a_file_are_refused_at_once(tiny_run):
    content = checkpoints.read(tiny_run / "ema.pth", "generator")
    content["curriculum"]["num_layers"] = 10**9
    checkpoints.save(tiny_run / "ema.pth", "generator", content)
    with pytest.raises(UsageError, match="num_layers is 1000000000, it must be .* at most 1000"):
        checkpoints.load_generator(tiny_run / "generator.pth")


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


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "file.pth"
    path.write_bytes(b"before")

    def fail():
        with replaced(path) as file:
            file.write(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["file.pth"]
