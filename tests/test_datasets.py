import itertools
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import limited
from PIL import Image

import datasets
from datasets import (
    DatasetOptions,
    batch_indices,
    dataset_options,
    find_images,
    open_images,
    training_images,
)
from image_io import decoding
from system.errors import UsageError


def write_pictures(folder, count, size=(12, 12)):
    """Write grey pictures whose grey level is their number."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.new("L", size, index).save(folder / f"{index:04}.png")
    return folder


def open_at(path, tmp_path, image_size=4, skipped_file=None, show_progress=False, **options):
    return open_images(
        dataset_options("Images", str(path), **options),
        image_size,
        cache_dir=tmp_path / "cache",
        skipped_file=skipped_file,
        show_progress=show_progress,
    )


def levels(images):
    return images.pixels[:, 0, 0, 0].tolist()


@pytest.fixture
def count_decoded(monkeypatch):
    decoded, real = [], decoding._decode

    def counting(stream, framing):
        decoded.append(1)
        return real(stream, framing)

    monkeypatch.setattr(decoding, "_decode", counting)
    return decoded


@pytest.mark.parametrize(
    ("kind", "crop", "flip"),
    [
        ("CelebA", "celeba", True),
        ("Cats", "none", True),
        ("Carla", "none", False),
        ("Images", "center", False),
    ],
)
def test_each_kind_has_its_crop_and_flip(kind, crop, flip):
    options = dataset_options(kind, "x")
    assert options == DatasetOptions(kind=kind, path="x", crop=crop, flip=flip)
    changed = dataset_options(kind, "x", crop=100, flip=not flip, resize="nearest")
    assert (changed.crop, changed.flip, changed.resize) == (100, not flip, "nearest")


def test_a_path_replaces_the_built_in_cars():
    assert dataset_options("ToyCars", None).kind == "ToyCars"
    assert dataset_options("ToyCars", "x") == dataset_options("Images", "x")


@pytest.mark.parametrize(
    ("kind", "change", "text"),
    [
        ("Catz", {}, "unknown dataset 'Catz'.*'Cats'"),
        ("Images", {"crop": "middle"}, "crop 'middle'"),
        ("Images", {"crop": 0}, "crop 0"),
        ("Images", {"crop": True}, "crop True"),
        ("Images", {"crop": 1.5}, "crop 1.5"),
        ("Images", {"resize": "box"}, "resize 'box'.*antialias.*nearest"),
        ("ToyCars", {"num_images": 0}, "num_images 0"),
    ],
)
def test_wrong_options_are_named(kind, change, text):
    with pytest.raises(UsageError, match=text):
        dataset_options(kind, None, **change)


def test_a_kind_without_a_path_says_how_to_give_one():
    with pytest.raises(UsageError, match="dataset CelebA needs pictures; give --dataset_path"):
        find_images(dataset_options("CelebA", None))


def test_find_images_counts_without_decoding(tmp_path, count_decoded):
    write_pictures(tmp_path / "set", 5)
    listing = find_images(dataset_options("Images", str(tmp_path / "set")))
    assert listing.count == 5
    assert listing.names[0] == "0000.png"
    assert find_images(dataset_options("ToyCars", None)).count == 4000
    assert not count_decoded


def test_pictures_come_in_the_order_of_their_names_and_are_decoded_once(tmp_path, count_decoded):
    folder = write_pictures(tmp_path / "set", 100)
    first = open_at(folder, tmp_path)
    assert levels(first) == list(range(100))
    assert (len(first), first.image_size, first.skipped) == (100, 4, ())
    assert len(count_decoded) == 100
    again = open_at(folder, tmp_path)
    assert levels(again) == list(range(100))
    assert again.fingerprint == first.fingerprint
    assert len(count_decoded) == 100


def test_the_cache_follows_content_and_framing_but_not_place_or_flip(tmp_path):
    folder = write_pictures(tmp_path / "set", 3)
    prints = [open_at(folder, tmp_path).fingerprint]
    assert open_at(folder, tmp_path, flip=True).fingerprint == prints[0]
    folder = folder.rename(tmp_path / "moved")
    assert open_at(folder, tmp_path).fingerprint == prints[0]
    for options in [{"image_size": 8}, {"crop": 8}, {"crop": "none"}, {"resize": "nearest"}]:
        prints.append(open_at(folder, tmp_path, **options).fingerprint)
    Image.new("L", (12, 12), 200).save(folder / "0001.png")
    os.utime(folder / "0001.png", (1, 1))
    changed = open_at(folder, tmp_path)
    assert levels(changed) == [0, 200, 2]
    (folder / "0002.png").rename(folder / "0000a.png")
    renamed = open_at(folder, tmp_path)
    assert levels(renamed) == [0, 2, 200]
    assert len({*prints, changed.fingerprint, renamed.fingerprint}) == 7


def test_the_cache_of_a_copy_and_of_a_picture_that_was_edited(tmp_path, count_decoded):
    folder = tmp_path / "set"
    folder.mkdir()
    for index in range(3):
        Image.new("L", (300, 300), index).save(folder / f"{index}.png", compress_level=0)
    open_at(folder, tmp_path)
    copy = Path(shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile))
    assert levels(open_at(copy, tmp_path)) == [0, 1, 2]
    assert len(count_decoded) == 3
    Image.new("L", (300, 300), 9).save(copy / "1.png", compress_level=0)  # of the same size
    assert levels(open_at(copy, tmp_path)) == [0, 9, 2]
    assert len(count_decoded) == 6


def test_the_cache_of_others_is_kept_and_that_of_earlier_contents_removed(tmp_path):
    folders = [write_pictures(tmp_path / f"{count}", count) for count in (3, 4)]
    options = [dataset_options("Images", str(folder)) for folder in folders]
    used = open_images(options[0], 4, cache_dir=tmp_path / "cache", show_progress=False)
    for size, own in [(8, options[0]), (16, options[0]), (8, options[1])]:
        open_images(own, size, cache_dir=tmp_path / "cache", show_progress=False)

    def drop(sizes):
        listing = find_images(options[0])
        return datasets.drop_unused_caches(
            options[0], sizes, listing=listing, cache_dir=tmp_path / "cache"
        )

    assert drop([16]) == "image cache: removed 1 unused entries, 0.0 MB"
    del used
    assert drop([16]) == "image cache: removed 1 unused entries, 0.0 MB"
    assert len(list((tmp_path / "cache").glob("*/pixels.u8"))) == 2


def test_folder_glob_and_zip_give_the_same_images(tmp_path):
    folder = write_pictures(tmp_path / "set", 20)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"inside/{path.name}")
    for path in [folder, f"{folder}/*.png", f"{tmp_path}/**/*.png", tmp_path / "set.zip"]:
        assert levels(open_at(path, tmp_path)) == list(range(20))


def test_one_unreadable_picture_in_a_hundred_is_left_out_and_named(tmp_path, capsys):
    folder = write_pictures(tmp_path / "set", 200)
    (folder / "0050.png").write_bytes(b"")
    (folder / "0100.png").write_bytes(b"not a picture")
    listed = tmp_path / "run" / "skipped.txt"
    expected = [i for i in range(200) if i not in (50, 100)]
    for _ in range(2):  # decoded, then cached
        images = open_at(folder, tmp_path, skipped_file=listed, show_progress=True)
        assert levels(images) == expected
        assert listed.read_text() == (
            "0050.png\tempty file\n0100.png\tnot a picture of a known format\n"
        )
        shown = capsys.readouterr().err
        assert f"2 of 200 pictures in '{folder}' cannot be read" in shown
        assert str(listed) in shown
    for name in ("0050.png", "0100.png"):
        (folder / name).unlink()
    open_at(folder, tmp_path, skipped_file=listed)
    assert listed.read_text() == ""


def test_a_list_of_them_that_cannot_be_written_leaves_the_earlier_one(tmp_path):
    folder = write_pictures(tmp_path / "set", 200)
    (folder / "0050.png").write_bytes(b"")
    listed = tmp_path / "run" / "skipped.txt"
    open_at(folder, tmp_path, skipped_file=listed)
    before = listed.read_text()
    (folder / "0051.png").write_bytes(b"")
    open_at(folder, tmp_path)  # is cached
    with limited(20), pytest.raises(UsageError, match="cannot write .*skipped.txt': File too"):
        open_at(folder, tmp_path, skipped_file=listed)
    assert listed.read_text() == before
    assert list(listed.parent.iterdir()) == [listed]


@pytest.mark.parametrize("count", [100, 299])
def test_more_stop_the_run_with_all_of_them_named(tmp_path, count):
    folder = write_pictures(tmp_path / "set", count)
    bad = [f"{index:04}.png" for index in range(1, count, 6)]
    for name in bad:
        (folder / name).write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    listed = tmp_path / "skipped.txt"
    with pytest.raises(UsageError) as error:
        open_at(folder, tmp_path, skipped_file=listed)
    text = str(error.value)
    assert f"{len(bad)} of {count} pictures" in text
    limit = f"at most 10 of {count}"
    assert all(part in text for part in [*bad[:3], str(folder), str(listed), limit, "..."])
    assert [line.split("\t")[0] for line in listed.read_text().splitlines()] == bad
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_some_of_a_small_set_are_left_out_and_more_than_half_are_not(tmp_path):
    folder = write_pictures(tmp_path / "set", 10)
    open_at(folder, tmp_path)
    for number in range(10):
        (folder / f"late{number}.png").write_bytes(b"")
        assert len(open_at(folder, tmp_path)) == 10  # in the cache already
    (folder / "one too many.png").write_bytes(b"")
    with pytest.raises(UsageError, match="11 of 21 pictures.*empty file.*at most 10 of 21"):
        open_at(folder, tmp_path)


def test_nothing_readable_stops_the_run(tmp_path):
    for name, content in [("a.jpg", b""), ("b.jpg", b"rubbish")]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match="cannot be read: 'a.jpg' .empty file"):
            open_at(f"{tmp_path}/*.jpg", tmp_path)


def test_celeba_of_a_wide_and_a_tall_picture(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for index, size in enumerate([(178, 218), (218, 178)]):
        image = Image.new("RGB", size, "red")
        image.paste("lime", tuple(round(edge) for edge in decoding.crop_box(*size, "celeba")))
        image.save(folder / f"{index}.png")
    images = open_images(
        dataset_options("CelebA", str(folder)), 32, cache_dir=tmp_path, show_progress=False
    )
    assert (images.pixels[:, 1, 1:-1, 1:-1] == 255).all()
    assert (images.pixels[:, 0, 1:-1, 1:-1] == 0).all()


def test_toy_cars_are_built_in_cached_and_a_function_of_the_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "RENDERED_AT_ONCE", 2)

    def cars(folder, **options):
        return open_images(
            dataset_options("ToyCars", None, num_images=3, **options),
            8,
            cache_dir=tmp_path / folder,
            show_progress=False,
        )

    first, other = cars("a"), cars("a", seed=1)
    assert first.pixels.shape == (3, 3, 8, 8)
    assert (cars("b").pixels == first.pixels).all()
    assert (other.pixels != first.pixels).any()
    monkeypatch.delattr(datasets, "toy_car_images")
    assert cars("a").fingerprint == first.fingerprint


def test_a_batch_is_a_fresh_tensor(tmp_path):
    images = open_at(write_pictures(tmp_path / "set", 6), tmp_path)
    for indices in [np.array([4, 1, 1]), torch.tensor([4, 1, 1])]:
        batch = images.batch(indices)
        assert batch.shape == (3, 3, 4, 4)
        assert batch.dtype == torch.uint8
        assert batch.is_contiguous()
        assert batch[:, 0, 0, 0].tolist() == [4, 1, 1]
        batch.zero_()
    assert levels(images) == list(range(6))


def stream(num_images, batch_sizes, *, seed=0, start=0):
    parts, seen = [], start
    for size in batch_sizes:
        parts.append(batch_indices(num_images, seed=seed, images_seen=seen, batch_size=size))
        assert parts[-1].shape == (size,)
        seen += size
    return np.concatenate(parts).tolist()


def test_each_epoch_is_another_permutation_whatever_the_batch():
    whole = stream(10, [30])
    epochs = [whole[:10], whole[10:20], whole[20:]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert stream(10, [7] * 4 + [2]) == whole  # batches that reach into the next epoch
    assert stream(10, [1] * 30) == whole
    assert stream(10, [30], seed=1) != whole


def test_a_resumed_run_sees_what_the_first_would_have_seen():
    first = stream(17, [5] * 12)
    assert stream(17, [5] * 5) + stream(17, [5] * 7, start=25) == first


def test_processes_share_a_batch():
    for step in range(8):
        parts = [
            batch_indices(
                12, seed=3, images_seen=6 * step, batch_size=2, rank=rank, world_size=3
            ).tolist()
            for rank in range(3)
        ]
        assert sum(parts, []) == stream(12, [6], seed=3, start=6 * step)
    assert sorted(stream(12, [6] * 2, seed=3)) == list(range(12))


def test_a_small_set_repeats_within_a_batch():
    indices = stream(3, [56])
    assert sorted(np.bincount(indices)) == [18, 19, 19]
    assert stream(1, [4]) == [0] * 4


@pytest.mark.parametrize(
    "change",
    [{"num_images": 0}, {"batch_size": 0}, {"images_seen": -1}, {"rank": 2}, {"rank": -1}],
)
def test_numbers_out_of_range_are_refused(change):
    values = {"num_images": 5, "seed": 0, "images_seen": 0, "batch_size": 2, "world_size": 2}
    with pytest.raises(ValueError, match="cannot take"):
        batch_indices(**(values | change))


def test_the_order_cannot_be_changed_from_outside():
    before = stream(4, [4])
    batch_indices(4, seed=0, images_seen=0, batch_size=4)[:] = 0
    assert stream(4, [4]) == before


def test_training_images_span_minus_one_to_one():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    real = training_images(images)
    assert real.dtype == torch.float32
    assert (real.min(), real.max()) == (-1, 1)
    torch.testing.assert_close((real + 1) * 127.5, images.float())


def test_a_disk_that_fails_before_the_mirrored_pixels_are_read_is_one_line(tmp_path, monkeypatch):
    decode, calls = decoding._decode, itertools.count()

    def failing(stream, framing):
        if framing.from_right and next(calls) == 0:
            raise OSError("disk")
        return decode(stream, framing)

    monkeypatch.setattr(decoding, "_decode", failing)
    folder = write_pictures(tmp_path / "set", 101)
    with pytest.raises(UsageError, match="two readings of the pictures differ; delete '.*cache'"):
        open_at(folder, tmp_path, crop="celeba", flip=True, resize="nearest")


def test_half_of_the_images_are_mirrored_by_the_stream(tmp_path):
    (tmp_path / "set").mkdir()
    Image.fromarray(np.array([[0, 255]] * 2, np.uint8)).save(tmp_path / "set" / "0.png")
    images = open_at(tmp_path / "set", tmp_path, 2, flip=True)

    def mirrored(seed, images=images):
        rng = None if seed is None else torch.Generator().manual_seed(seed)
        batch = images.batch(np.zeros(4000, int), rng=rng).int()
        assert (batch[..., 0] == 255 - batch[..., 1]).all()
        return batch[:, 0, 0, 0] == 255

    assert 1850 < mirrored(0).sum() < 2150
    assert (mirrored(0) == mirrored(0)).all()
    assert (mirrored(0) != mirrored(1)).any()
    assert not mirrored(None).any()
    assert not mirrored(0, open_at(tmp_path / "set", tmp_path, 2)).any()
