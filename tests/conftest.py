"""Shared setup: one thread, repeatable arithmetic, fixtures; skips GPU tests without a GPU.

The GPU tests also run where only PyTorch's own packages and pytest are installed: modules that need
more are imported inside the fixtures that use them.
"""

import importlib.util
import os
import signal
import subprocess

os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it on import; commands inherit it

import pytest
import torch
from elsewhere import reason_to_skip

if not torch.cuda.is_available():  # Triton reads this on import and interprets kernels
    os.environ["TRITON_INTERPRET"] = "1"

from checkpoint_io import checkpoints
from config import curriculum
from metrics import features, inception
from training import previews

torch.set_num_threads(1)
WHOLE_SHEET = previews.COUNT  # previews that a run of a user renders
previews.COUNT = previews.COLUMNS  # one row: 25 renders take longer than the rest of a tiny run
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell does for background processes; the commands that tests start inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_ignore_collect(collection_path, config):
    """With -m gpu, skip the files without such tests: they may need packages that are missing."""
    if config.option.markexpr == "gpu" and collection_path.suffix == ".py":
        return "mark.gpu" not in collection_path.read_text("utf-8") or None
    return None


def pytest_collection_modifyitems(items):
    for item in items:
        reason = reason_to_skip(item.nodeid.rpartition("tests/")[2])
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture
def counted(record_property):
    """Return a function that takes a line about a measurement, printed after all tests."""
    return lambda line: record_property("counted", line)


def pytest_terminal_summary(terminalreporter):
    found = [
        (report.nodeid.partition(".py")[0], value)
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == "counted"
    ]
    if found:
        terminalreporter.section("what was counted")
    for test, line in found:
        terminalreporter.line(f"{test}: {line}")


@pytest.fixture(autouse=True)
def _repeatable(request):
    """Make every run repeatable; on the CPU, fill uninitialized memory with NaN."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(request.node.get_closest_marker("gpu") is None)


NUM_FEATURES, NUM_LOGITS = 40, 10  # in place of Inception's 2048 and 1008, which take long
WIDTH = NUM_FEATURES + NUM_LOGITS
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


def save_network(path, network, of, kind="generator"):
    """Save a network of a curriculum, as a run of 6 steps does."""
    content = {"curriculum_name": of.name, "curriculum": dict(of.source), "step": 6,
               "versions": {}, "state": network.state_dict()}  # fmt: skip
    checkpoints.save(path, kind, content)


@pytest.fixture
def tiny_run(tmp_path):
    """Make a folder of different generator.pth, ema.pth and ema2.pth of a tiny curriculum."""
    wanted = curriculum.build("Tiny", TINY)
    folder = tmp_path / "tiny_run"
    for name in ("generator", "ema", "ema2"):
        network = wanted.build_generator()
        network.siren.final_layer.bias.data.zero_()  # some of the space is empty, not all of it
        save_network(folder / f"{name}.pth", network, wanted)
    return folder


@pytest.fixture
def tiny(tmp_path):
    """Write a curriculum of two stages of three steps; return train.py's flags for it."""
    from faults import tiny_arguments

    return tiny_arguments(tmp_path, more="Tiny[6] = {}\n")


@pytest.fixture
def small_disk(tmp_path):
    """Mount a separate file system of 2 MB and return its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        is_there = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        is_there = False
    if not is_there:
        pytest.skip("a small file system cannot be mounted here (only root may)")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def needs_libraries():
    for name in ("torchvision", "torch_fidelity", "pytorch_fid"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed; pip install -r requirements.txt")


@pytest.fixture
def few_features(monkeypatch):
    import eval_metrics

    for module in (features, eval_metrics):
        monkeypatch.setattr(module, "NUM_FEATURES", NUM_FEATURES)
        monkeypatch.setattr(module, "NUM_LOGITS", NUM_LOGITS)


@pytest.fixture
def small_network(monkeypatch, tmp_path, few_features):
    """Replace Inception by fixed random projections of the pixels; return it and its calls."""
    needs_libraries()
    seen = []
    rng = torch.Generator().manual_seed(0)
    projection = torch.randn(3 * 64, WIDTH, generator=rng) / 100

    def network(images):
        seen.append(len(images))
        small = torch.nn.functional.adaptive_avg_pool2d(images.float(), 8) / 255
        return torch.tanh(small.flatten(1) @ projection)

    path = tmp_path / "weights.pth"
    path.write_bytes(b"stands for a file of weights")
    monkeypatch.setattr(inception, "fidelity_network", lambda weights, device: network)
    monkeypatch.setattr(
        inception,
        "pytorch_fid_network",
        lambda weights, device: lambda images: network(images)[:, :NUM_FEATURES],
    )
    return path, seen


@pytest.fixture
def weights(monkeypatch, tmp_path):
    """Flags of train.py with a file in place of Inception's weights, for a small random network."""
    from training import fid

    def network_on(weights, device):
        projection = torch.randn(48, 6, generator=torch.Generator().manual_seed(0)).to(device)

        def network(images):
            small = torch.nn.functional.adaptive_avg_pool2d(images.to(device).float(), 4) / 255
            return small.flatten(1) @ projection

        return network

    monkeypatch.setattr(inception, "pytorch_fid_network", network_on)
    for module in (fid, fid.features):
        monkeypatch.setattr(module, "NUM_FEATURES", 6)
    path = tmp_path / "weights.pth"
    path.write_bytes(b"stands for weights")
    return ["--inception_weights", str(path), "--any_inception_weights", "--eval_images", "9"]


@pytest.fixture
def reals(tmp_path):
    """Make a folder of 10 real images as fid_evaluation.py writes them."""
    import fid_evaluation

    folder = tmp_path / "reals"
    command = ["--dataset", "toycars", "--img_size", "8", "--num_imgs", "10"]
    assert fid_evaluation.main([*command, "--output_dir", str(folder)]) == 0
    return folder
