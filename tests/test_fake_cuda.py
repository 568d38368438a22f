"""Training and rendering on a GPU, on tensors without memory: devices, launches, no waiting.

What a GPU computes is not looked at: these tests see where tensors are and what the host asks for.
"""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
from fake_cuda import GPU, Watch, fake_gpu, on_gpu

import curriculums
from training.adversarial import AdversarialGame
from training.setup import choose_precision

CURRICULA = {
    "fp16": ("CelebA", ["precision=fp16"]),
    "bf16": ("CelebA", ["precision=bf16"]),
    "fp32": ("CelebA", ["precision=fp32"]),
    "CARLA": ("CARLA", []),
    "Demo": ("Demo", []),
    "growing": ("CelebA128", ["model=EmbeddingPiGAN256", "unique_lr=true"]),
}
SMALL = ["0.batch_size=4", "0.batch_split=2", "0.img_size=16"]  # devices do not depend on it


def game_of(curriculum, synchronize=None):
    settings = curriculum.settings
    precision = choose_precision(settings.precision, GPU, is_scaled=not settings.disable_scaler)
    return AdversarialGame(
        on_gpu(curriculum.build_generator), on_gpu(curriculum.build_discriminator),
        curriculum.optimizer_options(), precision, seed=0, synchronize=synchronize,
    )  # fmt: skip


OFTEN = {("fp16", "H100"), ("Demo", "H100"), ("fp32", "RTX 3090"), ("fp16", "RTX 2080 Ti")}
ALL = [
    pytest.param(name, kind, marks=[] if (name, kind) in OFTEN else pytest.mark.slow)
    for name in CURRICULA
    for kind in ("H100", "A100", "RTX 3090", "RTX 2080 Ti")
]


@pytest.mark.parametrize(("name", "kind"), ALL)
def test_a_training_step_stays_on_its_gpu_and_never_waits(name, kind, monkeypatch, counted):
    preset, overrides = CURRICULA[name]
    curriculum = curriculums.load(preset, overrides=[*overrides, *SMALL])
    with fake_gpu(monkeypatch, kind) as kernels:
        game = game_of(curriculum, synchronize=lambda tensors: None)
        stage = curriculum.at(20)
        size = stage.render.image_size
        real = torch.empty(stage.batch_size, 3, size, size, device=GPU)
        for _ in range(2):  # the second one has moments, and copies to undo it
            with Watch() as watch:
                terms = game.step(real, stage)
        assert watch.mixed == []
        assert watch.waits == []
        assert {term.device for term in terms.values()} == {GPU}
        path = game.field_path()
    counted(
        f"{name} on {kind} ({path}): {sum(watch.launches.values())} operations a step, "
        f"{sum(kernel.launches for kernel in kernels.values())} of the field's kernels"
    )
