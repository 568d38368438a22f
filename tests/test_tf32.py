"""TF32: in training that asked for half precision, and nowhere else."""

import pytest
import torch

import curriculums
from config.stage import OptimizerOptions, Precision
from siren.fused import eager
from siren.siren import TALLSIREN
from siren.tf32 import float32_products
from training import losses
from training.adversarial import AdversarialGame

SETTINGS = {"products": torch.backends.cuda.matmul, "convolutions": torch.backends.cudnn}
SMALL = ["hidden_dim=8", "num_layers=2", "mapping_hidden_dim=8", "latent_dim=4",
         "discriminator_width=8", "0.img_size=16", "0.batch_size=2", "0.num_steps=3"]  # fmt: skip


def allowed():
    return {name: setting.allow_tf32 for name, setting in SETTINGS.items()}


def allow(found):
    for name, is_allowed in found.items():
        SETTINGS[name].allow_tf32 = is_allowed


@pytest.fixture(params=[False, True], ids=["forbidden before", "allowed before"])
def before(request):
    of_pytorch, found = allowed(), dict.fromkeys(SETTINGS, request.param)
    allow(found)
    yield found
    allow(of_pytorch)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_step_rounds_float32_products_only_in_half_precision(dtype, before, monkeypatch):
    exact = ("mapping network", "distances")
    seen = {name: [] for name in ("discriminator", *exact)}
    surface = ["surface_width=0.01", "eikonal_lambda=1", "smoothness_lambda=1"]
    curriculum = curriculums.load("CelebA", overrides=[*SMALL, *surface])
    game = AdversarialGame(
        curriculum.build_generator(), curriculum.build_discriminator(), OptimizerOptions(),
        Precision(autocast_dtype=dtype), seed=0,
    )  # fmt: skip
    for name, layer in (
        ("discriminator", game.discriminator.final_layer),
        ("mapping network", game.generator.siren.mapping_network.network[0]),
        ("distances", game.generator.siren.final_layer),
    ):
        layer.register_forward_hook(lambda *_, name=name: seen[name].append(allowed()))
    stage = curriculum.at(0)
    game.step(torch.zeros(2, 3, 16, 16), stage)
    assert seen["discriminator"]
    is_half = dtype is not None
    assert all(found == dict.fromkeys(SETTINGS, is_half) for found in seen["discriminator"])
    for name in exact:
        assert seen[name]
        assert all(found == dict.fromkeys(SETTINGS, False) for found in seen[name])
    assert allowed() == before
    monkeypatch.setattr(losses.Logistic, "of_generator", None)  # a step that fails
    with pytest.raises(TypeError):
        game.step(torch.zeros(2, 3, 16, 16), stage)
    assert allowed() == before


@pytest.mark.parametrize("before", [True], indirect=True)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_float32_products_of_the_field_are_exact(dtype, before, monkeypatch):
    seen, bmm = [], torch.bmm
    field = TALLSIREN(hidden_dim=8, num_layers=2, mapping_hidden_dim=8, z_dim=4)
    folded = field.joined(field.mapping_network(torch.zeros(1, 4)))

    def product(x, y):
        seen.append(allowed())
        return bmm(x, y)

    monkeypatch.setattr(torch, "bmm", product)
    points = torch.zeros(1, 6, 3)
    found = eager.evaluate(folded, points, points, dtype)
    forward = len(seen)
    found.sum().backward()  # which computes the layers again
    backward = len(seen)
    eager.density(folded, points, dtype)
    assert 0 < forward < backward < len(seen)
    assert all(each == dict.fromkeys(SETTINGS, False) for each in seen)
    assert allowed() == before


@pytest.mark.parametrize(
    "settings",
    [
        (torch.backends,),
        (torch.backends.cuda.matmul,),
        (torch.backends.cudnn.conv,),
        (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn),
    ],
)
@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_programs_may_use_the_new_names_of_the_settings(settings, precision):
    kinds = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn

    def found():
        return [kind.fp32_precision for kind in (torch.backends, *kinds)]

    of_pytorch, of_old_names = found(), allowed()
    try:
        for setting in settings:
            setting.fp32_precision = precision
        before = found()
        for in_tf32 in (True, False):
            with float32_products(in_tf32=in_tf32):
                assert found()[1:] == ["tf32" if in_tf32 else "ieee"] * 3
                assert allowed() == dict.fromkeys(SETTINGS, in_tf32)
            assert found() == before
    finally:
        torch.backends.fp32_precision = of_pytorch[0]
        allow(of_old_names)
        for kind, each in zip(kinds, of_pytorch[1:], strict=True):
            kind.fp32_precision = each
