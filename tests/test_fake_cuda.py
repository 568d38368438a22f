"""Train and render with fake GPU tensors: check devices, launches and host-device syncs.

These tests check devices and calls only, not the numbers that a GPU computes.
"""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
from fake_cuda import fake_gpu
from fake_gpu import GPU, Watch, on_gpu

import curriculums
from generators import inversion, pictures
from generators.cameras import Poses
from metrics import consistency
from metrics.surfaces import surface
from training import previews
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
SMALL = ["0.batch_size=4", "0.img_size=16"]  # devices do not depend on it


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
        f"{name} on {kind} ({path}): {watch.launches} operations a step, "
        f"{sum(kernel.launches for kernel in kernels.values())} of our kernels"
    )


def camera_poses(count):
    return Poses(torch.full((count,), 1.5), torch.full((count,), 1.4))


@pytest.mark.parametrize(
    ("preset", "kind"),
    [("Demo", "H100")]
    + [
        pytest.param(*pair, marks=pytest.mark.slow)
        for pair in (("CelebA", "H100"), ("CelebA", "RTX 2080 Ti"), ("Demo", "RTX 2080 Ti"))
    ],
)
def test_pictures_depths_normals_and_figures_stay_on_their_gpu(preset, kind, monkeypatch):
    curriculum = curriculums.load(preset)
    with fake_gpu(monkeypatch, kind), torch.no_grad(), Watch() as watch:
        generator = on_gpu(curriculum.build_generator).eval()
        generator.field_dtype = torch.float16
        options = replace(curriculum.preview_render(0, 16), scene_radius=None)
        film = generator.mapping(torch.empty(2, generator.z_dim, device=GPU))
        poses, scenes = camera_poses(2), few_previews(generator)
        view = generator.render(film, poses, options, points_per_chunk=3000)
        turned = generator.render(film, poses, options, fov_degrees=torch.tensor([12.0, 13.0]))
        seen = surface(view, poses, options)
        found = [
            *view, *turned, *seen[:2], *consistency.compare(seen, seen),
            consistency.half_transparent(view.opacities), consistency.normal_angles(seen),
            pictures.depth_pictures(pictures.surface_depths(view, options), options),
            generator.average_film(torch.empty(9, generator.z_dim)).lerp(film, 0.7).frequencies,
            *(images for _, images in previews.previews(generator, generator, scenes, options)),
        ]  # fmt: skip
        densities = generator.density(film[:1], points_per_chunk=64)(torch.empty(100, 3))
    assert {tensor.device for tensor in found if isinstance(tensor, torch.Tensor)} == {GPU}
    assert densities.device.type == "cpu"  # where the points were
    assert watch.mixed == []


def few_previews(generator):
    latents = torch.empty(previews.COUNT, generator.z_dim)
    return previews.PreviewScenes(latents, latents, camera_poses(previews.COUNT), (1.5, 1.5))


@pytest.mark.parametrize("kind", ["H100", "RTX 2080 Ti"])
def test_a_fit_to_a_photo_stays_on_its_gpu(kind, monkeypatch):
    curriculum = curriculums.load("CelebA")
    with fake_gpu(monkeypatch, kind), Watch() as watch:
        generator = on_gpu(curriculum.build_generator).eval()
        options = curriculum.preview_render(0, 16)
        film = generator.mapping(torch.empty(2, generator.z_dim, device=GPU))
        angles = Poses(*(angle.to(GPU) for angle in camera_poses(2)))
        guess = inversion.Guess(film, angles, torch.empty(2, device=GPU))
        plane = torch.empty(16, 16, device=GPU)
        photo = inversion.Photo(torch.empty(3, 16, 16, device=GPU), plane, plane)
        shown = inversion.render_guess(generator, guess, options, 16)
        assert inversion.photo_losses(*shown, photo).device == GPU
    assert watch.mixed == []
