"""Changes that a resumed run reports: its pictures, curriculum keys and last step."""

import json

import numpy as np
import pytest
from conftest import TINY as PLAIN
from faults import state_of
from PIL import Image
from test_train import run

import curriculums
from config import curriculum
from siren.fused import arithmetic
from system.errors import UsageError
from training import start, state


def photos(folder, count, seed=0):
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    for index in range(count):
        pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return str(folder)


def options_of(folder):
    return json.loads((folder / "options.json").read_text())


def changed(capsys):
    """Return the printed lines that report a change."""
    err = capsys.readouterr().err
    return [line for line in err.splitlines() if line.startswith("changed since the last save")]


@pytest.fixture
def on_photos(tiny, tmp_path, capsys):
    """Make a run of one step on five photos."""
    path = photos(tmp_path / "photos", 5)
    assert run(tiny, tmp_path / "out", "--dataset_path", path, "--max_steps", "1") == 0
    assert not changed(capsys)
    return path


def test_a_run_goes_on_with_its_own_pictures(tiny, on_photos, tmp_path, capsys):
    before = options_of(tmp_path / "out")
    assert before["images"]["4"]["count"] == 5
    assert run(tiny, tmp_path / "out", "--resume", "--max_steps", "2") == 0
    assert run(tiny, tmp_path / "on", "--load_dir", str(tmp_path / "out"), "--max_steps", "3") == 0
    assert not changed(capsys)
    for folder in (tmp_path / "out", tmp_path / "on"):
        assert state_of(folder)["curriculum"]["dataset_path"] == on_photos
        options = options_of(folder)
        assert options["curriculum"]["dataset_path"] == on_photos
        assert options["images"] == before["images"]


def test_other_pictures_are_reported(tiny, on_photos, tmp_path, capsys):
    other = photos(tmp_path / "other", 4)
    words = ["--resume", "--max_steps", "2", "--dataset_path", other]
    assert run(tiny, tmp_path / "out", *words) == 0
    (line,) = changed(capsys)
    assert f"dataset_path {on_photos} -> {other}" in line
    assert "number of pictures 5 -> 4" in line
    photos(tmp_path / "other", 4, seed=1)
    assert run(tiny, tmp_path / "out", "--resume", "--max_steps", "3") == 0
    assert changed(capsys) == ["changed since the last save: the pictures themselves"]


def test_pictures_that_are_gone_are_one_clear_error(tiny, on_photos, tmp_path):
    (tmp_path / "photos").rename(tmp_path / "pictures")
    with pytest.raises(UsageError, match="that the run learned from before: no folder.*photos.*"
                       "give --dataset_path"):  # fmt: skip
        run(tiny, tmp_path / "out", "--resume", "--max_steps", "2")
    new = str(tmp_path / "pictures")
    words = ["--resume", "--max_steps", "2", "--set", f"dataset_path={new}"]
    assert run(tiny, tmp_path / "out", *words) == 0
    assert state_of(tmp_path / "out")["curriculum"]["dataset_path"] == new


def test_changed_keys_are_one_line(tiny, tmp_path, capsys):
    words = ["--set", "fov=12", "--set", "0.batch_size=2"]
    run(tiny, tmp_path / "out", "--max_steps", "1", *words)
    assert not changed(capsys)
    assert run(tiny, tmp_path / "out", "--max_steps", "2", "--resume", "--seed", "4") == 0
    (line,) = changed(capsys)
    found = line.removeprefix("changed since the last save: ").split(", ")
    assert found == ["fov 12 -> 30", "0.batch_size 2 -> 3", "seed 0 -> 4"]


def test_stages_and_the_end_are_compared():
    before = curriculum.build("Tiny", PLAIN)
    assert start.changes(before, before) == []
    source = {key: value for key, value in PLAIN.items() if key != 6}
    now = curriculum.build("Other", {**source, 9: PLAIN[0], "fov": 12.5, "white_back": False})
    assert start.changes(before, now) == [
        *("curriculum Tiny -> Other", "fov 12 -> 12.5", "white_back True -> False"),
        *("stage 9 none -> 8 px", "end 6 -> none"),
    ]


def test_another_curriculum_keeps_the_pictures_that_it_names():
    before = curriculum.build("A", {**PLAIN, "dataset_path": "a"})
    for (name, own), expected in {
        ("A", None): "a", ("A", "b"): "a", ("B", None): "a", ("B", "b"): "b",
    }.items():  # fmt: skip
        now = curriculum.build(name, {**PLAIN, "dataset_path": own})
        assert start.with_pictures_of(now, before).settings.dataset_path == expected
    bare = curriculum.build("A", PLAIN)
    assert start.with_pictures_of(before, bare) is before


def test_another_curriculum_is_named_where_scales_differ(tiny, tmp_path):
    run(tiny, tmp_path / "out", "--max_steps", "1")
    with (tmp_path / "tiny.py").open("a") as file:
        file.write("Other = {**Tiny, 'box_side': 0.3}\n")
    with pytest.raises(UsageError, match="resume with --curriculum Tiny, with which"):
        run(tiny, tmp_path / "out", "--resume", "--curriculum", "Other")
    with pytest.raises(UsageError, match="resume with --set box_side=0.5"):
        run(tiny, tmp_path / "out", "--resume", "--set", "box_side=0.3")


def test_all_keys_that_a_run_was_trained_with_are_named(tiny, tmp_path):
    free = "--set density_scale=9.0 --set surface_width=None --set eikonal_lambda=0"
    run(tiny, tmp_path / "out", "--max_steps", "1", *free.split())
    with pytest.raises(UsageError, match=f"resume with {free}$"):
        run(tiny, tmp_path / "out", "--resume", "--max_steps", "2")
    run(tiny, tmp_path / "out", "--resume", "--max_steps", "2", *free.split())


@pytest.mark.parametrize("name", ["Demo", "Demo64", "Faces128"])
def test_terms_of_every_stage_that_need_a_surface_are_named(name):
    words = state._without_slopes(curriculums.load(name).source).split()
    assert words[::2] == ["--set"] * (len(words) // 2)
    ends = {"Demo": [3400], "Demo64": [3400, 4600], "Faces128": [3400, 4600, 6000]}[name]
    assert words[1::2] == ["eikonal_lambda=0", *(f"{k}.smoothness_lambda=0" for k in ends)]
    free = curriculums.load(name, overrides=[*words[1::2], "surface_width=None"])
    assert free.at(ends[0]).smoothness_lambda == 0
    assert curriculums.load(name).at(ends[0]).smoothness_lambda > 0


STAGES = {
    "two stages": {0: {**PLAIN[0], "batch_size": 3}, 3: {**PLAIN[0], "batch_size": 2}, 6: {}},
    "no end": {0: {**PLAIN[0], "batch_size": 3}, 3: {**PLAIN[0], "batch_size": 2}},
}


@pytest.mark.parametrize(
    ("stages", "first", "images", "limits", "expected"),
    [
        ("two stages", 0, 7, (None, None), (6, "the end of the schedule")),
        ("two stages", 0, 7, (4, None), (4, "--max_steps 4")),
        ("two stages", 0, 7, (40, 3000), (6, "the end of the schedule")),
        ("two stages", 0, 7, (None, 1), (3, "--n_epochs 1 over 7 pictures")),  # 3 + 3 + 3
        ("two stages", 0, 5, (None, 2), (4, "--n_epochs 2 over 5 pictures")),  # 3 + 3 + 3 + 2
        ("two stages", 2, 5, (None, 1), (4, "--n_epochs 1 over 5 pictures")),  # 3 + 2
        ("no end", 0, 7, (None, None), (None, "")),
        ("no end", 100, 7, (None, 3000), (100 + 10500, "--n_epochs 3000 over 7 pictures")),
    ],
)
def test_the_earliest_limit_ends_a_run(stages, first, images, limits, expected):
    plain = {key: value for key, value in PLAIN.items() if not isinstance(key, int)}
    max_steps, n_epochs = limits
    found = curriculum.build("Tiny", {**plain, **STAGES[stages]}).ending(
        first_step=first, num_images=images, world_size=1, max_steps=max_steps, n_epochs=n_epochs
    )
    assert found == expected
    assert found.is_reached(10**9) == (expected[0] is not None)


def test_the_last_line_and_a_dry_run_say_what_ends_a_run(tiny, tmp_path, capsys):
    words = ["--n_epochs", "1"]
    assert run(tiny, tmp_path / "out", "--dry_run", *words) == 0
    assert "ends at step 3: --n_epochs 1 over 7 pictures\n" in capsys.readouterr().out
    run(tiny, tmp_path / "out", *words)
    assert "finished at step 3 (--n_epochs 1 over 7 pictures): " in capsys.readouterr().err
    run(tiny, tmp_path / "out", "--resume", "--dry_run", *words)
    assert "ends at step 6: the end of the schedule\n" in capsys.readouterr().out
    run(tiny, tmp_path / "out", "--resume", "--max_steps", "4")
    assert "finished at step 4 (--max_steps 4): " in capsys.readouterr().err
    run(tiny, tmp_path / "out", "--resume", "--max_steps", "4")
    assert "training ends at step 4: --max_steps 4" in capsys.readouterr().err
    run(tiny, tmp_path / "out", "--resume")
    assert "finished at step 6 (the end of the schedule): " in capsys.readouterr().err


def test_small_pictures_and_few_pictures_are_noted(tiny, tmp_path, capsys):
    path = photos(tmp_path / "photos", 5)
    Image.new("RGB", (20, 7)).save(tmp_path / "photos" / "small.png")
    words = ["--dataset_path", path, "--max_steps", "1", "--set", "white_back=False",
             "--set", "scene_radius=None"]  # fmt: skip
    for folder in ("first", "again"):  # decoded, and then out of the cache
        run(tiny, tmp_path / folder, *words)
        notes = [line for line in capsys.readouterr().err.splitlines() if "note: " in line]
        assert notes == ["note: 1 of 6 pictures are smaller than 8 px and are enlarged"]
    run(tiny, tmp_path / "crop", *words, "--set", "crop=20", "--set", "0.batch_size=7")
    notes = [line for line in capsys.readouterr().err.splitlines() if "note: " in line]
    assert notes == [
        "note: 1 of 6 pictures are smaller than the crop of 20 px; of each the largest square is "
        "taken",
        "note: 6 pictures are fewer than a batch of 7, which repeats some of them",
    ]


@pytest.mark.parametrize("has_them", [True, False])
def test_the_cost_of_bfloat16_is_noted_where_it_is_emulated(
    has_them,
    tiny,  # noqa: F811
    tmp_path,
    capsys,
    monkeypatch,
):
    monkeypatch.setattr(arithmetic, "HAS_BFLOAT16_INSTRUCTIONS", has_them)
    run(tiny, tmp_path / "out", "--max_steps", "1", "--set", "precision=bf16")
    assert ("no bfloat16 instructions" in capsys.readouterr().err) == (not has_them)
