"""What all tests share: one thread each, repeatable arithmetic, and no GPU tests without a GPU."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # for the commands that tests start, and read when torch loads

import pytest
import torch

if not torch.cuda.is_available():  # read when Triton loads: kernels then run in its interpreter
    os.environ["TRITON_INTERPRET"] = "1"

import checkpoints
import curriculum

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _repeatable(request):
    """Same numbers in every run; on the CPU also NaN in memory that nobody has written yet."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(request.node.get_closest_marker("gpu") is None)


TINY = {
    0: {"batch_size": 3, "num_steps": 4, "img_size": 8, "gen_lr": 1e-3, "disc_lr": 1e-3},
    6: {},
    "dataset": "Images",
    "model": "SPATIALSIRENBASELINE",
    "discriminator": "CCSDiscriminator",
    "discriminator_width": 8,
    "latent_dim": 6,
    "hidden_dim": 8,
    "num_layers": 2,
    "mapping_hidden_dim": 8,
    "fov": 12,
    "ray_start": 0.88,
    "ray_end": 1.12,
    "sample_dist": "gaussian",
    "h_mean": 1.5707963,
    "v_mean": 1.5707963,
    "h_stddev": 0.3,
    "v_stddev": 0.155,
    "topk_interval": 2000,
    "topk_v": 1,
    "r1_lambda": 1,
    "grad_clip": 10,
    "white_back": True,
    "density_scale": 20,
}


@pytest.fixture
def tiny_run(tmp_path):
    """A folder with generator.pth, ema.pth and ema2.pth of a tiny curriculum, all different."""
    tiny = curriculum.build("Tiny", TINY)
    folder = tmp_path / "tiny_run"
    for name in ("generator", "ema", "ema2"):
        state = tiny.build_generator().state_dict()
        state["siren.final_layer.bias"].zero_()  # some of the space is empty, and not all of it
        content = {
            "curriculum_name": "Tiny",
            "curriculum": dict(tiny.source),
            "step": 6,
            "versions": {},
            "state": state,
        }
        checkpoints.save(folder / f"{name}.pth", "generator", content)
    return folder
