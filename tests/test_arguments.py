"""Bad arguments: one line each, exit code 2, no traceback, and nothing is written."""

import os
import sys

import pytest
import torch
from PIL import Image

import convert_checkpoint
import curriculums
import dry_run
import eval_metrics
import extract_shapes
import fid_evaluation
import flags
import inverse_render
import machine
import plot_run
import render_multiview_images
import render_video
import render_video_interpolation
import train
import viewer

VIEWERS = {
    "render_multiview_images": render_multiview_images,
    "render_video": render_video,
    "render_video_interpolation": render_video_interpolation,
    "extract_shapes": extract_shapes,
}
OF_ALL = [
    (["--no_such_flag"], "unknown flag --no_such_flag"),
    (["--output_dirr", "x"], "Did you mean '--output_dir'?"),
    (["--device", "gpu"], "--device gpu"),
    (["--device", "cuda:99"], "--device cuda:99"),
    (["--output_dir"], "--output_dir: expected one argument"),
    (["--output_dir", "FILE"], "--output_dir"),
    (["--output_dir", "FILE/below"], "--output_dir"),
    (["--output_dir", "LOCKED/below"], "--output_dir"),
]
OF_VIEWERS = [
    (["--seeds", "x"], "--seeds: 'x' is no seed"),
    (["--seeds"], "--seeds: expected at least one argument"),
    (["--seeds", "-1"], "--seeds"),
    (["--seeds", "9-1"], "runs backwards"),
    (["--seeds", "0-99999999999"], "makes more than"),
    (["--psi", "nan"], "--psi: must be a number from 0 to 1"),
    (["--psi", "-1"], "--psi"),
    (["--ema", "ema3"], "--ema"),
    (["--max_batch_size", "0"], "--max_batch_size"),
    (["--max_batch_size", "-5"], "--max_batch_size"),
    (["--curriculum", "CelebB"], "Did you mean 'CelebA'?"),
    (["--curriculum_file", "nowhere.py"], "no such file"),
    (["--fit", "nowhere.pth"], "no such file"),
    (["--fit", "FILE"], "is no checkpoint"),
    (["GENERATOR", "nowhere/generator.pth"], "no such file"),
    (["GENERATOR", "FILE"], "is no checkpoint"),
    (["GENERATOR", "DIR"], "is a folder"),
]
OF_PICTURES = [
    (["--image_size", "0"], "--image_size"),
    (["--image_size", "-3"], "--image_size"),
    (["--image_size", "1e3"], "--image_size"),
    (["--image_size", "10000000"], "--image_size 10000000: needs more than"),
    (["--ray_step_multiplier", "0"], "--ray_step_multiplier"),
    (["--ray_step_multiplier", "1000000000000"], "--ray_step_multiplier 1000000000000: needs"),
]
OF_VIDEOS = [
    (["--num_frames", "0"], "--num_frames"),
    (["--num_frames", "100000000000"], "--num_frames 100000000000: needs more than"),
    (["--fps", "-1"], "--fps"),
    (["--format", "avi"], "--format"),
    (["--trajectory", "orbitt"], "--trajectory"),
    (["--trajectory", "nowhere.csv"], "nowhere.csv"),
    (["--batch_size", "0"], "--batch_size"),
    (["--batch_size", "100000000000"], "needs more than"),
]
OF_COMMAND = {
    "render_multiview_images": [
        *OF_PICTURES,
        (["--yaws", "left"], "--yaws"),
        (["--yaws", "inf"], "--yaws"),
        (["--pitches"], "--pitches"),
    ],
    "render_video": [*OF_PICTURES, *OF_VIDEOS],
    "render_video_interpolation": [*OF_PICTURES, *OF_VIDEOS],
    "extract_shapes": [
        (["--voxel_resolution", "-1"], "--voxel_resolution"),
        (["--voxel_resolution", "1000000"], "--voxel_resolution"),
        (["--cube_size", "0"], "--cube_size"),
        (["--cube_size", "nan"], "--cube_size"),
        (["--format", "dwg"], "--format"),
        (["--level", "x"], "--level"),
        (["--center", "0", "0"], "--center"),
    ],
}
OF_INVERSION = [
    *OF_PICTURES,
    (["--fit_size", "0"], "--fit_size"),
    (["--fit_size", "9999999"], "--fit_size 9999999: needs more than"),
    (["--candidates", "99999999999999"], "--candidates 99999999999999: needs more than"),
    (["--fov", "0"], "--fov"),
    (["--fov", "200"], "--fov"),
    (["--crop", "big"], "--crop"),
    (["--mask", "nowhere.png"], "nowhere.png"),
    (["--mask", "FILE"], "FILE"),
    (["PHOTO", "nowhere.jpg"], "nowhere.jpg"),
    (["PHOTO", "FILE"], "FILE"),
    (["PHOTO", "DIR"], "DIR"),
]
OF_TRAINING = [
    (["--set", "img_size=64x"], "img_size"),
    (["--set", "0.img_size=3"], "has levels for"),
    (["--set", "0.img_size=4096"], "has levels for"),
    (["--set", "0.batch_size=-1"], "batch_size"),
    (["--set", "0.num_steps=1"], "num_steps"),
    (["--set", "0.num_steps=100000000"], "and there are"),
    (["--set", "0.gen_lr=nan"], "gen_lr"),
    (["--set", "0.batch_split=99"], "batch_split"),
    (["--set", "fov=999"], "fov"),
    (["--set", "no_such_key=1"], "unknown key"),
    (["--set", "fov"], "expected KEY=VALUE"),
    (["--set", "7.gen_lr=1"], "has no stage 7"),
    (["--max_steps", "-1"], "--max_steps"),
    (["--n_epochs", "0"], "--n_epochs"),
    (["--sample_interval", "0"], "--sample_interval"),
    (["--keep", "0"], "--keep"),
    (["--state_seconds", "-1"], "--state_seconds"),
    (["--state_seconds", "inf"], "--state_seconds"),
    (["--seed", "-1"], "--seed"),
    (["--port", "99999"], "--port"),
    (["--num_processes", "0"], "--num_processes"),
    (["--dataset_path", "nowhere"], "nowhere"),
    (["--dataset_path", "DIR"], "no pictures"),
    (["--dataset_path", "FILE"], "no .zip"),
    (["--cache_dir", "FILE"], "--cache_dir"),
    (["--load_dir", "nowhere"], "--load_dir"),
    (["--load_dir", "DIR"], "no training_state.pth"),
    (["--load_dir", "FILE"], "--load_dir"),
    (["--curriculum", "Demmo"], "Did you mean 'Demo'?"),
    (["--curriculum_file", "FILE"], "--curriculum_file"),
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to stand in, with a file that is none of ours and an empty folder."""
    (tmp_path / "FILE").write_bytes(b"not what you look for\n")
    (tmp_path / "DIR").mkdir()
    (tmp_path / "LOCKED").mkdir(mode=0o555)
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(monkeypatch, capsys, module, words, expected):
    """Run a command as from a shell; complains unless it refuses as it must."""
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *words])
    before = snapshot()
    code = flags.run(module.main)
    output = capsys.readouterr()
    assert code == 2, (words, output.err)
    assert output.err.count("\n") == 1, (words, output.err)
    assert output.err.startswith("error: ")
    assert "Traceback" not in output.err
    assert expected in output.err, (words, output.err)
    assert snapshot() == before, words


def snapshot():
    """All files and folders here, and their sizes."""
    return sorted(
        (os.path.join(folder, name), os.path.getsize(os.path.join(folder, name)))
        for folder, folders, files in os.walk(".")
        for name in [*folders, *files]
        if name != "tiny_run" or folders
    )


def without_root(cases):
    """Root may write where nobody else may."""
    return [case for case in cases if os.geteuid() or "LOCKED/below" not in case[0]]


OF_OTHERS = [
    (eval_metrics, ["GENERATOR", "--num_images", "0"], "--num_images"),
    (
        eval_metrics,
        ["GENERATOR", "--consistency", "--num_images", "99999999999"],
        "--num_images 99999999999: needs",
    ),
    (eval_metrics, ["GENERATOR", "--psi", "2"], "--psi"),
    (eval_metrics, ["GENERATOR", "--seed", "-1"], "--seed"),
    (eval_metrics, ["GENERATOR", "--protocol", "fast"], "--protocol"),
    (eval_metrics, ["GENERATOR", "--real_image_dir", "nowhere"], "nowhere"),
    (eval_metrics, ["GENERATOR", "--consistency", "--held_out_cars", "-1"], "--held_out_cars"),
    (eval_metrics, ["nowhere/generator.pth", "--consistency"], "no such file"),
    (eval_metrics, ["FILE", "--consistency"], "is no checkpoint"),
    (eval_metrics, ["GENERATOR", "--no_such_flag"], "unknown flag"),
    (fid_evaluation, ["--dataset", "CelebB"], "Did you mean 'CelebA'?"),
    (fid_evaluation, ["--dataset", "CelebA", "--dataset_path", "nowhere"], "nowhere"),
    (fid_evaluation, ["--img_size", "0"], "--img_size"),
    (fid_evaluation, ["--num_imgs", "-1"], "--num_imgs"),
    (fid_evaluation, ["--no_such_flag"], "unknown flag"),
    (convert_checkpoint, ["--no_such_flag"], "unknown flag"),
    (convert_checkpoint, [], "required"),
    (convert_checkpoint, ["nowhere", "out"], "nowhere"),
    (plot_run, ["--no_such_flag"], "unknown flag"),
    (plot_run, [], "required"),
    (plot_run, ["nowhere"], "nowhere"),
    (plot_run, ["DIR"], "DIR"),
    (viewer, ["GENERATOR", "--no_such_flag"], "unknown flag"),
    (viewer, ["GENERATOR", "--port", "99999"], "--port"),
    (viewer, ["GENERATOR", "--image_size", "0"], "--image_size"),
    (viewer, ["GENERATOR", "--mix", "x"], "--mix"),
    (viewer, ["nowhere/generator.pth"], "no such file"),
    (viewer, ["FILE"], "is no checkpoint"),
]


def test_the_other_commands(place, tiny_run, monkeypatch, capsys):
    for module, words, expected in OF_OTHERS:
        generator = str(tiny_run / "generator.pth")
        words = [generator if word == "GENERATOR" else word for word in words]
        refused(monkeypatch, capsys, module, words, expected)
    print(f"others: {len(OF_OTHERS)} wrong command lines, one line each")


@pytest.mark.parametrize("name", VIEWERS)
def test_viewing_commands(place, tiny_run, monkeypatch, capsys, name):
    cases = without_root([*OF_ALL, *OF_VIEWERS, *OF_COMMAND[name]])
    for words, expected in cases:
        generator = str(tiny_run / "generator.pth")
        if words[0] == "GENERATOR":
            generator, words = words[1], []
        refused(monkeypatch, capsys, VIEWERS[name], [generator, *words], expected)
    refused(monkeypatch, capsys, VIEWERS[name], [], "generator.pth")
    print(f"{name}: {len(cases) + 1} wrong command lines, one line each")


def test_inverse_render(place, tiny_run, monkeypatch, capsys):
    cases = without_root([*OF_ALL, *OF_INVERSION])
    for words, expected in cases:
        photo = "photo.png"
        if words[0] == "PHOTO":
            photo, words = words[1], []
        generator = str(tiny_run / "generator.pth")
        refused(monkeypatch, capsys, inverse_render, [generator, photo, *words], expected)
    print(f"inverse_render: {len(cases)} wrong command lines, one line each")


def test_train(place, monkeypatch, capsys):
    cases = without_root([*OF_ALL, *OF_TRAINING])
    for words, expected in cases:
        usual = ["--curriculum", "Demo", "--set", "num_images=4"]
        refused(monkeypatch, capsys, train, [*usual, *words], expected)
    refused(monkeypatch, capsys, train, [], "--curriculum is missing")
    print(f"train: {len(cases) + 1} wrong command lines, one line each")


def test_ten_times_more_samples_than_memory(place, monkeypatch, capsys):
    """What just fits is not refused, what needs ten times as much is, before anything starts."""

    def needed(*overrides):
        curriculum = curriculums.load("Demo", overrides=overrides)
        stages = [stage for _, stage in curriculum.stages]
        return max(dry_run.estimated_memory_bytes(curriculum, s, is_cuda=False) for s in stages)

    fits, many = needed(), "1500.num_steps=1500"
    assert needed(many) > 10 * fits
    monkeypatch.setattr(machine, "memory_bytes", lambda device: fits)
    started = []
    monkeypatch.setattr(train.distributed, "launch", lambda *args, **_: started.append(args) or 0)
    assert train.main(["--curriculum", "Demo", "--device", "cpu"]) == 0
    assert len(started) == 1
    words = ["--curriculum", "Demo", "--device", "cpu", "--set", many]
    refused(monkeypatch, capsys, train, words, "try --set 1500.batch_split=")
    assert len(started) == 1


def test_memory_is_that_of_the_machine(monkeypatch, tmp_path):
    there = machine.memory_bytes(torch.device("cpu"))
    assert 2**28 < there < 2**45
    (tmp_path / "memory.max").write_text("123456789\n")
    monkeypatch.setattr(machine, "CGROUP_LIMIT", tmp_path / "memory.max")
    assert machine.memory_bytes(torch.device("cpu")) == 123456789
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.memory_bytes(torch.device("cpu")) >= there
