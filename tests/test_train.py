"""The training command on a tiny run: its files, messages and resuming."""

import json
import signal
from pathlib import Path

import faults
import numpy as np
import pytest
import torch
from conftest import WHOLE_SHEET
from faults import assert_same_state, differences, state_of
from PIL import Image

import train
from checkpoint_io import checkpoints
from distributed.collectives import StepTimeouts
from system.errors import UsageError
from training import previews, setup

PREVIEWS = ("fixed", "tilted", "fixed_ema", "tilted_ema", "random")


def run(tiny, output_dir, *more):
    return train.main([*tiny, "--output_dir", str(output_dir), *more])


def test_a_run_writes_what_it_promises(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(previews, "COUNT", WHOLE_SHEET)
    out = tmp_path / "out"
    words = ["--sample_interval", "4", "--model_save_interval", "2", "--keep", "2"]
    assert run(tiny, out, *words) == 0
    names = {path.name for path in out.iterdir()}
    assert {"training_state.pth", "generator.pth", "ema.pth", "ema2.pth", "discriminator.pth",
            "options.json", "log.jsonl", "tensorboard", "dataset.png"} <= names  # fmt: skip
    for step in ("000004", "000006"):
        assert {f"{step}_{kind}.png" for kind in PREVIEWS} <= names
    assert {name for name in names if name.startswith("snapshot")} == {
        "snapshot_00000004", "snapshot_00000006"}  # fmt: skip
    with Image.open(out / "000006_fixed_ema.png") as picture:
        assert picture.size == (20, 20)
    state = state_of(out)
    assert (state["step"], state["images_seen"]) == (6, 3 * 3 + 3 * 2)
    raw, averaged = (checkpoints.read(out / f"{n}.pth", "generator") for n in ("generator", "ema2"))
    critic = checkpoints.read(out / "discriminator.pth", "discriminator")
    assert raw["curriculum"][0]["batch_size"] == 3
    assert differences(dict(raw["state"]), dict(state["generator"])) == []
    assert differences(list(averaged["state"].values()), state["averages"][1]["shadow"]) == []
    assert differences(dict(critic["state"]), dict(state["discriminator"])) == []
    assert [path.name for path in out.glob(".*")] == [".pigan_outputs"]
    options = json.loads((out / "options.json").read_text())
    assert options["field"] == "folded"  # on the CPU in float32
    assert options["curriculum"]["0"]["batch_size"] == 3
    assert options["versions"]["torch"] == torch.__version__
    assert list((out / "tensorboard").iterdir())


def test_two_and_two_steps_equal_four(tiny, tmp_path):
    previews = ["--sample_interval", "4"]
    run(tiny, tmp_path / "whole", "--max_steps", "4", "--seed", "5", *previews)
    run(tiny, tmp_path / "parts", "--max_steps", "2", "--seed", "5")
    run(tiny, tmp_path / "parts", "--max_steps", "4", "--resume", *previews)  # keeps its seed
    assert_same_state(tmp_path / "whole", tmp_path / "parts")
    for kind in PREVIEWS:
        one, other = (tmp_path / name / f"000004_{kind}.png" for name in ("whole", "parts"))
        assert one.read_bytes() == other.read_bytes()
    run(tiny, tmp_path / "moved", "--max_steps", "4", "--load_dir", str(tmp_path / "parts"))
    assert not (tmp_path / "moved").joinpath("generator.pth").exists()  # nothing was left to do
    run(tiny, tmp_path / "first", "--max_steps", "3", "--seed", "5")
    run(tiny, tmp_path / "moved", "--max_steps", "4", "--load_dir", str(tmp_path / "first"))
    assert_same_state(tmp_path / "whole", tmp_path / "moved")


def test_resume_starts_where_there_is_no_run_and_says_when_all_is_done(tiny, tmp_path, capsys):
    for _ in range(2):
        assert run(tiny, tmp_path / "out", "--resume", "--max_steps", "1") == 0
    assert "nothing to do" in capsys.readouterr().err
    assert run(tiny, tmp_path / "out", "--resume", "--max_steps", "2") == 0
    assert "resumes after step 1" in capsys.readouterr().err


def test_set_step(tiny, tmp_path):
    run(tiny, tmp_path / "out", "--set_step", "4", "--max_steps", "5")
    assert state_of(tmp_path / "out")["step"] == 5


def test_a_mistyped_path_names_the_nearest_one(tiny, tmp_path):
    (tmp_path / "photos").mkdir()
    for flag in ("--dataset_path", "--load_dir", "--curriculum_file"):
        with pytest.raises(UsageError, match="Did you mean .*photos"):
            run(tiny, tmp_path / "out", flag, str(tmp_path / "photo"))


def test_a_run_is_not_overwritten_and_a_state_of_other_networks_or_no_state_is_refused(
    tiny, tmp_path
):
    run(tiny, tmp_path / "out", "--max_steps", "1")
    before = (tmp_path / "out" / "training_state.pth").read_bytes()
    with pytest.raises(UsageError, match="holds a run already; use --resume"):
        run(tiny, tmp_path / "out")
    assert (tmp_path / "out" / "training_state.pth").read_bytes() == before
    with pytest.raises(UsageError, match="trained with curriculum Tiny, whose networks must be"):
        run(tiny, tmp_path / "out", "--resume", "--set", "hidden_dim=9")
    complaints = {b"": "is empty", b"<html>": "is a web page", b"PK\x03\x04 cut off": "is cut off"}
    for content, complaint in complaints.items():
        (tmp_path / "out" / "training_state.pth").write_bytes(content)
        with pytest.raises(UsageError, match=complaint):
            run(tiny, tmp_path / "out", "--resume")


def test_a_dry_run_shows_the_pictures_and_trains_nothing(tiny, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(tiny, out, "--dry_run") == 0
    text, noise = capsys.readouterr()
    assert "images: 7 in built-in toy cars" in text
    assert "parameters" in text
    assert f"{3 * 16 * 6:,}" in text  # points per step of the first stage
    assert "7 of 7 pictures are used; the first 7 at 4 x 4 pixels, crop none" in noise
    assert {path.name for path in out.iterdir()} == {"dataset.png", ".pigan_outputs"}
    assert run(tiny, out, "--max_steps", "1") == 0
    before = (out / "options.json").stat().st_mtime_ns, state_of(out)["step"]
    assert run(tiny, out, "--dry_run", "--resume") == 0
    assert ((out / "options.json").stat().st_mtime_ns, state_of(out)["step"]) == before


def test_the_sheet_shows_what_the_discriminator_sees(tiny, tmp_path, capsys):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for number in range(100):
        red = min(3 * number, 255)
        image = Image.new("RGB", (40, 20), (red, 255, 0))
        image.paste((red, 0, 0), (10, 0, 30, 20))  # the largest square
        image.save(photos / f"{number:02}.{'png' if number % 2 else 'tif'}")
    (photos / "notes.txt").write_text("")
    (photos / "empty.png").write_bytes(b"")
    run(tiny, out, "--dataset_path", str(photos), "--max_steps", "1")
    noise = capsys.readouterr().err
    for text in (
        f"note: not used in '{photos}': no pictures that Pillow can read: 1 .txt\n",
        "dataset: 100 of 101 pictures are used; the first 64 at 4 x 4 pixels, crop center, flip ",
        "dataset: sizes of files: 40 x 20 (100)\n",
        "dataset: kinds of files: TIFF RGB (50), PNG RGB (50)\n",
    ):
        assert text in noise
    assert noise.count("'empty.png' (empty file)") == 1  # though there are two sizes
    with Image.open(out / "dataset.png") as sheet:
        assert sheet.size[0] == 512
        seen = np.array(sheet)[32:512:64, 32:512:64]  # each enlarged to 64 pixels
    np.testing.assert_allclose(seen[..., 0].flatten().astype(int), 3 * np.arange(64), atol=1)
    assert seen[..., 1].max() < 50


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--dataset_path", "{damaged}"], "2 of 3 pictures .* cannot be read: 'a.jpg'"),
        (["--dataset_path", "{empty}"], "no pictures at"),
        (["--set", "precision=fp16"], "precision fp16 needs a CUDA device"),
        (["--set", "0.batch_size=100000000"], "stage 0: needs about"),
        (["--resume", "--set", "hidden_dim=9"], "whose networks must be"),
        ([], "holds a run already"),
    ],
)
def test_a_dry_run_refuses_what_training_refuses(tiny, tmp_path, words, text):
    for name in ("damaged", "empty"):
        (tmp_path / name).mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "damaged" / name).write_bytes(b"<html>")
    Image.new("RGB", (8, 8)).save(tmp_path / "damaged" / "c.jpg")
    folders = {name: tmp_path / name for name in ("damaged", "empty")}
    out = tmp_path / ("run" if words[:1] in ([], ["--resume"]) else "out")
    if out.name == "run":
        run(tiny, out, "--max_steps", "1")
    for more in (["--dry_run"], ["--max_steps", "2"]):
        with pytest.raises(UsageError, match=text):
            run(tiny, out, *[word.format(**folders) for word in words], *more)


def test_a_run_in_the_folder_of_its_photos_does_not_learn_its_previews(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("photo.png")
    words = ["--dataset_path", ".", "--sample_interval", "1"]
    for number, folder in enumerate(("out", "photos", "."), 1):
        Path(folder).mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(f"{folder}/photo_{number}.png")  # a photo that was there
        for more in (["--max_steps", "1"], ["--max_steps", "2", "--resume"]):
            assert run(tiny, Path(folder), *words, *more) == 0
            images = json.loads((Path(folder) / "options.json").read_text())["images"]
            assert images["4"]["count"] == 1 + number


def test_the_list_of_curricula(capsys):
    assert train.main(["--list_curricula"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("CelebA128", "CARLA", "Demo", "32 -> 64 -> 128"))


def test_ten_bad_updates_in_a_row_end_the_run(tmp_path, capsys, monkeypatch):
    tiny = faults.tiny_arguments(tmp_path)
    run(tiny, tmp_path / "out", "--max_steps", "1")
    before = (tmp_path / "out" / "training_state.pth").read_bytes()
    build = setup.build_game

    def broken(place, options, seed):
        game = build(place, options, seed)
        generate = game.generate
        game.generate = lambda *args, **kwargs: (
            lambda fakes: fakes._replace(images=fakes.images * float("nan"))
        )(generate(*args, **kwargs))
        return game

    monkeypatch.setattr(setup, "build_game", broken)
    more = ["--set", "3.batch_size=1", "--sample_interval", "50"]
    assert run(tiny, tmp_path / "out", "--resume", "--max_steps", "90", *more) == 1
    message = capsys.readouterr().err
    assert "10 updates of the generator in a row were not finite, up to step 11" in message
    assert "d_fake" in message
    assert "last good state is" in message
    assert (tmp_path / "out" / "training_state.pth").read_bytes() == before


@pytest.mark.parametrize(
    ("signum", "program"),
    [(signal.SIGINT, faults.ROOT / "train.py"), (signal.SIGTERM, faults.FAULTY)],
)
def test_a_signal_saves_and_tells_how_to_go_on(tmp_path, signum, program):
    out, words = tmp_path / "out", faults.tiny_arguments(tmp_path)
    process = faults.start([*words, "--output_dir", out], program=program)
    faults.wait_for(lambda: faults.entries_of(out), process)
    process.send_signal(signum)
    code, message = faults.finish(process)
    assert code == 128 + signum
    state = state_of(out)
    assert f"saved at step {state['step']}" in message
    assert "--resume" in message
    assert "Traceback" not in message


def test_two_processes_resume_exactly_and_stay_equal(tiny, tmp_path):
    two = [*tiny, "--num_processes", "2", "--output_dir"]
    faults.complete([*two, tmp_path / "whole", "--max_steps", "4"])
    faults.complete([*two, tmp_path / "parts", "--max_steps", "2"])
    faults.complete([*two, tmp_path / "parts", "--max_steps", "4", "--resume"])
    whole = state_of(tmp_path / "whole")
    assert differences(whole, state_of(tmp_path / "parts")) == []
    assert whole["images_seen"] == 2 * (3 * 3 + 2)


def test_steps_in_which_kernels_are_compiled_wait_patiently(tiny, tmp_path, monkeypatch):
    begun, step = [], StepTimeouts.step

    def watched(self, kernels, num_patient):
        begun.append(kernels)
        return step(self, kernels, num_patient)

    monkeypatch.setattr(StepTimeouts, "step", watched)
    words = ["--set", "density_noise_steps=3", "--max_steps", "5"]
    assert run(tiny, tmp_path / "out", *words) == 0
    changes = [n for n in range(1, 5) if begun[n] != begun[n - 1]]
    assert changes == [3]  # the first step without noise
