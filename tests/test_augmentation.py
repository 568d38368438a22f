"""Augmentation for few pictures: closed forms, cameras, adaptation, resuming, ranks."""

import math

import numpy as np
import pytest
import torch
from faults import assert_same_state, state_of
from test_adversarial import parameters_of, real_images, tiny_game
from test_going_on import photos
from test_train import run

import curriculums
from system.errors import UsageError
from training import augmentation, setup
from training.augmentation import FEW, HIGHEST, NUM_DRAWS, Augmentation, augmented, hold_out

NEUTRAL = [1.0] * 3 + [0.5] * 3 + [0.0] * 4  # chances, strengths, shifts, centers
COLOR, SHIFT, CUT = range(3)


def images_of(count=1, size=16, **kind):
    return torch.rand(count, 3, size, size, **kind) * 2 - 1


def draws_of(*applied, **numbers):
    """Return draws (1, NUM_DRAWS) that apply some transformations, with numbers by position."""
    draws = torch.tensor([NEUTRAL])
    for kind in applied:
        draws[0, kind] = 0
    for place, value in numbers.items():
        draws[0, int(place[1:])] = value
    return draws


HALF = torch.tensor(0.5)


def test_probability_zero_changes_no_bit():
    images = images_of(64)
    unchanged = augmented(images, torch.rand(64, NUM_DRAWS), torch.tensor(0.0))
    assert torch.equal(unchanged, images)
    every = augmented(images, torch.rand(64, NUM_DRAWS), torch.tensor(1.0))
    assert all(not torch.equal(a, b) for a, b in zip(every, images, strict=True))


def test_colors_follow_their_formula():
    images = images_of()
    changed = augmented(images, draws_of(COLOR, d3=0.75, d4=0.25, d5=0.9), HALF)
    brightness, contrast, saturation = 0.5 * 0.5, 1 - 0.5 * 0.5, 1 + 0.8
    gray = images.mean(1, keepdim=True)
    expected = contrast * (gray + saturation * (images - gray)) + brightness
    torch.testing.assert_close(changed, expected)


def test_the_mean_of_changed_colors_is_the_image():
    images, count = images_of(size=2), 40_000
    draws = torch.rand(count, NUM_DRAWS)
    draws[:, [SHIFT, CUT]] = 1
    changed = augmented(images.expand(count, -1, -1, -1), draws, torch.tensor(0.7))
    assert changed.std(0).min() > 0.2
    torch.testing.assert_close(changed.mean(0), images[0], rtol=0, atol=0.01)


@pytest.mark.parametrize(("place", "offset"), [(0.0, -2), (0.21, -1), (0.5, 0), (0.99, 2)])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_shift_keeps_the_content_and_repeats_the_border(axis, place, offset):
    images = images_of()
    changed = augmented(images, _shift(axis, place), HALF)
    wanted = torch.arange(16).sub(offset).clamp(0, 15)
    assert torch.equal(changed, images.index_select(2 + axis, wanted))


def _shift(axis, place):
    return draws_of(SHIFT, **{"d6": 0.5, "d7": 0.5, f"d{6 + axis}": place})


def test_a_square_of_half_the_side_becomes_gray_also_at_the_border():
    images = images_of()
    inside = augmented(images, draws_of(CUT, d8=0.5, d9=0.5), HALF)
    assert (inside[:, :, 4:12, 4:12] == 0).all()
    inside[:, :, 4:12, 4:12] = images[:, :, 4:12, 4:12]
    assert torch.equal(inside, images)
    corner = augmented(images, draws_of(CUT), HALF)
    assert (corner == 0).sum() == 3 * 4 * 4


@pytest.mark.parametrize("kind", [COLOR, SHIFT, CUT])
def test_each_is_applied_with_its_probability(kind):
    draws = draws_of(d3=0.9, d6=0.0, d8=0.5, d9=0.5).repeat(20_000, 1)
    draws[:, kind] = torch.rand(20_000)
    images = images_of(size=8).expand(20_000, -1, -1, -1)
    is_changed = (augmented(images, draws, torch.tensor(0.3)) != images).flatten(1).any(1)
    assert is_changed.float().mean().item() == pytest.approx(0.3, abs=0.015)


def test_gradients_are_those_of_finite_differences():
    images = images_of(4, size=8, dtype=torch.float64).requires_grad_()
    draws = torch.rand(4, NUM_DRAWS, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: augmented(x, draws, torch.tensor(0.8, dtype=torch.float64)), images
    )


def test_pictures_held_out_are_a_tenth_at_most_64_and_always_the_same():
    for count, expected in ((9, 0), (10, 1), (200, 20), (1000, 64)):
        learned, held_out = hold_out(count)
        assert len(held_out) == expected
        assert sorted([*learned, *held_out]) == list(range(count))
        assert np.array_equal(hold_out(count).held_out, held_out)


@pytest.mark.parametrize(
    ("held_out", "first", "after"),
    [(-0.6, 0.5, 0.508), (-0.4, 0.5, 0.492), (0.2, 0.0, 0.0), (-3.0, HIGHEST, HIGHEST),
     (math.nan, 0.5, 0.492)],
)  # fmt: skip
@pytest.mark.parametrize("constant", [0.0, 1.75])
def test_the_probability_rises_if_pictures_held_out_look_more_than_half_generated(
    constant, held_out, first, after
):
    """Reals have the logit 0.5 and fakes -1.5; a constant on all of them makes no difference."""
    adaptive = Augmentation(torch.tensor(first), is_adaptive=True)
    logits = (torch.tensor(logit + constant) for logit in (0.5, -1.5, held_out))
    gaps = adaptive.adapt(*logits)
    assert adaptive.probability.item() == pytest.approx(after)
    assert gaps["d_gap_fake"] == 2
    assert [adaptive.is_due(step) for step in (0, 1, 7, 8)] == [True, False, False, True]


def augmented_game(probability, *overrides, is_adaptive=True):
    game, curriculum = tiny_game(*overrides)
    game.augmentation = Augmentation(torch.tensor(probability), is_adaptive=is_adaptive)
    return game, curriculum


LOSSES = [[], ["gan_loss=relativistic", "r2_lambda=0.1"]]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_with_probability_zero_is_one_without_augmentation_bit_for_bit(loss):
    plain, curriculum = tiny_game(*loss)
    off, _ = augmented_game(0.0, *loss, is_adaptive=False)
    on, _ = augmented_game(0.5, *loss, is_adaptive=False)
    for step in range(2):
        for game in (plain, off, on):
            game.step(real_images(), curriculum.at(step))
    of_plain, of_off, of_on = (torch.cat([t.flatten() for t in g.tensors()])
                               for g in (plain, off, on))  # fmt: skip
    assert torch.equal(of_plain, of_off)
    assert not torch.equal(of_plain, of_on)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_discriminator_sees_only_augmented_pictures(loss, monkeypatch):
    """A transformation to gray hides the reals from both networks, penalties included."""
    game, curriculum = augmented_game(1.0, *loss, "0.batch_split=2")
    monkeypatch.setattr(augmentation, "augmented", lambda images, *_: 0 * images)
    seen = []
    game.discriminator.fromRGB.register_forward_pre_hook(lambda _, x: None)
    for level in game.discriminator.fromRGB:
        level.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    game.discriminator.requires_grad_(False)
    game.step(real_images(), curriculum.at(1), real_images())  # without penalties at step 1
    assert len(seen) >= 4
    assert all((images == 0).all() for images in seen)
    terms = game.step(real_images(), curriculum.at(0), real_images())
    assert "d_r1" in terms


@pytest.mark.parametrize(("is_overfit", "change"), [(True, 0.008), (False, -0.008)])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_probability_follows_what_the_discriminator_says_of_pictures_held_out(
    loss, is_overfit, change
):
    """One that overfits calls them generated, like these; another calls them real."""
    game, curriculum = augmented_game(0.2, *loss, "0.disc_lr=0.01")
    for step in range(1, 30):
        game.step(real_images(), curriculum.at(step))
    scenes = game.draw_scenes(4, curriculum.at(30), rng=torch.Generator().manual_seed(0))
    generated = game.generate(scenes, curriculum.at(30), rng=None).images.detach()
    held_out = generated if is_overfit else real_images()
    terms = game.step(real_images(), curriculum.at(30), held_out)
    assert terms["augment_probability"] == torch.tensor(0.2)
    assert terms["d_gap_fake"] > 0
    assert game.augmentation.probability.item() == pytest.approx(0.2 + change)
