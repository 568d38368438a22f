"""FID while training, with a small network instead of Inception: no number here is a real FID."""

import json

import pytest
import torch
from faults import differences, state_of
from test_train import TINY, run

import datasets
from checkpoint_io import checkpoints
from curriculums import load
from distributed import collectives, processes
from metrics import inception
from metrics.frechet import fitted_gaussian, frechet_distance
from scenes.toy_car_images import toy_car_images
from system.errors import UsageError
from training import fid, options


@pytest.fixture
def tiny(tmp_path):
    file = tmp_path / "tiny.py"
    file.write_text(TINY + 'Tiny["clamp_mode"] = "softplus"\n')  # some density is visible
    cache = tmp_path / "cache"
    return ["--curriculum_file", str(file), "--curriculum", "Tiny", "--cache_dir", str(cache)]


def fids(folder):
    lines = (folder / "fid.txt").read_text().splitlines()
    return {int(step): float(value) for step, value in (line.split(":") for line in lines)}


def test_a_run_with_fid_is_the_run_without(tiny, weights, tmp_path, capsys):
    run(tiny, tmp_path / "without", "--max_steps", "6")
    run(tiny, tmp_path / "with", "--max_steps", "6", "--eval_freq", "2", *weights)
    assert differences(state_of(tmp_path / "without"), state_of(tmp_path / "with")) == []
    found = fids(tmp_path / "with")
    assert list(found) == [2, 4, 6]
    assert len(set(found.values())) == 3
    assert not (tmp_path / "without" / "fid.txt").exists()  # 5000 steps are never done
    log = [json.loads(line) for line in (tmp_path / "with" / "log.jsonl").read_text().splitlines()]
    assert {line["step"]: line["fid"] for line in log if "fid" in line} == found
    said = capsys.readouterr().err
    assert "not the published one" in said
    assert f"step 6: fid {found[6]:.2f}" in said
    best = checkpoints.read(tmp_path / "with" / "best" / "ema.pth", "generator")
    assert best["step"] == min(found, key=found.get)


def test_an_interval_of_0_turns_it_off(tiny, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(inception, "find_weights", None)  # nothing is looked for
    words = ["--max_steps", "1", "--eval_freq", "0", "--load_dir", "", *weights]
    assert run(tiny, tmp_path / "out", *words) == 0
    assert not (tmp_path / "out" / "fid.txt").exists()


def test_a_resumed_run_measures_what_the_whole_one_does(tiny, weights, tmp_path):
    flags = ["--eval_freq", "2", *weights]
    run(tiny, tmp_path / "whole", *flags)
    run(tiny, tmp_path / "parts", "--max_steps", "3", *flags)
    run(tiny, tmp_path / "parts", "--resume", *flags)
    assert fids(tmp_path / "whole") == fids(tmp_path / "parts")


def test_the_figure_is_the_distance_to_the_data_set(tiny, weights, tmp_path):
    run(tiny, tmp_path / "out", "--max_steps", "2", "--eval_freq", "2", *weights)
    (cached,) = (tmp_path / "cache").glob("fid-*.pth")
    real = checkpoints.read(cached, "real_statistics")
    network = inception.pytorch_fid_network(None, torch.device("cpu"))
    curriculum = load("Tiny", file=tmp_path / "tiny.py")
    images = toy_car_images(range(7), 4, seed=0).images
    expected = fitted_gaussian(network(images))
    torch.testing.assert_close(real["mean"], expected.mean)
    torch.testing.assert_close(real["covariance"], expected.covariance)
    saved = checkpoints.load_generator(tmp_path / "out" / "generator.pth")
    sampling = fid.SampleOptions(
        seed=0,
        poses=curriculum.evaluation_poses(),
        latent_kind="gaussian",
        render=curriculum.preview_render(1, 4),
    )
    shown = [fid.samples.sample_image(saved.generator, i, sampling) for i in range(9)]
    generated = fitted_gaussian(network(fid.png.to_uint8(torch.stack(shown))))
    assert fids(tmp_path / "out")[2] == pytest.approx(frechet_distance(generated, expected))


def test_without_the_network_it_says_so_and_trains(tiny, tmp_path, monkeypatch, capsys):
    def unavailable(*_, **__):
        raise inception.Unavailable("the Inception network cannot be downloaded (no route)")

    monkeypatch.setattr(inception, "find_weights", unavailable)
    assert run(tiny, tmp_path / "out", "--max_steps", "2", "--eval_freq", "1") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "FID" in line]
    assert len(lines) == 1
    assert "FID is not measured: the Inception network cannot be downloaded" in lines[0]
    assert state_of(tmp_path / "out")["step"] == 2
    assert not (tmp_path / "out" / "fid.txt").exists()


def test_a_full_disk_is_found_out_before_the_first_step(
    tiny, weights, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(fid, "FREE_BYTES", 2**62)
    assert run(tiny, tmp_path / "out", "--max_steps", "1", "--eval_freq", "1", *weights) == 0
    assert "FID is not measured: only" in capsys.readouterr().err


def test_a_wrong_network_is_refused_before_training(tiny, tmp_path):
    path = tmp_path / "wrong.pth"
    path.write_bytes(b"x")
    with pytest.raises(UsageError, match="not the published"):
        run(tiny, tmp_path / "out", "--eval_freq", "1", "--inception_weights", str(path))


def test_lines_of_a_future_that_was_left_are_dropped(tmp_path):
    assert fid.note(tmp_path, 10, 5.0)
    assert not fid.note(tmp_path, 20, 6.0)
    assert fid.note(tmp_path, 30, 4.0)
    assert fid.note(tmp_path, 15, 4.5)  # resumed from step 10
    assert fids(tmp_path) == {10: 5.0, 15: 4.5}


def test_two_ranks_measure_what_one_does(tiny, weights, tmp_path):
    """Measures the untrained generator both times, because the trainings would differ."""
    curriculum = load("Tiny", file=tmp_path / "tiny.py")
    torch.manual_seed(0)
    generator = curriculum.build_generator().eval()
    alone = processes.Place(device=torch.device("cpu"))
    wanted = options.FidOptions(interval=1, num_images=70, weights=tmp_path / "weights.pth",
                                takes_any_weights=True)  # fmt: skip
    data = options.dataset_options(curriculum)
    listing = datasets.find_images(data)
    meter, _ = fid.open_meter(alone, wanted, curriculum, data, listing, tmp_path / "cache")
    expected = meter.measure(generator, 1, alone, lambda: False)
    shares = []
    for rank in range(2):
        place = processes.Place(device=torch.device("cpu"), rank=rank, world_size=2)
        kept = []
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(collectives, "add_up", kept.append)
            meter.measure(generator, 1, place, lambda: False)
        shares += kept
    assert shares[0][32:64].eq(0).all()
    assert shares[1][:32].eq(0).all()
    both = fitted_gaussian(shares[0] + shares[1])
    assert frechet_distance(both, meter.real) == expected
    assert meter.measure(generator, 1, alone, lambda: True) is None  # asked to stop


def test_a_machine_with_a_disk_of_its_own_gets_the_statistics(tiny, weights, tmp_path, monkeypatch):
    curriculum = load("Tiny", file=tmp_path / "tiny.py")
    wanted = options.FidOptions(interval=1, num_images=9, weights=tmp_path / "weights.pth",
                                takes_any_weights=True)  # fmt: skip
    data = options.dataset_options(curriculum)
    listing = datasets.find_images(data)
    main, other = (
        processes.Place(device=torch.device("cpu"), rank=r, world_size=2) for r in (0, 1)
    )
    meter, _ = fid.open_meter(main, wanted, curriculum, data, listing, tmp_path / "cache")

    def from_main(tensors):
        for tensor, value in zip(tensors, meter.real, strict=True):
            tensor.copy_(value)

    monkeypatch.setattr(collectives, "broadcast_state", from_main)
    found, _ = fid.open_meter(other, wanted, curriculum, data, listing, tmp_path / "empty")
    assert all(torch.equal(*pair) for pair in zip(found.real, meter.real, strict=True))
    assert list((tmp_path / "empty").iterdir()) == []
