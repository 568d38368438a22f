import contextlib
import errno
import json
import os
import signal
import tempfile
import time
from pathlib import Path

import cache_worker
import faults
import numpy as np
import pytest
from faults import wait_for

from image_io import cache
from image_io.cache import cached
from image_io.files import Skipped
from system import files, machine, screen
from system.errors import UsageError
from system.outputs import OUTPUTS_FILE, list_outputs, listed_outputs

ROOT = Path(__file__).parents[1]


def squares(values, image_size=4):
    return [np.full((3, image_size, image_size), value, np.uint8) for value in values]


def blocks_of(*blocks):
    return lambda: (block for block in blocks)


def forbidden():
    raise AssertionError("must not be called")
    yield


def open_cache(folder, blocks, key="key", num_images=3, image_size=4):
    return cached(
        folder, key, blocks, num_images=num_images, image_size=image_size, show_progress=False
    )


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_images_are_made_once_and_read_back(tmp_path):
    folder = tmp_path / "new" / "cache"
    make = blocks_of(squares([1, 2]), [Skipped("a.jpg", "why"), *squares([3])])
    for blocks in [make, forbidden]:
        entry = open_cache(folder, blocks, num_images=4)
        assert entry.pixels.shape == (3, 3, 4, 4)
        assert entry.pixels[:, 0, 0, 0].tolist() == [1, 2, 3]
        assert not entry.pixels.flags.writeable
        assert entry.skipped == (Skipped("a.jpg", "why"),)
    assert names(folder) == ["key"]


def test_a_read_only_cache_is_read(tmp_path, monkeypatch):
    open_cache(tmp_path, blocks_of(squares([1, 2, 3])))
    monkeypatch.setattr(cache, "locked", forbidden)
    assert len(open_cache(tmp_path, forbidden).pixels) == 3


def cut_pixels(entry):
    os.truncate(entry / "pixels.u8", 100)


def grow_pixels(entry):
    with (entry / "pixels.u8").open("ab") as file:
        file.write(b"x")


def other_count(entry):
    meta = json.loads((entry / "meta.json").read_text())
    (entry / "meta.json").write_text(json.dumps(meta | {"count": 2}))


@pytest.mark.parametrize(
    "damage",
    [
        cut_pixels,
        grow_pixels,
        other_count,
        lambda entry: (entry / "pixels.u8").unlink(),
        lambda entry: (entry / "meta.json").unlink(),
        lambda entry: (entry / "meta.json").write_text(""),
        lambda entry: (entry / "meta.json").write_text("[]"),
        lambda entry: (entry / "meta.json").write_text('{"count": -1, "skipped": []}'),
        lambda entry: (entry / "meta.json").write_bytes(b"\xff\xfe"),
    ],
)
def test_a_damaged_entry_is_made_again(tmp_path, damage):
    open_cache(tmp_path, blocks_of(squares([1, 2, 3])))
    damage(tmp_path / "key")
    entry = open_cache(tmp_path, blocks_of(squares([4, 5, 6])))
    assert entry.pixels[:, 0, 0, 0].tolist() == [4, 5, 6]
    assert len(open_cache(tmp_path, forbidden).pixels) == 3
    assert names(tmp_path) == ["key"]


def test_an_error_half_way_leaves_nothing(tmp_path):
    for error in [UsageError("too many"), KeyboardInterrupt()]:

        def failing(error=error):
            yield squares([1])
            raise error

        with pytest.raises(type(error)):
            open_cache(tmp_path, failing)
        assert names(tmp_path) == []
    assert len(open_cache(tmp_path, blocks_of(squares([1, 2, 3]))).pixels) == 3


def test_leftovers_of_this_entry_alone_are_removed(tmp_path):
    for name in ["key.tmp-1-ab", "other.tmp-1-ab", "key2", "mine"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "pixels.u8").write_bytes(b"half")
    open_cache(tmp_path, blocks_of(squares([1, 2, 3])))
    assert names(tmp_path) == ["key", "key2", "mine", "other.tmp-1-ab"]


def test_without_locks_the_first_to_finish_wins_and_nothing_is_removed(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    (tmp_path / "key.tmp-1-ab").mkdir()

    def overtaken():
        yield squares([1, 2])
        open_cache(tmp_path, blocks_of(squares([4, 5, 6])))
        yield squares([3])

    assert open_cache(tmp_path, overtaken).pixels[:, 0, 0, 0].tolist() == [4, 5, 6]
    assert names(tmp_path) == ["key", "key.tmp-1-ab"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file/cache.*--cache_dir"):
        open_cache(tmp_path / "file" / "cache", forbidden)


def test_too_little_room_is_seen_before_the_work(tmp_path):
    with pytest.raises(UsageError, match="needs .* GB, but .* GB left.*--cache_dir"):
        open_cache(tmp_path, forbidden, num_images=10**12)


def test_a_disk_that_fills_up_is_named_and_left_clean(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache.os, "fsync", full)
    with pytest.raises(UsageError, match="No space left.*--cache_dir"):
        open_cache(tmp_path, blocks_of(squares([1, 2, 3])))
    assert names(tmp_path) == []


def no_maps(monkeypatch, *modes):
    plain = np.memmap

    def memmap(file, dtype, mode, **options):
        if mode in modes:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return plain(file, dtype, mode, **options)

    monkeypatch.setattr(cache.np, "memmap", memmap)


@pytest.mark.parametrize("modes", ["r", "rc"])
def test_a_file_system_without_maps(tmp_path, monkeypatch, modes):
    no_maps(monkeypatch, *modes)
    for make in [blocks_of(squares([1, 2, 3])), forbidden]:
        pixels = open_cache(tmp_path, make).pixels
        assert pixels[:, 0, 0, 0].tolist() == [1, 2, 3]
        assert not pixels.flags.writeable


def test_without_maps_too_little_memory_is_seen_before_the_work(tmp_path, monkeypatch):
    no_maps(monkeypatch, "r", "c")
    monkeypatch.setattr(machine, "memory_bytes", lambda device: 100)
    with pytest.raises(UsageError, match="maps no files; reading the image cache.*memory"):
        open_cache(tmp_path, forbidden)
    assert names(tmp_path) == []


@contextlib.contextmanager
def another_user():
    """Act on files as a user without rights."""
    os.setresgid(65534, 65534, 0)
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)


@pytest.fixture
def shared():
    """Make a folder that other users can reach, which the temporary folder of pytest is not."""
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root can act as another user")
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def test_users_list_their_pictures_in_one_folder(shared):
    list_outputs(shared, ["a.png"])
    (shared / OUTPUTS_FILE).chmod(0o644)
    with another_user(), pytest.raises(PermissionError, match=OUTPUTS_FILE):
        list_outputs(shared, ["b.png"])  # the folder is closed to them
    shared.chmod(0o777)
    with another_user():
        list_outputs(shared, ["b.png"])
    assert listed_outputs((shared / OUTPUTS_FILE).read_bytes()) == {b"a.png", b"b.png"}
    assert names(shared) == [OUTPUTS_FILE]


@pytest.mark.parametrize("mode", [0o755, 0o1777])
def test_another_user_waits_for_the_work_and_reads_it(shared, mode):
    worker = start(shared, "owner", num_blocks=10)
    assert wait_for((shared / "owner.started").exists, worker)
    os.chmod(shared / "cache", mode)
    with another_user():
        pixels = open_cache(shared / "cache", forbidden, num_images=10).pixels
    assert pixels[:, 0, 0, 0].tolist() == list(range(10))
    worker.communicate(timeout=60)
    with another_user():
        open_cache(shared / "cache", forbidden)
        if mode == 0o755:
            with pytest.raises(UsageError, match="Permission denied.*--cache_dir"):
                open_cache(shared / "cache", forbidden, "other")


def test_the_lock_of_another_user_who_was_killed(shared):
    worker = start(shared, "owner", num_blocks=1000)
    assert wait_for((shared / "owner.started").exists, worker)
    os.chmod(shared / "cache", 0o1777)
    worker.kill()
    worker.communicate()
    assert (shared / "cache" / "key.lock").exists()
    with another_user():
        assert len(open_cache(shared / "cache", blocks_of(squares([1, 2, 3]))).pixels) == 3


def test_what_another_user_has_written_is_not_dropped(shared):
    made = cached(shared, "key", blocks_of(squares([1])), num_images=1, image_size=4,
                  show_progress=False, source="photos").pixels.tolist()  # fmt: skip
    os.chmod(shared, 0o777)
    with another_user():
        assert "removed 0 unused entries" in cache.drop_unused(shared, "photos", [])
    assert open_cache(shared, forbidden, num_images=1).pixels.tolist() == made
    assert cache.drop_unused(shared, "photos", []).startswith("image cache: removed 1 ")


def test_a_bar_shows_rate_and_time_left(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(screen, "LOG_SECONDS", 0.0)
    make = blocks_of(squares([1, 2]), squares([3]))
    cached(tmp_path, "key", make, num_images=3, image_size=4, show_progress=True)
    shown = capsys.readouterr().err
    assert "caching at 4 px: 100%" in shown
    assert "3/3 [00:00<00:00" in shown
    assert "img/s]" in shown
    assert f"image cache: 0.0 MB for 3 pictures at 4 px; all of '{tmp_path}': 0.0 MB" in shown


def start(folder, name, num_blocks):
    return faults.start([folder, name, num_blocks], program=cache_worker.__file__)


def test_two_processes_do_the_work_once(tmp_path):
    workers = [start(tmp_path, name, num_blocks=8) for name in "ab"]
    errors = [worker.communicate(timeout=60)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    assert len(list(tmp_path.glob("*.started"))) == 1
    assert names(tmp_path / "cache") == ["key"]


def test_a_process_that_is_killed_half_way_leaves_the_work_to_the_one_that_waits(tmp_path):
    victim = start(tmp_path, "victim", num_blocks=1000)
    assert wait_for((tmp_path / "victim.started").exists, victim)
    heir = start(tmp_path, "heir", num_blocks=3)
    assert wait_for((tmp_path / "heir.ready").exists, heir)
    time.sleep(0.1)
    assert not (tmp_path / "heir.started").exists()
    assert len(list((tmp_path / "cache").glob("key.tmp-*"))) == 1
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    _, errors = heir.communicate(timeout=60)
    assert heir.returncode == 0, errors
    assert "another process" in errors
    assert names(tmp_path / "cache") == ["key"]
