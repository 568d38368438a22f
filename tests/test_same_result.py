"""The same seed on the same machine gives the same files, byte for byte."""

import hashlib
import json

import pytest
import torch
from conftest import needs_libraries
from faults import run, tiny_arguments

import eval_metrics
import extract_shapes
import render_multiview_images
import render_video
import render_video_interpolation
from geometry import mesh_extraction
from metrics import inception, report

TIMES = ("images_per_second", "seconds_per_step", "memory_bytes")


def contents(folder):
    """Return a hash of every file by name, without times and the folder's path in logs."""
    result = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or name.startswith(("tensorboard", "cache")):
            continue
        data = path.read_bytes()
        if name == "log.jsonl":
            entries = [json.loads(line) for line in data.splitlines()]
            data = repr([{k: v for k, v in e.items() if k not in TIMES} for e in entries]).encode()
        result[name] = hashlib.sha256(data.replace(str(folder).encode(), b"")).hexdigest()
    return result


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_training_and_previews(tmp_path, processes, counted):
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        out = tmp_path / name / "out"
        arguments = [*tiny_arguments(tmp_path), "--output_dir", out, "--max_steps", "12",
                     "--sample_interval", "6", "--model_save_interval", "6",
                     "--num_processes", processes]  # fmt: skip
        code, error = run(arguments)
        assert code == 0, error
        found.append(contents(out))
    differing = [name for name in found[0] if found[0][name] != found[1].get(name)]
    assert set(found[0]) == set(found[1])
    assert differing == []
    counted(f"{processes} processes: {len(found[0])} files are the same, byte for byte")
    assert len(found[0]) >= 5 + 10 + 2 * 5


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (render_multiview_images, ["--seeds", "0", "1", "--image_size", "16", "--depth_map"]),
        (render_video, ["--image_size", "8", "--num_frames", "3", "--format", "frames"]),
        (render_video, ["--seeds", "1", "--image_size", "8", "--num_frames", "3"]),
        (render_video_interpolation, ["--image_size", "8", "--num_frames", "2", "--depth_map",
                                      "--format", "frames"]),
        (extract_shapes, ["--seed", "0", "--voxel_resolution", "24", "--level", "0",
                          "--format", "mrc,ply,obj,stl,glb"]),
        (eval_metrics, ["--consistency", "--num_objects", "2", "--consistency_size", "12"]),
    ],
)  # fmt: skip
def test_renders_frames_meshes_and_3d_figures(
    tmp_path, tiny_run, monkeypatch, command, words, counted
):
    monkeypatch.setattr(mesh_extraction, "PREVIEW_SIZE", 24)  # what would take long
    monkeypatch.setattr(report, "SHAPE_RESOLUTION", 24)
    found = []
    for name in ("a", "b"):
        out = tmp_path / name
        arguments = [str(tiny_run / "generator.pth"), "--output_dir", str(out), *words]
        assert command.main(arguments) == 0
        found.append(contents(out))
    assert found[0] == found[1]
    counted(f"{command.__name__}: {len(found[0])} files are the same, byte for byte")
    assert found[0]


def measured(tiny_run, folder, weights, *more):
    """Run an evaluation with a new cache; return its files."""
    arguments = [
        *(str(tiny_run / "generator.pth"), "--device", "cpu", "--num_images", "40"),
        *("--real_image_dir", str(tiny_run.parent / "reals"), "--output_dir", str(folder)),
        *("--inception_weights", str(weights), "--any_inception_weights"),
        *("--cache_dir", str(folder / "features"), *more),
    ]
    assert eval_metrics.main(arguments) == 0
    return contents(folder)


def test_image_metrics(tmp_path, tiny_run, small_network, reals, counted):
    weights, _ = small_network
    first, second, chunked = (
        measured(tiny_run, tmp_path / name, weights, *more)
        for name, more in (("a", []), ("b", []), ("c", ["--max_batch_size", "100"]))
    )
    assert first == second == chunked
    assert len(first) == 40 + 1 + 2 + 1
    counted(f"image metrics: {len(first)} files are the same, byte for byte")


@pytest.mark.slow
def test_image_metrics_by_inception_itself(tmp_path, tiny_run, reals, counted):
    """Uses seeded random weights; two processes find the same figures as one."""
    needs_libraries()
    inception.require_torchvision()
    from pytorch_fid import inception as library

    torch.manual_seed(0)
    weights = tmp_path / "random.pth"
    network = library._inception_v3(num_classes=1008, aux_logits=False, weights=None)
    for value in network.parameters():
        if value.ndim > 1:  # signals as strong at the end as at the start, so that images differ
            torch.nn.init.kaiming_normal_(value)
    torch.save(network.state_dict(), weights)
    found = [
        measured(tiny_run, tmp_path / name, weights, "--num_processes", processes, "--port", "0")
        for name, processes in (("a", "1"), ("b", "1"), ("c", "2"))
    ]
    weights.unlink()
    assert found[0] == found[1] == found[2]
    figures = json.loads((tmp_path / "a" / "metrics.json").read_text())["images"]
    assert figures["fid"] > 1e-3
    assert figures["kid_std"] > 0
    counted(f"Inception: {len(found[0])} files are the same, also of two processes")
