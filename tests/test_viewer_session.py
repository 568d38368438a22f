"""Visitors of the viewer, without a browser: turns, fields, files, saving."""

import math
import os
import shlex
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from viewer_visits import Screen, request_of, run_out, shared_of, source_of

import viewer
from checkpoint_io import checkpoints
from generators.trajectories import Camera, SceneObject
from geometry.mesh_extraction import Wanted
from system.errors import UsageError
from web_viewer import pictures as viewer_pictures
from web_viewer import saving
from web_viewer.session import Session


@pytest.fixture
def visit(tiny_run, tmp_path):
    """A function that lets a visitor come; with the turns of all."""
    shared = shared_of(tiny_run, tmp_path / "views")

    def come():
        screen = Screen()
        session = Session(shared, screen)
        session.begin()
        return session, screen

    yield come, shared.turns
    shared.saver.shutdown()


def test_pictures_refine_when_nothing_moves(visit):
    come, turns = visit
    _, screen = come()
    run_out(turns)
    sizes = [picture.pixels.shape[1] for picture in screen.pictures]
    assert sizes == [64, 80]
    assert [picture.is_finished for picture in screen.pictures] == [False, True]


def test_a_move_cancels_refinement_and_never_the_first_picture(visit, monkeypatch):
    monkeypatch.setattr(viewer_pictures, "CPU_PART", 1024)  # many parts
    monkeypatch.setattr(viewer_pictures, "coarse_size", lambda *_: 64)
    come, turns = visit
    session, screen = come()
    for step in range(4000):
        if not turns.step():
            break
        if step % 7 == 0 and len(screen.pictures) < 3:
            angle = 0.001 * step
            session.move((math.cos(angle), 0.3, math.sin(angle)), (0, 0, 0), 1.0)
    sizes = [picture.pixels.shape[1] for picture in screen.pictures]
    assert len(sizes) > 3
    assert sizes == [64] * (len(sizes) - 1) + [80]
    eyes = [picture.request.eye for picture in screen.pictures]
    assert len(set(eyes)) == len(eyes) - 1  # the last was seen twice, quick and finished


def test_each_visitor_has_a_camera_and_a_seed(visit):
    come, turns = visit
    (one, first), (_, second) = come(), come()
    one.fill_in({"seed": "9"})
    one.move((0.0, 0.0, 1.0), (0.0, 0.0, 0.0), 1.0)
    run_out(turns)
    pictures = [screen.pictures[-1].pixels for screen in (first, second)]
    assert not torch.equal(*pictures)
    assert first.pictures[-1].request.seed == 9
    assert second.pictures[-1].request == request_of(image_size=80)


def test_who_has_gone_is_shown_nothing(visit):
    come, turns = visit
    session, screen = come()
    turns.step()
    session.end()
    run_out(turns)
    assert screen.pictures == []


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"seed": "three"}, "Seed must be a whole number of at least 0, not 'three'"),
        (
            {"seed": str(2**64)},
            "Seed must be at most 9223372036854775807, not '18446744073709551616'",
        ),
        ({"psi": "nan"}, "Truncation psi must be a number from 0 to 1"),
        ({"image_size": "9999"}, "Pixels 9999: must be from 1 to 1024"),
        ({"checkpoint": "../../etc/passwd"}, "no checkpoint '../../etc/passwd' in this run"),
        ({"ema": "ema3"}, "generator.pth has no ema3 parameters"),
        ({"fit": "/etc/passwd"}, "no fit '/etc/passwd'"),
        ({"num_steps": "1"}, "Samples per ray 1: must be from 3 to 512"),
        ({"show": "<b>"}, "show <b>: choose one of color"),
    ],
)
def test_nonsense_in_a_field_is_said_and_changes_nothing(visit, fields, text):
    come, _ = visit
    session, screen = come()
    before = session.request
    session.fill_in(fields)
    assert text in screen.troubles[-1]
    assert session.request is before
    session.fill_in({"seed": "4"})
    assert screen.troubles[-1] == ""
    assert session.request.seed == 4


# Files


def snapshot(run, folder):
    folder.mkdir()
    for target in ("generator", "ema"):
        (folder / f"{target}.pth").write_bytes((run / "ema2.pth").read_bytes())


def test_the_picker_lists_the_runs_own_checkpoints(tiny_run, tmp_path):
    snapshot(tiny_run, tiny_run / "snapshot_000004")
    snapshot(tiny_run, tiny_run / "snapshot_000006")
    snapshot(tiny_run, tmp_path / "elsewhere")
    (tiny_run / "linked").symlink_to(tmp_path / "elsewhere")
    source = source_of(tiny_run)
    names = ["generator.pth", "snapshot_000006/generator.pth", "snapshot_000004/generator.pth"]
    assert source.names() == names
    assert source.averages(names[0]) == ["ema", "ema2", "none"]
    assert source.averages(names[1]) == ["ema", "none"]
    for name in ("linked/generator.pth", "../elsewhere/generator.pth", "ema.pth"):
        with pytest.raises(UsageError, match="no checkpoint"):
            source.open(name, "none")


def test_pictures_follow_the_files_as_training_writes_them(visit, tiny_run):
    come, turns = visit
    session, screen = come()
    run_out(turns)
    shown = len(screen.pictures)
    session.look_around()
    run_out(turns)
    assert len(screen.pictures) == shown  # nothing new
    content = (tiny_run / "ema2.pth").read_bytes()
    (tiny_run / "draft").write_bytes(content)
    os.replace(tiny_run / "draft", tiny_run / "ema.pth")
    session.look_around()
    run_out(turns)
    assert len(screen.pictures) > shown
    before, after = (screen.pictures[i].pixels for i in (shown - 1, -1))
    assert not torch.equal(before, after)


def test_a_file_that_has_become_unreadable_leaves_the_last_picture(visit, tiny_run):
    come, turns = visit
    session, screen = come()
    run_out(turns)
    whole = (tiny_run / "ema.pth").read_bytes()
    (tiny_run / "ema.pth").write_bytes(whole[: len(whole) // 2])
    session.look_around()
    run_out(turns)
    assert torch.equal(screen.pictures[-1].pixels, screen.pictures[1].pixels)
    assert not session._pictures.is_outdated()  # it is not tried again and again


def test_a_checkpoint_that_never_was_readable_is_said(visit, tiny_run):
    come, turns = visit
    (tiny_run / "snapshot_1").mkdir()
    (tiny_run / "snapshot_1" / "generator.pth").write_text("<html>")
    session, screen = come()
    session.fill_in({"checkpoint": "snapshot_1/generator.pth", "ema": "none"})
    run_out(turns)
    assert "is a web page" in screen.troubles[-1]
    assert screen.pictures == []


def test_a_fit_is_shown_in_place_of_a_seed(tiny_run, tmp_path):
    saved = source_of(tiny_run).open("generator.pth", "ema").saved
    film = saved.generator.mapping(torch.randn(1, 6))
    path = tmp_path / "cat.pth"
    checkpoints.save_fit(path, SceneObject("cat", film, Camera(1.0, 1.2, 11.0)), saved)
    source = source_of(tiny_run, fits={"cat": path})
    found = source.film(source.open("generator.pth", "ema"), request_of(fit="cat"))
    assert torch.equal(found.frequencies, film.frequencies)
    with pytest.raises(UsageError, match="another generator"):
        source.film(source.open("generator.pth", "none"), request_of(fit="cat"))


def saved_by(session, screen, what):
    screen.saved.clear()
    session.save(what)
    assert screen.saved.wait(60)
    return screen.steps[-1][0]


def test_a_saved_picture_and_its_command_line_give_the_same_bytes(visit, tmp_path, capsys):
    come, turns = visit
    session, screen = come()
    session.fill_in({"seed": "5", "psi": 0.55, "show": "normals", "to_seed": "6", "mix": 0.3})
    session.move((0.3, 0.5, 0.7), (0.01, 0.0, -0.02), 1.25)
    run_out(turns)
    assert "saved" in saved_by(session, screen, "picture")
    path = tmp_path / "views" / "5_to_6_normals.png"
    shown = screen.pictures[-1].pixels
    saved = path.read_bytes()
    with Image.open(path) as image:
        assert image.size == (100, 80)
        assert np.array_equal(np.asarray(image), shown.permute(1, 2, 0))
    words = shlex.split(session.command_line())
    assert words[:2] == ["python", "viewer.py"]
    path.unlink()
    assert viewer.main(words[2:]) == 0
    assert capsys.readouterr().out.strip() == str(path)
    assert path.read_bytes() == saved


def test_a_video_and_a_mesh_are_saved_with_progress(visit, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "VIDEO_FRAMES", 3)
    monkeypatch.setattr(saving, "MESH_RESOLUTION", 16)
    # Nothing in these random fields is opaque enough for a level to be chosen.
    monkeypatch.setattr(saving, "Wanted", lambda: Wanted(level=0.5))
    come, _ = visit
    session, screen = come()
    session.fill_in({"image_size": "16"})
    saved_by(session, screen, "video")
    shares = [share for _, share in screen.steps if share is not None]
    assert shares[0] == 0
    assert 0 < max(shares) < 1
    saved_by(session, screen, "mesh")
    assert sorted(path.name for path in (tmp_path / "views").iterdir()) == ["0.glb", "0.mp4"]


def test_one_thing_is_saved_at_a_time_and_nothing_for_who_has_gone(visit, tmp_path, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    def slow(source, request, folder, progress, max_points):
        begun.set()
        assert go_on.wait(60)
        progress(0.5)
        folder.mkdir()
        pytest.fail("nobody waits for this")

    monkeypatch.setitem(saving.SAVERS, "picture", slow)
    come, _ = visit
    session, screen = come()
    session.save("picture")
    assert begun.wait(60)
    session.save("picture")
    assert "being saved already" in screen.troubles[-1]
    session.end()
    go_on.set()
    session._shared.saver.shutdown()
    assert not (tmp_path / "views").exists()
