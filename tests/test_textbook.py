"""The benchmarks' baseline gives equal results; --precision fast has its documented accuracy."""

import collections

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import curriculums
from benchmarks import view
from benchmarks.textbook import TextbookGame, twin_of
from config.stage import OptimizerOptions, Precision
from siren.fused import cpu as fused_cpu
from siren.siren import TALLSIREN
from training.adversarial import AdversarialGame

TINY = ["hidden_dim=8", "num_layers=2", "mapping_hidden_dim=8", "latent_dim=4", "0.num_steps=3",
        "discriminator_width=8", "0.img_size=8", "0.batch_size=4", "0.batch_split=2",
        "r1_interval=2", "density_noise_steps=0", "fade_steps=0", "grad_clip=1e9"]  # fmt: skip


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("loss", [[], ["gan_loss=relativistic", "r2_lambda=0.3"]])
@pytest.mark.parametrize("name", ["Demo", "CelebA"])
def test_the_textbook_step_has_the_terms_and_gradients_of_ours(name, step, loss):
    curriculum = curriculums.load(name, overrides=[*TINY, *loss])
    real = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    results = []
    for kind in (AdversarialGame, TextbookGame):
        torch.manual_seed(0)
        networks = curriculum.build_generator(), curriculum.build_discriminator()
        game = kind(*networks, OptimizerOptions(), Precision(), seed=0)
        terms = game.step(real, curriculum.at(step))
        grown = [p.grad for network in networks for p in network.parameters() if p.grad is not None]
        results.append((terms, grown))
    (terms, ours), (textbook_terms, textbook) = results
    assert set(terms) == set(textbook_terms)
    for key, value in textbook_terms.items():
        torch.testing.assert_close(terms[key], value, rtol=1e-4, atol=1e-6)
    assert len(ours) == len(textbook)
    for one, other in zip(ours, textbook, strict=True):
        assert (one - other).norm() <= 2e-3 * other.norm() + 1e-6


def test_the_textbook_field_modulates_in_half_precision_as_the_published_code():
    field = twin_of(TALLSIREN(z_dim=4, hidden_dim=8, num_layers=2, mapping_hidden_dim=8))
    film = field.mapping_network(torch.randn(1, 4))
    taken = collections.Counter()

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.sin.default:
                taken[args[0].dtype] += 1
            return func(*args, **(kwargs or {}))

    points, directions = torch.rand(1, 5, 3), torch.rand(1, 1, 3)
    with Record(), torch.autocast("cpu", dtype=torch.bfloat16):
        field(points, directions, film)
    assert taken == {torch.bfloat16: 3}
    with Record():
        field(points, directions, film)
    assert taken == {torch.bfloat16: 3, torch.float32: 3}


def test_fast_pictures_of_the_shipped_generator_agree_with_exact_ones(monkeypatch):
    left_out = view.measure_trained(size=32)["psnr_db"]
    assert left_out > 100  # its field is narrow: only empty space is left out
    monkeypatch.setattr(fused_cpu, "WIDE", 1)
    assert 45 < view.measure_trained(size=32)["psnr_db"] < left_out  # and rounded like wide ones
