"""Run training steps on fake tensors, which have shapes but no numbers, and count their bytes.

The CUDA path of the field runs on them without a GPU; its kernels do nothing. Storages are counted
from the operation that makes them until they are freed, as a CUDA allocator would see them.
"""

import weakref

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from config.stage import Precision
from discriminators.discriminators import PyramidDiscriminator
from generators import generators
from generators.volumetric_rendering import rays_that_hit
from siren.fused import eager, fused_field, kernels, triton_field
from siren.siren import FilmSiren
from training import adversarial
from training.adversarial import AdversarialGame

CPU = torch.device("cpu")


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all live tensors (now) and their maximum (peak)."""

    def __init__(self):
        super().__init__()
        self.known, self.now, self.peak = set(), 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.note(tensor.untyped_storage())
        return out

    def note(self, storage):
        key = storage._cdata
        if key not in self.known:
            self.known.add(key)
            weakref.finalize(storage, self.freed, key, storage.nbytes())
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)

    def freed(self, key, num_bytes):
        self.known.discard(key)
        self.now -= num_bytes


class NoKernel:
    """Stands for a Triton kernel: launched on any grid, it changes no tensor."""

    def __getitem__(self, grid):
        return lambda *args, **kwargs: None


class NoScaler:
    """A loss scaler that never reads a value."""

    def is_enabled(self):
        return True

    def scale(self, value):
        return value * 1

    def unscale_(self, optimizer):
        pass

    def step(self, optimizer):
        optimizer.step()

    def update(self, scale):
        pass


def fake(make):
    """Return a network with fake parameters; called in a FakeTensorMode."""
    with unset_fake_temporarily():
        network = make()
        if isinstance(network, PyramidDiscriminator):
            network.to(memory_format=torch.channels_last)
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.empty_like(parameter))
    network.to = lambda **_: network  # a fake parameter cannot be moved
    return network


def patch_cuda_path(monkeypatch, path, dtype):
    """Make the field use its CUDA implementation "kernels" or "eager"."""
    for name in ("forward_kernel", "backward_kernel", "reduction_kernel"):
        monkeypatch.setattr(kernels, name, NoKernel())
    paths = {
        "kernels": lambda field, x, d, **_: triton_field.evaluate(field, x, d, dtype),
        "eager": lambda field, x, d, **_: eager.evaluate(field, x, d, dtype),
    }
    monkeypatch.setattr(fused_field, "is_supported", lambda encoded: True)
    for name in ("prepared", "_fast"):
        monkeypatch.setattr(FilmSiren, name, FilmSiren.joined)
    monkeypatch.setattr(fused_field, "evaluate", paths[path])
    render = generators.render_rays

    def render_rays(field, rays, options, **more):
        if options.scene_radius is not None:  # as on CUDA, where the host counts the rays
            with unset_fake_temporarily():
                count = len(rays_that_hit(options))
            more["hits"] = torch.empty(count, dtype=torch.int64)
        return render(field, rays, options, **more)

    monkeypatch.setattr(generators, "render_rays", render_rays)
    monkeypatch.setattr(adversarial, "step_rng", lambda *_: torch.Generator().manual_seed(0))


def peak_bytes(monkeypatch, curriculum, start, path, *, is_half):
    """Return the peak of the first training step of the stage that begins at start."""
    dtype = torch.float16 if is_half else None
    with monkeypatch.context() as patched:
        patch_cuda_path(patched, path, dtype)
        live = LiveBytes()
        with FakeTensorMode(allow_non_fake_inputs=True), live:
            game = AdversarialGame(
                fake(curriculum.build_generator),
                fake(curriculum.build_discriminator),
                curriculum.optimizer_options(),
                Precision(autocast_dtype=dtype, is_scaled=is_half),
                seed=0,
            )
            game.scaler = NoScaler()
            stage = curriculum.at(start)
            size = stage.render.image_size
            game.step(torch.empty(stage.batch_size, 3, size, size), stage)
        return live.peak
