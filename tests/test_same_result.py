"""Same seed, same machine: the same files, byte for byte."""

import hashlib
import json

import pytest
from faults import run, tiny_arguments

import extract_shapes
import render_multiview_images
import render_video
import render_video_interpolation

TIMES = ("images_per_second", "seconds_per_step", "memory_bytes")


def contents(folder):
    """A hash of every file by name, without the times of day in logs."""
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
def test_training_and_previews(tmp_path, processes):
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
    print(f"{processes} processes: {len(found[0])} files are the same, byte for byte")
    assert len(found[0]) >= 5 + 10 + 2 * 5


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (render_multiview_images, ["--seeds", "0", "1", "--image_size", "16", "--depth_map"]),
        (render_video, ["--seeds", "1", "--image_size", "8", "--num_frames", "3"]),
        (render_video_interpolation, ["--image_size", "8", "--num_frames", "2"]),
        (extract_shapes, ["--seed", "0", "--voxel_resolution", "24", "--level", "0",
                          "--format", "mrc,ply,obj,stl,glb"]),
    ],
)  # fmt: skip
def test_renders_frames_and_meshes(tmp_path, tiny_run, command, words):
    if command in (render_video, render_video_interpolation):
        words = [*words, "--format", "frames"]
    found = []
    for name in ("a", "b"):
        out = tmp_path / name
        arguments = [str(tiny_run / "generator.pth"), "--output_dir", str(out), *words]
        assert command.main(arguments) == 0
        found.append(contents(out))
    assert found[0] == found[1]
    print(f"{command.__name__}: {len(found[0])} files are the same, byte for byte")
    assert found[0]
