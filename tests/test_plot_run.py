"""The plot of a run: the entries read from a log, and the picture written."""

import json

import numpy as np
import pytest
from PIL import Image

import plot_run
from system.errors import UsageError


def write(folder, entries, tail=""):
    folder.mkdir(exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries) + tail)


def entry(step, **more):
    return {"step": step, "image_size": 16 if step < 50 else 32, "d_real": 0.5, "d_fake": 1.0,
            "generator_lr": 1e-4, "discriminator_lr": 1e-3, **more}  # fmt: skip


def test_steps_done_twice_count_once_and_a_torn_line_is_left_out(tmp_path):
    log = [entry(10), entry(20), entry(30), {"step": 20, "resumed": True}, entry(30, d_real=0.25)]
    write(tmp_path, log, tail='{"step": 40, "d_re')
    entries = plot_run.read_log(tmp_path)
    steps, values = plot_run.curve(entries, "d_real")
    assert steps.tolist() == [10, 20, 30]
    assert values.tolist() == [0.5, 0.5, 0.25]


def test_many_points_are_averaged_in_groups_and_infinities_left_out():
    entries = [{"step": i, "x": float(i % 2)} for i in range(4000)] + [{"step": 4000, "x": None}]
    steps, values = plot_run.curve(entries, "x")
    assert len(steps) == plot_run.ROUGH_SHARE
    assert np.allclose(values, 0.5)
    assert np.isclose(steps.mean(), 1999.5)


def test_stages_begin_where_the_size_changes():
    starts = plot_run.stage_starts([entry(step) for step in range(10, 100, 10)])
    assert starts == {10: 16, 50: 32}


def test_the_picture_shows_a_panel_for_what_is_logged(tmp_path, capsys):
    write(tmp_path, [entry(step, images_per_second=40.0) for step in range(10, 100, 10)])
    assert plot_run.main([str(tmp_path)]) == 0
    three = size_of(tmp_path / "run.png")
    assert capsys.readouterr().out.strip() == str(tmp_path / "run.png")
    first = (tmp_path / "run.png").read_bytes()
    plot_run.main([str(tmp_path)])
    assert (tmp_path / "run.png").read_bytes() == first
    write(tmp_path, [entry(10, fid=30.0, images_per_second=40.0)])
    plot_run.main([str(tmp_path)])
    four = size_of(tmp_path / "run.png")
    assert (three, four) == ((900, 660), (900, 880))


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


@pytest.mark.parametrize("entries", [None, [], [{"step": 3, "saved": True}]])
def test_nothing_to_draw_is_one_line(tmp_path, entries):
    if entries is not None:
        write(tmp_path, entries)
    with pytest.raises(UsageError, match=r"log\.jsonl"):
        plot_run.main([str(tmp_path)])
