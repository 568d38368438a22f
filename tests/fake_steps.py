"""Run training steps with their backward passes on fake tensors, by the implementations for CUDA.

The tensors are said to be on the CPU, because automatic differentiation needs a device that is
there.
"""

import torch
from fake_gpu import CPU, Watch, Work, on_gpu, without_kernels
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.nn.utils import clip_grad

from benchmarks.textbook import TextbookGame
from config.stage import Precision
from generators import cameras, fast_rays, generators
from generators.volumetric_rendering import rays_that_hit
from siren.fused import eager, fused_field, triton_field
from siren.siren import FilmSiren
from training import adversarial, fused_layers, losses
from training.adversarial import AdversarialGame
from training.halves import converted


def on_host(function):
    """Return function for the CPU beside a device: its operations are not recorded."""

    def quiet(*arguments, **more):
        Watch.is_on_host, before = True, Watch.is_on_host
        try:
            return function(*arguments, **more)
        finally:
            Watch.is_on_host = before

    return quiet


def moved_and_recorded(tensor, device):
    """Stands for the copy of a tensor to the device."""
    if Watch.current is not None:
        Watch.current.work.append(Work("copy", tensor.nbytes))
    return tensor


def patch_cuda_path(monkeypatch, path, dtype):
    """Make CPU tensors take the implementations for CUDA.

    path: the field's, "kernels" or "eager"; "published" for its and the rays' arithmetic of 2021.
    """
    without_kernels(monkeypatch)
    paths = {
        "kernels": lambda field, x, d, clear: triton_field.evaluate(field, x, d, dtype, clear),
        "eager": lambda field, x, d, _: eager.evaluate(field, x, d, dtype),
    }
    monkeypatch.setattr(fused_field, "is_supported", lambda encoded: True)
    monkeypatch.setattr(fused_field, "evaluate", paths.get(path))
    has_kernels = dtype is not None and path != "published"
    monkeypatch.setattr(fast_rays, "is_supported", lambda samples: has_kernels)
    monkeypatch.setattr(fused_layers, "is_supported", lambda device: dtype is not None)
    for name in ("prepared", "_fast"):
        monkeypatch.setattr(FilmSiren, name, FilmSiren.joined)
    if dtype is not None:
        monkeypatch.setattr(
            AdversarialGame, "_in_precision", lambda game: converted(game.discriminator, dtype)
        )
    monkeypatch.setattr(clip_grad, "_has_foreach_support", lambda *_: True)
    for name in ("camera_origins", "camera_rotations"):
        monkeypatch.setattr(cameras, name, on_host(getattr(cameras, name)))
    monkeypatch.setattr(adversarial, "sample_latents", on_host(adversarial.sample_latents))
    monkeypatch.setattr(adversarial, "sample_poses", on_host(adversarial.sample_poses))
    for module in (cameras, adversarial, losses):
        monkeypatch.setattr(module, "moved", moved_and_recorded)
    render = generators.render_rays

    def render_rays(field, rays, options, **more):
        if options.scene_radius is not None:  # as on CUDA, where the host counts the rays
            with unset_fake_temporarily():
                count = len(rays_that_hit(options))
            more["hits"] = torch.empty(count, dtype=torch.int64)
        return render(field, rays, options, **more)

    monkeypatch.setattr(generators, "render_rays", render_rays)
    monkeypatch.setattr(adversarial, "stream", lambda *_, **__: torch.Generator().manual_seed(0))


def run_steps(monkeypatch, curriculum, start, path, *, is_half, num_steps=1):
    """Return the Watch of the last of some training steps from start on."""
    dtype = torch.float16 if is_half else None
    with monkeypatch.context() as patched:
        patch_cuda_path(patched, path, dtype)
        watch = Watch(CPU)
        with FakeTensorMode(allow_non_fake_inputs=True), watch:
            kind = TextbookGame if path == "published" else AdversarialGame
            game = kind(
                on_gpu(curriculum.build_generator, CPU),
                on_gpu(curriculum.build_discriminator, CPU),
                curriculum.optimizer_options(),
                Precision(autocast_dtype=dtype, is_scaled=is_half), seed=0,
            )  # fmt: skip
            game.scaler = torch.amp.GradScaler("cpu", enabled=True)
            stage = curriculum.at(start)
            size = stage.render.image_size
            real = torch.empty(stage.batch_size, 3, size, size)
            for _ in range(num_steps):
                watch.work.clear()
                game.step(real, stage)
        return watch
