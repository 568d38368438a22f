"""Signs of collapse are reported if present, never otherwise, and at a bounded rate."""

import math

import pytest
import torch

import curriculums
from training import collapse
from training.collapse import CollapseWatch, Probe

SMALL = ["hidden_dim=16", "num_layers=2", "mapping_hidden_dim=16", "latent_dim=8",
         "discriminator_width=8"]  # fmt: skip
GOOD = Probe(empty=0.7, full=0.1, deviation=0.05)


def small(name):
    curriculum = curriculums.load(name, overrides=SMALL)
    torch.manual_seed(0)
    return curriculum, curriculum.build_generator()


def probed(curriculum, generator, latents):
    return collapse.probe(
        generator,
        generator.mapping(latents),
        curriculum.evaluation_poses().center(),
        curriculum.evaluation_render(0),
    )


@pytest.mark.parametrize("name", ["CelebA", "Cats", "CARLA", "Demo"])
def test_a_probe_tells_empty_from_full_space(name):
    curriculum, generator = small(name)
    latents = torch.randn(4, 8)
    found = []
    for bias in (-1e4, 1e4):
        with torch.no_grad():
            generator.siren.final_layer.bias.fill_(bias)
        found.append(probed(curriculum, generator, latents)[:2])
    assert found == [(1, 0), (0, 1)]


def test_a_probe_counts_half_a_space_as_half():
    curriculum, generator = small("CelebA")

    def field(points, directions):
        return torch.where(points[..., :1] > 0, 1e4, -1e4).expand(*points.shape[:2], 4)

    generator.field = lambda film, points_per_chunk=None: field
    found = probed(curriculum, generator, torch.randn(4, 8))
    assert found.empty == pytest.approx(0.5, abs=0.01)
    assert found.full == pytest.approx(0.5, abs=0.01)


def test_a_probe_tells_whether_objects_differ():
    curriculum, generator = small("CelebA")
    latents = torch.randn(4, 8)
    assert probed(curriculum, generator, latents).deviation > collapse.ALIKE
    assert probed(curriculum, generator, latents[:1].expand(4, -1)).deviation < 1e-6


def told(watch, steps, probe):
    """Return (step, line) of all warnings."""
    return [(step, line) for step in steps for line in watch.probed(step, probe)]


@pytest.mark.parametrize(
    ("probe", "word"),
    [
        (GOOD._replace(empty=1.0), "empty"),
        (GOOD._replace(full=1.0), "full"),
        (GOOD._replace(deviation=1e-5), "alike"),
    ],
)
def test_a_lasting_sign_is_reported_and_not_too_often(probe, word):
    watch = CollapseWatch()
    assert told(watch, range(100, 3000, 100), GOOD) == []
    lines = told(watch, range(3000, 9001, 100), probe)
    first = 3000 + collapse.PATIENCE[word]
    assert [step for step, _ in lines] == list(range(first, 9001, collapse.REPEAT_STEPS))
    assert all(word in line and "\n" not in line for _, line in lines)
    assert told(watch, [9100], GOOD) == []
    assert told(watch, [9200], probe) == []  # its count starts again


def losses(watch, steps, **means):
    stage = curriculums.load("CelebA").at(0)
    terms = {"d_real": 0.6, "d_fake": 0.7, "d_identity": 0.5, **means}
    return [(step, line) for step in steps for line in watch.losses(step, terms, stage)]


@pytest.mark.parametrize(
    ("loss", "first", "words"),
    [(0.009, 510, "near zero (9.0e-03)"), (0.6935, 1010, "guessed for 1000"), (0.5, None, "")],
)
def test_a_relativistic_critic_that_is_too_sure_or_only_guesses_is_reported(loss, first, words):
    stage = curriculums.load("CelebA", overrides=["gan_loss=relativistic"]).at(0)
    watch, means = CollapseWatch(), {"d_pair": loss, "d_identity": 0.5}
    told = {step: watch.losses(step, means, stage) for step in range(10, 1101, 10)}
    found = [(step, line) for step, lines in told.items() for line in lines]
    assert [step for step, _ in found] == ([] if first is None else [first])
    assert all(words in line for _, line in found)


def test_a_discriminator_at_zero_and_heads_that_diverge_are_reported():
    steps = range(10, 1001, 10)
    assert losses(CollapseWatch(), steps) == []
    ((step, line),) = losses(CollapseWatch(), steps, d_real=1e-4, d_fake=1e-3)
    assert (step, "near zero (1.1e-03) for 500 steps" in line) == (510, True)
    poses = curriculums.load("CelebA").poses()
    no_answer = 15 * ((math.pi / 2) ** 2 + (0.3**2 + 0.155**2) / 2)
    assert 15 * collapse.mean_square(poses) == pytest.approx(no_answer)
    assert losses(CollapseWatch(), steps, d_identity=2 * no_answer) == []
    ((step, line),) = losses(CollapseWatch(), steps, d_identity=8 * no_answer)
    assert (step, "8.0 times worse" in line) == (510, True)
