"""Every command that writes, on a full disk: one line that names the file, exit code 1, no partial
or temporary file; earlier files and the user's own files stay."""

import errno
import shutil
import sys
from typing import NamedTuple

import published_files
import pytest
import torch
from faults import fill, limited
from PIL import Image

import convert_checkpoint
import eval_metrics
import extract_shapes
import fid_evaluation
import inverse_render
import plot_run
import prepare_photos
import render_multiview_images
import render_video
import render_video_interpolation
import viewer
from geometry import mesh_extraction
from image_io import video
from metrics import report
from rendering import fit_batch
from system import flags
from system.outputs import OUTPUTS_FILE

LIMITS = [0, 3000, 10**6]  # bytes of one file
ROOMS = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256]  # pages of a file system
PAGE = 4096
DIARY = "diary"  # a file of the user's; without a suffix, as fid_evaluation.py looks at those
TINY = ["--image_size", "16", "--ray_step_multiplier", "1"]
SHORT = [*TINY, "--num_frames", "3", "--depth_map"]
FIT = ["--candidates", "2", "--starts", "1", "--latent_steps", "1", "--film_steps", "1"]
MESH = ["--seed", "0", "--level", "0", "--voxel_resolution", "12"]
MEASURED = ["--num_images", "12", "--real_image_dir", "reals", "--inception_weights",
            "weights.pth", "--any_inception_weights", "--cache_dir", "OUT/cache"]  # fmt: skip


class Case(NamedTuple):
    """A command, its arguments, and whether it replaces files of an earlier run."""

    command: object
    words: list
    replaces: bool = True


COMMANDS = {
    "pictures": Case(render_multiview_images, ["GENERATOR", "--seeds", "0", "1", *TINY]),
    "mp4": Case(render_video, ["GENERATOR", "--seeds", "0", "1", *SHORT]),
    "gif": Case(render_video, ["GENERATOR", "--seeds", "0", *SHORT, "--format", "gif"]),
    "webp": Case(render_video, ["GENERATOR", "--seeds", "0", *SHORT, "--format", "webp"]),
    "frames": Case(render_video, ["GENERATOR", "--seeds", "0", *SHORT, "--format", "frames"]),
    "interpolation": Case(render_video_interpolation, ["GENERATOR", *SHORT]),
    "grid": Case(extract_shapes, ["GENERATOR", *MESH, "--format", "mrc"]),
    "meshes": Case(extract_shapes, ["GENERATOR", *MESH, "--format", "glb,ply,obj,stl"]),
    "fit": Case(inverse_render, ["GENERATOR", "photo.png", "--fit_size", "4", *FIT, *SHORT]),
    "fits": Case(inverse_render, ["GENERATOR", "photo.png", "--each", "--fit_size", "4", *FIT,
                                  *TINY]),
    "view": Case(viewer, ["GENERATOR", "--save_picture", "--image_size", "16"]),
    "consistency": Case(eval_metrics, ["GENERATOR", "--consistency", "--num_objects", "1",
                                       "--consistency_size", "8"]),
    "image metrics": Case(eval_metrics, ["GENERATOR", *MEASURED]),
    "real images": Case(fid_evaluation, ["--dataset", "toycars", "--img_size", "8", "--num_imgs",
                                         "5"], replaces=False),
    "conversion": Case(convert_checkpoint, ["published/generator.pth", "OUT"], replaces=False),
    "preparation": Case(prepare_photos, ["noise*.png", "OUT/run.zip", "--kind", "crop", "--size",
                                         "16"], replaces=False),
    "plot": Case(plot_run, ["run", "--output", "OUT/run.png"]),
}  # fmt: skip


@pytest.fixture
def place(tmp_path, tiny_run, monkeypatch):
    """Return a working folder with the files that the commands read."""
    Image.new("RGB", (8, 8), (200, 40, 40)).save(tmp_path / "photo.png")
    Image.effect_noise((32, 32), 90).save(tmp_path / "noise.png")
    published_files.write_run(tmp_path / "published")
    (tmp_path / "run").mkdir()
    lines = [f'{{"step": {step}, "d_real": 0.5, "g_fake": 0.7}}\n' for step in (10, 20)]
    (tmp_path / "run" / "log.jsonl").write_text("".join(lines))
    monkeypatch.setattr(mesh_extraction, "PREVIEW_SIZE", 24)
    monkeypatch.setattr(report, "SHAPE_RESOLUTION", 12)
    monkeypatch.setattr(fit_batch, "monotonic", lambda: 0.0)  # its seconds are in files
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good").mkdir()
    return tmp_path


def needed(request, name):
    """Set up the fixtures that only some commands need."""
    if name == "image metrics":
        request.getfixturevalue("small_network")
        request.getfixturevalue("reals")


def run(monkeypatch, case, out):
    """Run a command that writes into out; return its exit code."""
    target = (
        []
        if {"OUT", "OUT/run.png", "OUT/run.zip"} & set(case.words)
        else ["--output_dir", str(out)]
    )
    names = {"GENERATOR": "tiny_run/generator.pth"}
    words = [names.get(word, word).replace("OUT", str(out)) for word in case.words]
    monkeypatch.setattr(sys, "argv", [f"{case.command.__name__}.py", *words, *target])
    return flags.run(case.command.main)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def prepared(out, good, case):
    """Write a user's file and the files of an earlier run into out; return its contents."""
    for name in [DIARY, *(good if case.replaces else [])]:
        if "cache" not in name and OUTPUTS_FILE not in name:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(b"earlier")
    return contents(out)


def complaint(monkeypatch, capsys, case, out, good):
    """Run a command on a full disk; return its error, or "" if there was enough space."""
    before = contents(out)
    capsys.readouterr()
    code = run(monkeypatch, case, out)
    error = capsys.readouterr().err
    found = contents(out)
    assert found.pop(DIARY) == b"earlier"
    assert set(before) <= {*found, DIARY}
    for name, content in found.items():
        whole = (good.get(name), before.get(name))
        is_begun = OUTPUTS_FILE in name and content[-1:] == b"\n" and content in whole[0]
        assert content in whole or is_begun, f"{name} is half a file"
    if code == 0:
        assert set(found) >= set(good)
        return ""
    lines = [line for line in error.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert (code, len(lines), "Traceback" in error) == (1, 1, False), error
    return lines[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_files_that_cannot_grow(name, place, request, monkeypatch, capsys, counted):
    needed(request, name)
    case, out = COMMANDS[name], place / "out"
    assert run(monkeypatch, case, place / "good") == 0
    good = contents(place / "good")
    lines = []
    for limit in LIMITS:
        prepared(out, good, case)
        with limited(limit):
            lines.append(complaint(monkeypatch, capsys, case, out, good))
        shutil.rmtree(out)
        if not lines[-1]:
            break
    *refused, last = lines
    assert refused
    assert last == ""
    for line in refused:
        assert line.startswith(f"error: cannot write {out}/")
        assert line.endswith(" (File too large)")
    counted(f"{name}: {len(refused)} limits, {len(set(refused))} files named")


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk(name, place, small_disk, request, monkeypatch, capsys, counted):
    needed(request, name)
    case, out = COMMANDS[name], small_disk / "out"
    assert run(monkeypatch, case, place / "good") == 0
    good = contents(place / "good")
    refused = 0
    for room in ROOMS:
        prepared(out, good, case)
        fill(small_disk, room * PAGE)
        line = complaint(monkeypatch, capsys, case, out, good)
        (small_disk / "filler").unlink()
        shutil.rmtree(out)
        if not line:
            break
        assert line.startswith(f"error: cannot write {out}/")
        assert line.endswith("(No space left on device)")
        refused += 1
    assert refused
    assert not line
    counted(f"{name}: refused with room for less than {room} pages")


def test_a_video_of_many_blocks(small_disk, counted):
    """The encoder writes while frames come and the index at the end; each write may fail."""
    rng = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (12, 3, 64, 64), generator=rng).to(torch.uint8)
    path = small_disk / "a.mp4"
    video.save_video(path, frames, kind="mp4", fps=25)
    needed = -(-path.stat().st_size // PAGE)
    path.write_bytes(b"earlier")
    for room in range(needed):
        fill(small_disk, room * PAGE)
        with pytest.raises(OSError, match="No space left on device") as caught:
            video.save_video(path, frames, kind="mp4", fps=25)
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
        assert path.read_bytes() == b"earlier"
        (small_disk / "filler").unlink()
        assert list(small_disk.iterdir()) == [path]
    counted(f"a video of {needed} pages: no room at any of them")
    assert needed > 4
