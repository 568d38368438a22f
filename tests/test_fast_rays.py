"""Importance sampling and compositing by kernels, against the reference in float64."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
from test_triton_field import device, relative_error  # noqa: F401 (a fixture with mark.gpu)

from generators import fast_rays
from generators import volumetric_rendering as rendering
from generators.volumetric_rendering import RenderOptions

OPTIONS = RenderOptions(image_size=4, fov_degrees=12.0, near=0.8, far=1.2, num_steps=5)
CASES = {
    "plain": (OPTIONS, 2),
    "noise": (replace(OPTIONS, density_noise=0.7), 2),
    "softplus, white": (replace(OPTIONS, density_activation="softplus", background="white"), 2),
    "the last sample shows": (replace(OPTIONS, background="last_sample"), 2),
    "bounded, one set": (replace(OPTIONS, scene_radius=0.3), 1),
    "softplus and the last of one set": (
        replace(OPTIONS, density_activation="softplus", background="last_sample"), 1
    ),
}  # fmt: skip


class Draws:
    """Stands for a random stream: gives the same numbers in either precision."""

    device = torch.device("cpu")

    def __init__(self, monkeypatch):
        self.made = {}
        for name, draw in (("_normal", torch.randn), ("uniform", torch.rand)):
            monkeypatch.setattr(rendering, name, self.drawing(draw))

    def drawing(self, draw):
        def drawn(shape, like, rng):
            key = (draw, tuple(shape))
            if key not in self.made:
                self.made[key] = draw(shape)
            return self.made[key].to(like)

        return drawn


def case_of(name, device):  # noqa: F811
    """Return options, sets of (depths, samples) and where the scene ends, in float64."""
    options, num_sets = CASES[name]
    sets = []
    for _ in range(num_sets):
        depths = (torch.rand(2, 70, 5, dtype=torch.float64) * 0.4 + 0.8).sort(-1).values
        samples = torch.rand(2, 70, 5, 4, dtype=torch.float64)
        samples[..., 3] = torch.randn(2, 70, 5) * 10 ** (torch.rand(2, 70, 1) * 6 - 3)
        sets.append((depths.float().double().to(device), samples.float().double().to(device)))
    end = None if options.scene_radius is None else sets[0][0][..., -1] + 0.05
    return options, sets, end


def blended(sets, options, end, draws, dtype):
    """Return outputs, and the gradients of all samples."""
    sets = [(depths.to(dtype), samples.to(dtype).requires_grad_()) for depths, samples in sets]
    end = None if end is None else end.to(dtype)
    first, second = [*sets, None][:2]
    found = rendering._blend(first, second, options, rng=draws, end=end)
    torch.manual_seed(1)
    loss = sum(
        (part * torch.randn(part.shape, dtype=torch.float64).to(part)).sum() for part in found
    )
    return [*found, *torch.autograd.grad(loss, [samples for _, samples in sets])]


@pytest.mark.parametrize("name", CASES)
def test_pixels_and_gradients_are_those_of_the_reference(name, device, monkeypatch):  # noqa: F811
    options, sets, end = case_of(name, device)
    draws = Draws(monkeypatch)
    expected = blended(sets, options, end, draws, torch.float64)
    monkeypatch.setattr(fast_rays, "is_supported", lambda samples: True)
    found = blended(sets, options, end, draws, torch.float32)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert relative_error(one, other) < 3e-6
        if options.hides_clear and options.background != "last_sample" and one.dim() == 4:
            clear = (other == 0).all(-1)  # points that the field may leave out
            assert (one[clear] == 0).all()
            assert clear.any()


@pytest.mark.parametrize("name", ["plain", "noise", "softplus, white", "bounded, one set"])
@pytest.mark.parametrize("is_random", [True, False])
@pytest.mark.parametrize("spreads", [True, False])
def test_fine_depths_are_those_of_the_reference(
    name, is_random, spreads, device, monkeypatch  # noqa: F811
):  # fmt: skip
    options, ((depths, samples), *_), end = case_of(name, device)
    options = replace(options, spreads_weights=spreads)
    draws = Draws(monkeypatch) if is_random else None
    arguments = {"rng": draws, "end": end}
    expected = rendering._fine_depths(samples, depths, options, **arguments)
    monkeypatch.setattr(fast_rays, "is_supported", lambda samples: True)
    arguments["end"] = None if end is None else end.float()
    found = rendering._fine_depths(samples.float(), depths.float(), options, **arguments)
    # The inverse of a nearly flat part of the distribution function is ill-conditioned.
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-4)


def test_nan_stays_visible_and_no_rays_are_no_error(device, monkeypatch):  # noqa: F811
    options, ((depths, samples), *_), _ = case_of("plain", device)
    monkeypatch.setattr(fast_rays, "is_supported", lambda samples: True)
    samples, depths = samples.float(), depths.float()
    samples[0, 0, 2, 3] = torch.nan
    found = rendering._blend((depths, samples), None, options, rng=None, end=None)
    assert found.rgb[0, 0].isnan().all()
    assert found.rgb[1].isfinite().all()
    none = rendering._blend((depths[:, :0], samples[:, :0]), None, options, rng=None, end=None)
    assert none.rgb.shape == (2, 0, 3)
    assert rendering._fine_depths(
        samples[:, :0], depths[:, :0], options, rng=None, end=None
    ).shape == (2, 0, 5)
