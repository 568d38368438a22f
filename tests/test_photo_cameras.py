"""A critic's guesses tell how wide photos are seen, and training is not changed by asking."""

import json
import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from faults import assert_same_state

import curriculums
import train
from discriminators.discriminators import Verdict
from generators.cameras import PoseDistribution, PoseKind, Poses, sample_poses
from metrics import pose_response
from metrics.pose_response import fit_response, true_moments
from training import collapse, photo_cameras
from training.adversarial import Fakes, Scenes
from training.collapse import CollapseWatch
from training.photo_cameras import Seen, differences

KINDS = get_args(PoseKind)


def distribution(kind, **changes):
    own = PoseDistribution(
        kind=kind, yaw_mean=1.5, yaw_spread=0.3, pitch_mean=1.4, pitch_spread=0.2
    )
    return replace(own, **changes)


@pytest.mark.parametrize("kind", KINDS)
def test_moments_are_those_of_drawn_poses(kind):
    own, rng = distribution(kind), torch.Generator().manual_seed(0)
    drawn = [sample_poses(own, 50, rng=rng) for _ in range(4000)]  # "hybrid" draws once for each
    for axis, (mean, spread) in zip(Poses._fields, own.moments(), strict=True):
        angles = torch.cat([getattr(poses, axis) for poses in drawn])
        assert mean == pytest.approx(float(angles.mean()), abs=0.01)
        assert spread == pytest.approx(float(angles.std()), rel=0.01, abs=1e-6)


@pytest.mark.parametrize("spread", [0.1, 0.3, 0.6])
def test_blur_and_shrinkage_are_taken_out(spread):
    rng = torch.Generator().manual_seed(0)

    def guessed(angles):
        return 0.5 * angles + 0.1 + 0.05 * torch.randn(len(angles), generator=rng)

    angles = 1.5 + 0.3 * torch.randn(4000, generator=rng)
    found = fit_response(guessed(angles), angles)
    assert found[:3] == pytest.approx((0.5, 0.1, 0.0025), rel=0.05)
    assert found.share == pytest.approx(0.15**2 / (0.15**2 + 0.05**2), rel=0.02)
    others = guessed(1.7 + spread * torch.randn(4000, generator=rng))
    assert true_moments(others, found) == pytest.approx((1.7, spread), rel=0.05)


def test_guesses_that_say_nothing_are_not_clear_and_ones_below_their_noise_have_no_spread():
    rng = torch.Generator().manual_seed(0)
    angles, noise = torch.randn(2, 1000, generator=rng)
    assert not fit_response(noise, angles).is_clear
    assert not fit_response(angles, torch.ones(1000)).is_clear
    assert not fit_response(torch.full((1000,), torch.nan), angles).is_clear
    assert true_moments(torch.full((9,), 0.5), fit_response(angles + noise / 9, angles))[1] == 0


class PoseReader:
    """A game whose images hold pitch and yaw in their first pixels, and whose critic reads them."""

    seed, device = 0, torch.device("cpu")

    def draw_scenes(self, count, stage, *, rng):
        return Scenes(torch.zeros(count, 1), sample_poses(stage.poses, count, rng=rng))

    def generate(self, scenes, stage, *, rng):
        assert rng.initial_seed() != 7
        return Fakes(images_of(scenes.poses), torch.zeros(()), scenes)

    def judge(self, images, stage):
        poses = images[:, 0, 0, :2]
        return Verdict(images[:, 0, 0, 0], poses, 0.8 * poses + 0.05)


def images_of(poses):
    images = torch.zeros(len(poses.yaw), 3, 2, 2)
    images[:, 0, 0] = torch.stack(poses, dim=-1)
    return images


def compared(kind, changes, game=PoseReader, **settings):
    """Return a comparison where the photos have the curriculum's cameras with changes."""
    stage = curriculums.load("CelebA").at(0)
    stage = replace(stage, poses=distribution(kind), **{"pos_lambda": 15.0, **settings})
    rng = torch.Generator().manual_seed(7)
    photos = images_of(sample_poses(distribution(kind, **changes), 1000, rng=rng))
    return stage, photo_cameras.compare(game(), stage, photos, rng=rng)


CHANGES = [
    ("gaussian", {}, None),
    ("gaussian", {"yaw_spread": 0.18}, "0.18 wide in yaw, the curriculum says 0.3 (h_stddev)"),
    ("gaussian", {"yaw_spread": 0.35}, None),
    ("uniform", {"yaw_spread": 0.18}, "0.18 wide in yaw, the curriculum says 0.3 (h_stddev)"),
    ("uniform", {"pitch_spread": 0.4}, "0.4 wide in pitch, the curriculum says 0.2 (v_stddev)"),
    ("gaussian", {"pitch_mean": 1.2}, "from 0.2 higher than the curriculum's middle (v_mean 1.4)"),
    ("gaussian", {"yaw_mean": 1.7}, "from 0.2 further to the left than the curriculum's middle"),
]


@pytest.mark.parametrize(("kind", "changes", "expected"), CHANGES)
def test_photos_with_other_cameras_are_told(kind, changes, expected):
    own, theirs = distribution(kind), distribution(kind, **changes).moments()
    seen = [Seen(*there, *here) for there, here in zip(theirs, own.moments(), strict=True)]
    found = [differences(*pair, own) for pair in zip(("pitch", "yaw"), seen, strict=True)]
    told = [text for of_axis in found for text in of_axis.values() if text is not None]
    assert len(told) == (expected is not None)
    assert not told or told[0].startswith(f"your photos look {expected}")
    _, found = compared(kind, changes)
    for axis, exact in zip(("pitch", "yaw"), seen, strict=True):
        assert found[axis] == pytest.approx(exact, rel=0.12)


def test_nothing_is_said_where_nothing_is_known():
    class Blind(PoseReader):
        def judge(self, images, stage):
            return super().judge(images, stage)._replace(pose=None)

    class Lost(PoseReader):
        def judge(self, images, stage):
            verdict = super().judge(images, stage)
            return verdict._replace(pose=verdict.pose.flip(0))

    assert compared("gaussian", {}, Blind)[1] == {}
    assert compared("gaussian", {}, Lost)[1] == {}
    assert compared("gaussian", {}, pos_lambda=0.0)[1] == {}
    assert compared("mean", {})[1] == {}


def test_a_lasting_difference_is_warned_of_and_not_too_often():
    watch, lines = CollapseWatch(), []
    for step in range(0, 3000, 100):
        lines += [(step, line) for line in watch.compared(step, {"yaw less": "left", "more": None})]
    assert [step for step, _ in lines] == [500, 2500]
    assert lines[0][1] == "left, for 500 steps now; cameras that fit make better shapes"


def test_guesses_that_waver_around_the_curriculum_are_no_warning():
    own, watch = distribution("gaussian"), CollapseWatch()
    mean, spread = own.moments()[0]
    for step in range(0, 3000, 500):
        sign = 1 if step % 1000 else -1
        seen = Seen(mean + sign * 0.5 * spread, (1 + sign * 0.5) * spread, mean, spread)
        told = differences("pitch", seen, own)
        assert sum(text is not None for text in told.values()) == 2
        assert watch.compared(step, told) == []


def test_a_run_logs_the_comparison_and_trains_the_same(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pose_response, "LEAST_SHARE", -math.inf)  # six steps teach a critic nothing
    monkeypatch.setitem(collapse.PATIENCE, "cameras", 0)
    monkeypatch.setattr(photo_cameras, "ALLOWED", 0.0)
    words = [*tiny, "--set", "discriminator=CCSEncoderDiscriminator", "--set", "pos_lambda=1"]
    for name, interval in (("often", "2"), ("never", "100")):
        folder = str(tmp_path / name)
        assert train.main([*words, "--output_dir", folder, "--sample_interval", interval]) == 0
    assert_same_state(tmp_path / "often", tmp_path / "never")
    log = (tmp_path / "often" / "log.jsonl").read_text()
    lines = [json.loads(text) for text in log.splitlines()]
    logged = [line for line in lines if "yaw_spread_photos" in line]
    assert [line["step"] for line in logged] == [2, 4, 6]
    assert logged[0]["yaw_spread_curriculum"] == pytest.approx(math.pi / math.sqrt(3))
    assert any("your photos look" in line.get("warning", "") for line in lines)
    assert "your photos look" in capsys.readouterr().err
