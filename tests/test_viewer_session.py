"""Visitors of the viewer, without a browser: threads, fields, files, saving."""

import io
import math
import os
import shlex
import threading
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import wait_for
from PIL import Image
from viewer_visits import come, request_of, run_out, shared_of, source_of
from viser import _messages as messages

import viewer
from checkpoint_io import checkpoints
from generators.inversion import FitOptions
from generators.trajectories import Camera, SceneObject
from system.errors import UsageError
from web_viewer import photo_fits, pictures, saving, session, uploads


@pytest.fixture
def shared(tiny_run, tmp_path):
    shared = shared_of(tiny_run, tmp_path / "views")
    yield shared
    shared.saver.shutdown()


class Hook:
    """A lock that calls a function at each release: after each part of a picture."""

    def __init__(self, function):
        self.function, self.count = function, 0

    def __enter__(self):
        self.count += 1

    def __exit__(self, *_):
        self.function(self.count)


def test_pictures_refine_when_nothing_moves(shared):
    visitor, screen = come(shared)
    run_out(visitor)
    sizes = [picture.pixels.shape[1] for picture in screen.pictures]
    assert sizes == [64, 80]
    assert [picture.is_finished for picture in screen.pictures] == [False, True]


def test_a_move_cancels_refinement_and_never_the_first_picture(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "CPU_PART", 1024)  # many parts
    monkeypatch.setattr(session, "coarse_size", lambda *_: 64)

    def after_a_part(count):
        if count % 7 == 0 and len(screen.pictures) < 3:
            angle = 0.001 * count
            visitor.move((math.cos(angle), 0.3, math.sin(angle)), (0, 0, 0), 1.0)

    visitor, screen = come(shared_of(tiny_run, tmp_path, lock=Hook(after_a_part)))
    run_out(visitor)
    sizes = [picture.pixels.shape[1] for picture in screen.pictures]
    assert len(sizes) > 3
    assert sizes == [64] * (len(sizes) - 1) + [80]
    cameras = [picture.request.camera for picture in screen.pictures]
    assert len(set(cameras)) == len(cameras) - 1  # the last was seen twice, quick and finished


def test_each_visitor_has_a_camera_and_a_seed(shared):
    (one, first), (other, second) = come(shared), come(shared)
    one.fill_in({"seed": "9"})
    one.move((0.0, 0.0, 1.0), (0.0, 0.0, 0.0), 1.0)
    run_out(one)
    run_out(other)
    found = [screen.pictures[-1].pixels for screen in (first, second)]
    assert not torch.equal(*found)
    assert first.pictures[-1].request.seed == 9
    assert second.pictures[-1].request == request_of(image_size=80)


def test_who_has_gone_is_shown_nothing(tiny_run, tmp_path):
    visitor, screen = come(shared_of(tiny_run, tmp_path, lock=Hook(lambda _: visitor.end())))
    visitor.render()
    assert screen.pictures == []


def test_visitors_render_at_once_and_their_threads_end(shared, tiny_run):
    """One visitor's long picture does not delay the other's quick pictures."""
    (slow, first), (quick, second) = come(shared), come(shared)
    slow.fill_in({"image_size": "1024", "num_steps": "512"})
    slow.begin()
    wait_for(lambda: first.pictures)
    quick.begin()
    wait_for(lambda: second.pictures and second.pictures[-1].is_finished)
    assert not first.pictures[-1].is_finished
    slow.end()
    os.utime(tiny_run / "ema.pth", (1, 1))  # as if training had written it
    shown = len(second.pictures)
    wait_for(lambda: len(second.pictures) > shown)
    assert second.names == ["generator.pth"]
    quick.end()
    wait_for(lambda: "visitor" not in [thread.name for thread in threading.enumerate()])


def test_a_fault_of_ours_does_not_end_the_visit(shared, monkeypatch, capsys):
    monkeypatch.setattr(session, "quick_steps", lambda saved: 1 / 0)
    visitor, screen = come(shared)
    visitor.begin()
    wait_for(lambda: "ZeroDivisionError" in capsys.readouterr().err)
    monkeypatch.undo()
    visitor.fill_in({"seed": "1"})
    wait_for(lambda: screen.pictures)
    visitor.end()


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"seed": "three"}, "Seed must be a whole number of at least 0, not 'three'"),
        (
            {"seed": str(2**64)},
            "Seed must be at most 9223372036854775807, not '18446744073709551616'",
        ),
        ({"psi": "nan"}, "Truncation psi must be a number from 0 to 1"),
        ({"image_size": "9999"}, "Pixels must be at most 1024, not '9999'"),
        ({"checkpoint": "../../etc/passwd"}, "no checkpoint '../../etc/passwd' in this run"),
        ({"ema": "ema3"}, "generator.pth has no ema3 parameters"),
        ({"fit": "/etc/passwd"}, "no fit '/etc/passwd'"),
        ({"num_steps": "1"}, "Samples per ray must be a whole number of at least 3, not '1'"),
        ({"show": "<b>"}, "show '<b>' is none of color"),
    ],
)
def test_nonsense_in_a_field_is_said_and_changes_nothing(shared, fields, text):
    visitor, screen = come(shared)
    before = visitor.request
    visitor.fill_in(fields)
    assert text in screen.troubles[-1]
    assert visitor.request is before
    visitor.fill_in({"seed": "4"})
    assert screen.troubles[-1] == ""
    assert visitor.request.seed == 4


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


def test_pictures_follow_the_files_as_training_writes_them(shared, tiny_run):
    visitor, screen = come(shared)
    run_out(visitor)
    shown = len(screen.pictures)
    visitor.look_around()
    run_out(visitor)
    assert len(screen.pictures) == shown  # nothing new
    content = (tiny_run / "ema2.pth").read_bytes()
    (tiny_run / "draft").write_bytes(content)
    os.replace(tiny_run / "draft", tiny_run / "ema.pth")
    visitor.look_around()
    run_out(visitor)
    assert len(screen.pictures) > shown
    before, after = (screen.pictures[i].pixels for i in (shown - 1, -1))
    assert not torch.equal(before, after)


def test_a_file_that_has_become_unreadable_leaves_the_last_picture(shared, tiny_run):
    visitor, screen = come(shared)
    run_out(visitor)
    whole = (tiny_run / "ema.pth").read_bytes()
    (tiny_run / "ema.pth").write_bytes(whole[: len(whole) // 2])
    visitor.look_around()
    run_out(visitor)
    assert torch.equal(screen.pictures[-1].pixels, screen.pictures[1].pixels)
    visitor.look_around()
    assert not visitor.is_wanted  # it is not tried again and again


def test_a_checkpoint_that_never_was_readable_is_said(shared, tiny_run):
    (tiny_run / "snapshot_1").mkdir()
    (tiny_run / "snapshot_1" / "generator.pth").write_text("<html>")
    visitor, screen = come(shared)
    visitor.fill_in({"checkpoint": "snapshot_1/generator.pth", "ema": "none"})
    run_out(visitor)
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


def saved_by(visitor, screen, what):
    screen.saved.clear()
    visitor.save(what)
    assert screen.saved.wait(60)
    return screen.steps[-1][0]


def test_a_saved_picture_and_its_command_line_give_the_same_bytes(shared, tmp_path, capsys):
    visitor, screen = come(shared)
    visitor.fill_in({"seed": "5", "psi": 0.55, "show": "normals", "to_seed": "6", "mix": 0.3})
    visitor.move((0.3, 0.5, 0.7), (0.01, 0.0, -0.02), 1.25)
    run_out(visitor)
    assert "saved" in saved_by(visitor, screen, "picture")
    path = tmp_path / "views" / "5_to_6_normals.png"
    shown = screen.pictures[-1].pixels
    saved = path.read_bytes()
    with Image.open(path) as image:
        assert image.size == (100, 80)
        assert np.array_equal(np.asarray(image), shown.permute(1, 2, 0))
    words = shlex.split(visitor.command_line())
    assert words[:2] == ["python", "viewer.py"]
    path.unlink()
    assert viewer.main(words[2:]) == 0
    assert capsys.readouterr().out.strip() == str(path)
    assert path.read_bytes() == saved


def test_a_video_and_a_mesh_are_saved_with_progress(shared, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "VIDEO_FRAMES", 3)
    monkeypatch.setattr(saving, "MESH_RESOLUTION", 16)
    # Nothing in these random fields is opaque enough for a level to be chosen.
    take = partial(saving.mesh_extraction.take_shape, iso_level=0.5)
    monkeypatch.setattr(saving.mesh_extraction, "take_shape", take)
    visitor, screen = come(shared)
    visitor.fill_in({"image_size": "16"})
    saved_by(visitor, screen, "video")
    shares = [share for _, share in screen.steps if share is not None]
    assert shares[0] == 0
    assert 0 < max(shares) < 1
    saved_by(visitor, screen, "mesh")
    assert sorted(path.name for path in (tmp_path / "views").iterdir()) == ["0.glb", "0.mp4"]


def test_one_thing_is_saved_at_a_time_and_nothing_for_who_has_gone(shared, tmp_path, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    def slow(source, request, folder, progress):
        begun.set()
        assert go_on.wait(60)
        progress(0.5)
        folder.mkdir()
        pytest.fail("nobody waits for this")

    monkeypatch.setitem(saving.SAVERS, "picture", slow)
    visitor, screen = come(shared)
    visitor.save("picture")
    assert begun.wait(60)
    visitor.save("picture")
    assert "being done already" in screen.troubles[-1]
    visitor.end()
    go_on.set()
    shared.saver.shutdown()
    assert not (tmp_path / "views").exists()


# A visitor's photo


@pytest.fixture
def _quick_fits(monkeypatch):
    quick = FitOptions(num_candidates=32, num_starts=1, latent_steps=2, film_steps=2)
    monkeypatch.setattr(photo_fits, "EFFORT", quick)


def photo_bytes(size=(24, 16)):
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


def everything_below(folder):
    return {path for path in folder.rglob("*") if path.name != "ema.pth"}


@pytest.mark.usefixtures("_quick_fits")
def test_a_photo_is_fitted_and_its_fit_shown(shared, tmp_path):
    before = everything_below(tmp_path)
    visitor, screen = come(shared)
    visitor.fit(photo_bytes(), "the object, centred")
    assert screen.saved.wait(60)
    written = {path.relative_to(tmp_path) for path in everything_below(tmp_path) - before}
    assert {path.parts[0] for path in written} == {"views"}  # that is --output_dir
    assert {path.name for path in written} >= {"fit.pth", "fit.png", "views.png"}
    shares = [share for text, share in screen.steps if text.startswith("photo: ") and share]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    text = screen.steps[-1][0]
    assert "photo1: " in text
    assert "poor: " in text  # it is noise
    assert screen.fits == ["photo1"]
    visitor.fill_in({"fit": "photo1"})
    run_out(visitor)
    assert screen.troubles[-1] == ""
    words = shlex.split(visitor.command_line())
    path = words[words.index("--fit") + 1]
    assert path == str(tmp_path / "views" / "photo1" / "fit.pth")
    saved = shared.source.open("generator.pth", "ema").saved
    assert shared.fit_cameras["photo1"] == checkpoints.load_fit(Path(path), saved).camera
    screen.saved.clear()
    visitor.fit(photo_bytes(), "the object, centred")
    assert screen.saved.wait(60)
    assert screen.fits == ["photo1", "photo2"]


def chunk(kind, content):
    return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)


def claiming(side):
    """Return a png of some bytes that claims so many pixels per side."""
    header = chunk(b"IHDR", side.to_bytes(4) * 2 + b"\x08\x02\0\0\0")
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b""))


@pytest.mark.parametrize(
    ("content", "shown", "complaint"),
    [
        (b"<script>", "a face", "the photo cannot be read: not a picture"),
        (b"", "a face", "the photo cannot be read: "),
        (photo_bytes()[:200], "a face", "the photo cannot be read: "),
        (claiming(10_000), "a face", "the photo cannot be read: 10000 x 10000 pixels, more than"),
        (claiming(65_536), "a face", "the photo cannot be read: Image size (4294967296 pixels)"),
        (photo_bytes(), "a face", "the photo: no face found"),
        (photo_bytes(), "../../etc", "is none of the object, centred, a face"),
    ],
)
def test_a_photo_that_cannot_be_fitted_is_one_line_and_nothing_is_stored(
    shared, tmp_path, content, shown, complaint
):
    before = everything_below(tmp_path)
    visitor, screen = come(shared)
    visitor.fit(content, shown)
    assert screen.saved.wait(60)
    assert complaint in screen.troubles[-1]
    assert everything_below(tmp_path) == before
    assert screen.fits == []


@pytest.mark.usefixtures("_quick_fits")
def test_one_photo_at_a_time_and_none_of_who_has_left(shared, tmp_path):
    (first, one), (second, other) = come(shared), come(shared)
    block = threading.Event()
    shared.saver.submit(block.wait)
    before = everything_below(tmp_path)
    first.fit(photo_bytes(), "the object, centred")
    first.fit(photo_bytes(), "the object, centred")
    assert "wait for it" in one.troubles[-1]
    second.fit(photo_bytes(), "the object, centred")
    assert other.steps == [("photo: waits", 0.0)]
    first.end()
    second.end()
    block.set()
    shared.saver.submit(lambda: None).result()
    assert everything_below(tmp_path) == before
    assert [screen.fits for screen in (one, other)] == [[], []]


class Gui:
    """Stands for viser's interface to a visitor: keeps the bytes that it is given."""

    def __init__(self):
        self.kept, self.sent = {}, []
        self._websock_interface = self
        self.handlers = {messages.FileTransferStartUpload: [self._handle_file_transfer_start],
                         messages.FileTransferPart: [self._handle_file_transfer_part]}  # fmt: skip

    def unregister_handler(self, kind, handler):
        self.handlers[kind].remove(handler)

    def register_handler(self, kind, handler):
        self.handlers[kind].append(handler)

    def queue_message(self, message):
        self.sent.append(message)

    def _drop_uploads_from_client(self, client):
        self.kept.clear()

    def _handle_file_transfer_start(self, client, message):
        self.kept[message.transfer_uuid] = 0

    def _handle_file_transfer_part(self, client, message):
        self.kept[message.transfer_uuid] += len(message.content)

    def send(self, uuid, size, parts):
        start = messages.FileTransferStartUpload("button", uuid, "x", "image/png", len(parts), size)
        sent = [messages.FileTransferPart("button", uuid, index, bytes(length))
                for index, length in enumerate(parts)]  # fmt: skip
        for message in (start, *sent):
            for handler in self.handlers[type(message)]:
                handler(0, message)


def test_uploads_are_limited_before_they_are_kept(monkeypatch):
    monkeypatch.setattr(uploads, "MAX_BYTES", 2**20)
    gui, troubles = Gui(), []
    uploads.Uploads(gui, troubles.append)
    gui.send("a", 2**20, [2**19, 2**19])
    assert gui.kept == {"a": 2**20}
    gui.send("b", 10, [4])
    assert gui.kept == {"b": 4}  # one at a time
    gui.send("c", 3 * 2**20, [2**20] * 3)
    assert gui.kept == {}
    assert troubles == ["the photo has 3 MiB, at most 1 are taken"]
    assert gui.sent[-1].transferred_bytes == gui.sent[-1].total_bytes
    gui.send("d", 10, [4, 2**20])  # more than it says
    assert gui.kept == {}
    assert len(troubles) == 1
