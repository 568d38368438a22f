"""Cameras of photos are found by matching, and where they cannot be found, this is said."""

import json
import math
from dataclasses import replace

import faults
import pytest
import torch
from conftest import TINY
from faults import assert_same_state, state_of
from PIL import Image

import curriculums
import estimate_cameras
import train
from checkpoint_io import checkpoints
from config import curriculum as curricula
from generators.cameras import PoseDistribution, Poses, project, sample_poses
from generators.generators import View
from metrics import camera_search, found_cameras
from metrics.found_cameras import Found
from siren.film import Film
from system.errors import UsageError
from training import adversarial, photo_cameras, start

SIZE, REACH = 16, 0.09
OPTIONS = curriculums.load("CelebA").preview_render(0, SIZE)
BEFORE = PoseDistribution(
    kind="gaussian", yaw_mean=1.57, yaw_spread=0.6, pitch_mean=1.57, pitch_spread=0.3
)
AROUND = replace(BEFORE, kind="spherical_uniform", yaw_spread=math.pi, pitch_mean=0.74,
                 pitch_spread=0.74)  # fmt: skip


class Dots(torch.nn.Module):
    """Objects of dark dots at points in space, which a latent moves and shades.

    is_round: all dots are on the vertical axis, so that yaw changes nothing.
    """

    z_dim, points_per_chunk = 18, None

    def __init__(self, is_round=False):
        super().__init__()
        rng = torch.Generator().manual_seed(3)
        points = REACH * (2 * torch.rand(6, 3, generator=rng) - 1)
        if is_round:
            points[:, [0, 2]] = 0
        self.points = torch.nn.Parameter(points)
        self.is_round = is_round

    def mapping(self, latents):
        return Film(latents, latents)

    def average_film(self, latents):
        return Film(latents.mean(0, keepdim=True), latents.mean(0, keepdim=True))

    def render(self, film, poses, options, *, points_per_chunk=None):
        moves = film.frequencies.unflatten(1, (6, 3))
        points = self.points + 0.01 * moves * torch.tensor([1 - self.is_round, 1, 0])
        places, _ = project(points, poses, options.fov_degrees)
        line = torch.linspace(-1, 1, options.image_size)
        y, x = torch.meshgrid(line, line, indexing="ij")
        squares = (places[..., 0, None, None] - x) ** 2 + (places[..., 1, None, None] - y) ** 2
        shades = 1 + 0.2 * moves[..., 2, None, None]
        gray = 1 - (shades * torch.exp(-squares / 0.04)).sum(1)
        return View(gray[:, None].expand(-1, 3, -1, -1), gray, gray)


def photos_of(things, poses, count=1000, noise=0.05):
    """Render other objects from cameras drawn from poses, with noise."""
    rng = torch.Generator().manual_seed(11)
    drawn = sample_poses(poses, count, rng=rng)
    with torch.no_grad():
        film = things.mapping(torch.randn(count, things.z_dim, generator=rng))
        images = things.render(film, drawn, OPTIONS).images
    return images + noise * torch.randn(images.shape, generator=rng)


def searched(things, photos, before):
    rng = torch.Generator().manual_seed(0)
    return camera_search.search(things, photos, before, OPTIONS, "gaussian", rng=rng)


@pytest.mark.parametrize("before", [BEFORE, replace(BEFORE, yaw_spread=0.15, pitch_spread=0.08)])
@pytest.mark.parametrize(
    ("kind", "yaw", "pitch"),
    [("gaussian", 0.3, 0.15), ("gaussian", 0.2, 0.15), ("uniform", 0.6, 0.3)],
)
def test_the_distribution_of_photos_is_found_whatever_the_curriculum_says(before, kind, yaw, pitch):
    true = replace(BEFORE, kind=kind, yaw_mean=1.67, yaw_spread=yaw, pitch_spread=pitch)
    found = searched(Dots(), photos_of(Dots(), true), before)
    after = found_cameras.distribution(*found, before)
    assert after.kind == kind
    assert after.yaw_spread == pytest.approx(yaw, rel=0.15)
    assert after.pitch_spread == pytest.approx(pitch, rel=0.15)
    assert (after.yaw_mean, after.pitch_mean) == pytest.approx((1.67, 1.57), abs=0.05)


def test_an_angle_is_found_where_the_other_one_is():
    rng = torch.Generator().manual_seed(5)

    def guesses(pitch, yaw):  # of pitch less well from the side
        exact = [pitch * torch.cos(1.2 * yaw), yaw]
        noisy = [x + 0.05 * torch.randn(2, len(x), generator=rng).double() for x in exact]
        return [camera_search.Guesses(halves.mean(0), halves) for halves in noisy]

    known = Poses(*(2 * torch.rand(2, 4000, generator=rng).double() - 1))
    photos = torch.tensor([[0.15], [0.2]]) * torch.randn(2, 4000, generator=rng).double()
    found = camera_search.find_angles(guesses(*photos), guesses(*known), known, is_circle=False)
    # Over all yaws pitch has a slope of 0.78 instead of 0.97, and would seem 0.19 wide.
    assert [each.spread for each in found] == pytest.approx([0.15, 0.2], rel=0.05)


def test_cameras_all_around_are_found_and_their_yaw_keeps_its_zero(capsys):
    true = replace(AROUND, pitch_mean=1.2, pitch_spread=0.4, yaw_mean=0.5)
    both = searched(Dots(), photos_of(Dots(), true), AROUND)
    estimate_cameras.show(both, AROUND)
    assert "yaw: all around\n" in capsys.readouterr().out
    after = found_cameras.distribution(*both, AROUND)
    assert (after.kind, after.yaw_spread, after.yaw_mean) == (
        "spherical_uniform", pytest.approx(math.pi), AROUND.yaw_mean)  # fmt: skip
    found, expected = after.moments()[0], true.moments()[0]
    assert found == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("before", [replace(BEFORE, pitch_mean=1.0), AROUND])
def test_a_round_thing_has_no_yaw_and_keeps_the_curriculums(before, capsys):
    things = Dots(is_round=True)
    true = replace(BEFORE, pitch_mean=1.2, pitch_spread=0.2)
    found = searched(things, photos_of(things, true), before)
    assert [each.is_clear for each in found] == [True, False]
    after = found_cameras.distribution(*found, before)
    own = before.moments()[1]
    assert after.moments()[1] == pytest.approx(own)
    estimate_cameras.show(found, before)
    assert "yaw: cannot be found" in capsys.readouterr().out


def test_photos_of_something_else_are_not_matched():
    photos = torch.randn(500, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    found = searched(Dots(), photos, BEFORE)
    assert not any(each.is_clear for each in found)
    with pytest.raises(UsageError, match=r"pitch: cannot be found.*yaw: cannot be found"):
        estimate_cameras.show(found, BEFORE)


def test_the_command_prints_flags_that_train_py_takes(tiny_run, tmp_path, monkeypatch, capsys):
    (tmp_path / "photos").mkdir()
    for number in range(9):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(tmp_path / f"photos/{number}.png")
    there = Found(1.6, 0.2, 0.1, 0.9, 0.5), Found(1.5, 0.31, 0.2, 0.9, 0.5)
    seen = {}

    def search(generator, photos, poses, options, kind, *, rng, report):
        seen.update(photos=photos, size=options.image_size, poses=poses)
        return there

    monkeypatch.setattr(camera_search, "search", search)
    words = ["--dataset_path", str(tmp_path / "photos"), "--num_photos", "7", "--device", "cpu"]
    assert estimate_cameras.main([str(tiny_run), *words]) == 0
    assert (seen["photos"].shape, seen["size"]) == ((7, 3, 16, 16), 16)
    assert seen["poses"] == curricula.build("Tiny", TINY).poses()
    *_, last = capsys.readouterr().out.splitlines()
    changes = last.removeprefix("train with: ").split("--set ")[1:]
    poses = curricula.build("Tiny", TINY, [change.strip() for change in changes]).poses()
    assert poses.moments() == ((1.6, 0.2), (1.5, 0.31))
    assert poses.kind == "gaussian"


def found_by_step(monkeypatch, learn_at=2):
    """Replace the search by one that finds cameras from the sum of the parameters."""

    def search(generator, photos, poses, options, kind, *, rng, effort):
        mean = float(sum(p.double().abs().sum() for p in generator.parameters())) % 1
        assert photos.shape[-1] == options.image_size
        return Found(1 + mean, poses.pitch_spread / 2, 0.0, 0.9, 0.5), Found(
            1.0, 0.1, 0.0, 0.9, 0.1
        )

    monkeypatch.setattr(camera_search, "search", search)
    monkeypatch.setattr(photo_cameras, "LEARN_OFTEN", learn_at)


LEARN = ["--set", "learnable_dist=True", "--set", "sample_dist=gaussian", "--set", "h_stddev=0.4",
         "--set", "v_stddev=0.3"]  # fmt: skip


def test_learned_cameras_are_in_all_files_and_resumed_exactly(tiny, tmp_path, monkeypatch):
    found_by_step(monkeypatch)
    whole, parts = ([*tiny, *LEARN, "--output_dir", str(tmp_path / n)] for n in ("whole", "parts"))
    assert train.main([*whole, "--max_steps", "5", "--model_save_interval", "2"]) == 0
    assert train.main([*parts, "--max_steps", "3"]) == 0
    assert train.main([*parts, "--max_steps", "5", "--resume"]) == 0
    assert_same_state(tmp_path / "whole", tmp_path / "parts")
    own, middle = (
        state_of(tmp_path / "whole" / f)["curriculum"] for f in (".", "snapshot_00000002")
    )
    assert own["h_stddev"] == middle["h_stddev"] == 0.4  # its guesses are mostly noise
    assert (middle["v_stddev"], own["v_stddev"]) == pytest.approx((0.3 / 1.5, 0.3 / 1.5**2))
    for name in ("generator", "ema"):
        saved = checkpoints.load_generator(tmp_path / "whole" / f"{name}.pth", ema="none")
        assert saved.curriculum.at(4).poses.pitch_spread == own["v_stddev"]
        assert saved.curriculum.evaluation_poses().pitch_mean == own["v_mean"]
    log = [json.loads(x) for x in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    spreads = [x["pitch_spread_curriculum"] for x in log if "pitch_spread_curriculum" in x]
    assert spreads == [middle["v_stddev"], own["v_stddev"]]


def test_machines_compare_the_cameras_that_were_typed(tiny, tmp_path, monkeypatch):
    """Only one of them may have the state with the learned ones."""
    found_by_step(monkeypatch)
    words = [*tiny, *LEARN, "--resume", "--max_steps", "5"]
    assert train.main([*words[:-1], "3", "--output_dir", str(tmp_path / "has it")]) == 0
    compared = []

    def compare(curriculum, options):
        compared.append(curriculum.source)

    monkeypatch.setattr(start, "_require_same_command", compare)
    for name in ("has it", "has none"):
        assert train.main([*words, "--output_dir", str(tmp_path / name)]) == 0
    assert compared[0] == compared[1]
    assert state_of(tmp_path / "has it")["curriculum"]["v_stddev"] < compared[0]["v_stddev"]


def test_a_run_draws_from_what_it_learned_and_previews_show_it(tiny, tmp_path, monkeypatch):
    found_by_step(monkeypatch)
    drawn = []
    monkeypatch.setattr(
        adversarial,
        "sample_poses",
        lambda d, n, rng: drawn.append(d) or sample_poses(d, n, rng=rng),
    )
    words = [*LEARN, "--max_steps", "4", "--sample_interval", "3"]
    assert train.main([*tiny, *words, "--output_dir", str(tmp_path / "out")]) == 0
    spreads = [each.pitch_spread for each in drawn]  # one draw a step: both updates share it
    assert spreads[0] == spreads[1] == 0.3
    assert spreads[2] == spreads[3] == pytest.approx(0.3 / 1.5)


@pytest.mark.slow
def test_two_ranks_take_what_the_first_found(tiny, tmp_path):
    for name, spreads in (("unlike", [0.1, 0.7]), ("alike", [0.1, 0.1])):
        words = [*tiny, *LEARN, "--num_processes", "2", "--output_dir", tmp_path / name]
        faults.complete(words, {"cameras": spreads})
    assert_same_state(tmp_path / "unlike", tmp_path / "alike")
    assert state_of(tmp_path / "alike")["curriculum"]["h_stddev"] == 0.1


@pytest.mark.parametrize("kind", ["mean", "spherical_uniform"])
def test_what_cannot_be_learned_is_refused(kind):
    with pytest.raises(UsageError, match=f"learnable_dist needs sample_dist .* not {kind}"):
        curriculums.load("CelebA", overrides=["learnable_dist=True", f"sample_dist={kind}"])


def test_learned_spreads_change_by_a_bounded_factor():
    before = replace(BEFORE, kind="uniform")
    there = Found(1.6, 0.2, 0.0, 0.9, 0.5), Found(1.37, 6.0, 0.0, 0.9, 0.5)
    (pitch, pitch_spread), (yaw, yaw_spread) = found_cameras.step_towards(there, before).moments()
    assert (pitch, pitch_spread, yaw) == pytest.approx((1.6, 0.2, 1.57))
    assert yaw_spread == pytest.approx(1.5 * before.moments()[1][1])
    unclear = tuple(each._replace(share=0.4) for each in there)
    for own, other in zip(
        found_cameras.step_towards(unclear, before).moments(), before.moments(), strict=True
    ):
        assert own == pytest.approx(other)
    fixed = replace(before, yaw_spread=0.0)
    assert found_cameras.step_towards(there, fixed).yaw_spread == 0
