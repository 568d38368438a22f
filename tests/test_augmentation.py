"""Augmentation for few pictures: closed forms, cameras, adaptation, resuming, ranks."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from faults import assert_same_state, state_of
from PIL import Image
from test_adversarial import real_images, tiny_game
from test_going_on import photos
from test_train import run

import curriculums
from benchmarks import neighbours
from checkpoint_io.network_state import StateError
from training import augmentation, state
from training.adversarial import AdversarialGame
from training.augmentation import (
    FEW,
    HIGHEST,
    NUM_DRAWS,
    Augmentation,
    augmentation_of,
    augmented,
    hold_out,
)

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
    brightness, contrast, saturation = 0.25 * 0.5, 1 - 0.25 * 0.5, 1 + 0.4
    gray = images.mean(1, keepdim=True)
    expected = contrast * (gray + saturation * (images - gray)) + brightness
    torch.testing.assert_close(changed, expected)


def test_the_mean_of_changed_colors_is_the_image():
    images, count = images_of(size=2), 40_000
    draws = torch.rand(count, NUM_DRAWS)
    draws[:, [SHIFT, CUT]] = 1
    changed = augmented(images.expand(count, -1, -1, -1), draws, torch.tensor(0.7))
    assert changed.std(0).min() > 0.1
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


def test_a_square_of_a_third_of_the_side_becomes_gray_also_at_the_border():
    images = images_of()
    inside = augmented(images, draws_of(CUT, d8=0.5, d9=0.5), HALF)
    assert (inside[:, :, 5:11, 5:11] == 0).all()
    inside[:, :, 5:11, 5:11] = images[:, :, 5:11, 5:11]
    assert torch.equal(inside, images)
    corner = augmented(images, draws_of(CUT), HALF)
    assert (corner == 0).sum() == 3 * 3 * 3


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
    [(-0.6, 0.4, 0.416), (-0.4, 0.4, 0.384), (0.2, 0.0, 0.0), (-3.0, HIGHEST, HIGHEST),
     (math.nan, 0.4, 0.384)],
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
    game, curriculum = augmented_game(1.0, *loss, "0.batch_split=2", "shares_fakes=false")
    monkeypatch.setattr(augmentation, "augmented", lambda images, *_: 0 * images)
    seen = []
    for level in game.discriminator.fromRGB:
        level.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    terms = game.step(real_images(), curriculum.at(1), real_images())  # without penalties
    assert "d_r1" not in terms
    assert len(seen) >= 4
    assert all((images == 0).all() for images in seen)
    seen.clear()
    on_gray = game.discriminator(torch.zeros(1, 3, 8, 8), 0.0).logits
    terms = game.step(real_images(), curriculum.at(0))
    name, expected = ("d_pair", math.log(2)) if loss else ("d_real", math.log1p(math.exp(-on_gray)))
    assert terms[name].item() == pytest.approx(expected, rel=1e-5)
    assert terms["d_r1"] > 0


@pytest.mark.parametrize(("is_overfit", "change"), [(True, 0.016), (False, -0.016)])
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


@pytest.mark.parametrize("loss", LOSSES)
def test_cameras_and_latents_are_drawn_as_without_augmentation(loss):
    drawn, loss = [], [*loss, "shares_fakes=false"]
    for probability in (None, 0.7):
        game, curriculum = tiny_game(*loss) if probability is None else augmented_game(0.7, *loss)
        scenes, generate = [], game.generate
        game.generate = lambda *args, _do=generate, _to=scenes, **more: (
            _to.append(args[0]),
            _do(*args, **more),
        )[1]
        game.step(real_images(), curriculum.at(0))
        drawn.append([tensor for one in scenes for tensor in (one.latents, *one.poses)])
    assert len(drawn[0]) == 6
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))


def test_all_processes_follow_their_mean_and_a_lost_one_changes_nothing():
    game, curriculum = augmented_game(0.4)
    sizes = []

    def synchronize(tensors):
        sizes.append(len(tensors))
        if len(tensors) == 1:  # the mean logits of all processes: of reals, fakes, held out
            tensors[0].copy_(torch.tensor([0.5, -1.5, -0.6]))
        if len(sizes) == 6:
            raise ConnectionError

    game.synchronize = synchronize
    game.step(real_images(), curriculum.at(0), real_images())
    assert sizes[0] == 1
    assert len(sizes) == 3
    assert game.augmentation.probability.item() == pytest.approx(0.416)
    with pytest.raises(ConnectionError):
        game.step(real_images(), curriculum.at(8), real_images())
    assert game.augmentation.probability.item() == pytest.approx(0.416)


@pytest.mark.parametrize(
    ("augment", "num_images", "is_built_in", "kind", "line"),
    [
        ("auto", 200, False, (0.0, True), "on, because 200 pictures are fewer than 5000; 20 are"),
        ("auto", 9, False, (HIGHEST, False), "too few to hold any out"),
        ("auto", FEW, False, None, ""),
        ("auto", 200, True, None, ""),
        (0.0, 200, False, None, "off, though 200 pictures are fewer than 5000; --set augment=auto"),
        (0.0, FEW, False, None, ""),
        (0.0, 200, True, None, ""),
        (0.25, FEW, True, (0.25, False), "augmentation: probability 0.25"),
    ],
)
def test_few_pictures_of_a_person_are_augmented_where_the_curriculum_allows(
    augment, num_images, is_built_in, kind, line
):
    settings = replace(curriculums.load("Demo").settings, augment=augment)
    cpu = torch.device("cpu")
    found, text = augmentation_of(settings, num_images, is_built_in=is_built_in, device=cpu)
    assert line in text
    assert bool(line) == bool(text)
    assert kind == (found and (pytest.approx(found.probability.item()), found.is_adaptive))


@pytest.mark.parametrize("name", curriculums.PRESETS)
def test_published_curricula_stay_as_published(name):
    assert curriculums.load(name).settings.augment == 0


def test_a_run_on_photos_resumes_exactly_and_never_learns_what_it_holds_out(
    tiny, tmp_path, capsys, monkeypatch
):
    learned, held_out, step = set(), set(), AdversarialGame.step

    def watched(game, real, stage, unseen=None):
        if stage.render.image_size == 4:
            learned.update(image.numpy().tobytes() for image in real)
            held_out.update(image.numpy().tobytes() for image in (() if unseen is None else unseen))
        return step(game, real, stage, unseen)

    monkeypatch.setattr(AdversarialGame, "step", watched)
    words = ["--dataset_path", photos(tmp_path / "photos", 20), "--set", "flip=false",
             "--set", "augment=auto"]  # fmt: skip
    monkeypatch.setattr(augmentation, "INTERVAL", 1)
    monkeypatch.setattr(augmentation, "STEPS_TO_ONE", -500)  # rises where it would fall
    run(tiny, tmp_path / "whole", "--max_steps", "4", *words)
    assert "augmentation: on, because 20 pictures" in capsys.readouterr().err
    assert (len(learned), len(held_out)) == (9, 2)
    assert not learned & held_out
    run(tiny, tmp_path / "parts", "--max_steps", "2", *words)
    between = state_of(tmp_path / "parts")["augment_probability"]
    run(tiny, tmp_path / "parts", "--max_steps", "4", "--resume", *words)
    assert_same_state(tmp_path / "whole", tmp_path / "parts")
    assert between > 0  # the second part did not begin with none


@pytest.mark.parametrize("value", [True, "0.5", 2.0, math.nan, None])
def test_a_damaged_probability_is_refused_and_an_older_state_has_none(value):
    game, curriculum = augmented_game(0.25)
    content = state.content_of(game, curriculum, state.Progress())
    assert content["augment_probability"] == 0.25
    game.augmentation.probability.zero_()
    state.load_state(content, game)
    assert game.augmentation.probability == 0.25
    with pytest.raises(StateError):
        state._checked_and_loaded({**content, "augment_probability": value}, game)
    del content["augment_probability"]
    state.load_state(content, game)
    assert game.augmentation.probability == 0


def test_neighbours_of_a_generator_that_copies_are_its_copies(tiny, tmp_path, capsys, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    (tmp_path / "p").mkdir()
    for index, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / "p" / f"{index}.png")
    run(tiny, tmp_path / "out", "--max_steps", "4", "--dataset_path", str(tmp_path / "p"),
        "--set", "resize=antialias")  # pictures of this size stay as they are  # fmt: skip

    def copied(generator, index, options):
        return torch.from_numpy(pixels[index]).permute(2, 0, 1) / 127.5 - 1

    monkeypatch.setattr(neighbours, "sample_image", copied)
    neighbours.main([str(tmp_path / "out"), "--num_images", "5"])
    found = re.findall(r"pictures (.+): (.+) from", capsys.readouterr().out)
    (_, copies), (_, others) = found
    assert float(copies) == 0
    assert float(others) > 50
    with Image.open(tmp_path / "out" / "neighbours.png") as sheet:
        assert sheet.size == (5 * 8, 3 * 8)
    some = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    expected = torch.tensor([[0.0, 12.5**0.5], [12.5**0.5, 0.0]])
    torch.testing.assert_close(neighbours.distances(some, some), expected)
