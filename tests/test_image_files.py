import os
import re
import shutil
import zipfile

import pytest
import torch
from faults import limited

from image_io import png
from image_io.files import find_pictures, opened, printable
from system.errors import UsageError
from system.outputs import OUTPUTS_FILE, is_listed, list_outputs, listed_outputs


def touch(path, content=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def test_a_folder_is_searched_to_the_bottom_for_every_ending(tmp_path):
    wanted = ["b.jpg", "a/z.JPEG", "a/deep/er/c.png", "a/d.WebP", "e.jpe", "f.JFIF", "g.bmp"]
    wanted += ["h.tif", "i.TIFF", "j.gif", "k.avif", "l.ppm", "m.mpo", "n.jp2", "o.tga"]
    for name in wanted:
        touch(tmp_path / name)
    listing = find_pictures(str(tmp_path))
    assert listing.names == tuple(sorted(wanted))
    assert listing.count == 15
    assert (listing.skipped, listing.left_out) == ((), "")


PLACES = {  # names in the folder, and what is said of those that are not used
    "endings": (
        ["a.txt", "b.TXT", "x/c.svg", "README", "film.mpg", "drawing.eps"],
        r"no pictures that Pillow can read: 2 \.txt, 1 \.\w+, 1 [^;]*$",
    ),
    "heic": (["b.heic"], r": 1 \.heic \(.heic needs the package pillow-heif\)$"),
    "folders of systems": (
        ["@eaDir/a.jpg", "@eaDir/b/c.jpg", "x/#recycle/a.jpg", "$RECYCLE.BIN/a.jpg"],
        r"': hidden or of the system: 3 \('\$RECYCLE.BIN', '@eaDir', '#recycle'\)$",
    ),
    "hidden": (
        [".hidden.jpg", "x/._good.jpg", "__MACOSX/._good.jpg", ".git/g.png", ".DS_Store"],
        r"': hidden or of the system: 4 \('.git', '.hidden.jpg', '__MACOSX', ...\)$",
    ),
}


@pytest.mark.parametrize("is_zip", [False, True])
@pytest.mark.parametrize("kind", PLACES)
def test_files_that_are_not_used_are_counted_in_one_line(tmp_path, kind, is_zip):
    names, text = PLACES[kind]
    path = tmp_path / "set"
    if is_zip:
        write_zip(path, [(name, b"x") for name in ["x/good.jpg", *names]])
    else:
        for name in ["x/good.jpg", *names]:
            touch(path / name)
    listing = find_pictures(str(path))
    assert listing.names == ("x/good.jpg",)
    assert re.search(rf"^not used in '{path}'?.*{text}", listing.left_out)


@pytest.mark.parametrize("form", ["{}", "{}/**", "{}/**/*.png", "{}.zip"])
def test_pictures_that_commands_wrote_are_no_photos(tmp_path, form):
    folder = tmp_path / "set"
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    touch(folder / "out" / "mine.png")  # a photo in an output folder stays one
    for name in ["out/0.png", "out/frames/1.png", "2.png", "out/2.png", "out/2.png"]:
        png.save_png(folder / name, image)
    for name in ["2.gif", "photo.png", "frames/1.png", "out/training_state.pth"]:
        touch(folder / name)
    shutil.make_archive(str(folder), "zip", folder)
    ours = {"out/0.png", "out/frames/1.png", "2.png", "out/2.png"}
    listing = find_pictures(form.format(folder))
    photos = {"out/mine.png", "photo.png", "frames/1.png", "2.gif"}
    assert set(listing.names) == {
        name for name in photos if form[-3:] != "png" or "gif" not in name
    }
    assert "written by this project's commands: 4, listed by '.pigan_outputs' in '.', 'out', " in (
        listing.left_out
    )
    assert "pth" not in listing.left_out
    with_ours = find_pictures(form.format(folder), takes_outputs=True)
    assert set(with_ours.names) == {*listing.names, *ours}
    for name in photos:
        (folder / name).unlink()
    with pytest.raises(UsageError, match="no pictures at .*'.pigan_outputs' in '.', 'out'"):
        find_pictures(str(folder))


def test_a_list_of_outputs_is_whole_on_a_full_disk(tmp_path):
    path = tmp_path / OUTPUTS_FILE
    with limited(100), pytest.raises(OSError, match=f"'{path}'"):
        list_outputs(tmp_path, ["a.png"])
    assert not path.exists()
    names = ["a.png", "new\nline.png", "grüße.png"]
    list_outputs(tmp_path, names)
    whole = path.read_bytes()
    list_outputs(tmp_path, ["a.png"])
    with limited(len(whole) + 20), pytest.raises(OSError, match=f"'{path}'"):
        list_outputs(tmp_path, ["b.png", "c.png", "d.png", "e.png"])
    assert path.read_bytes() == whole
    listed = listed_outputs(whole)
    assert [is_listed(name, listed) for name in [*names, "b.png"]] == [True, True, True, False]


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("*.jpg", ["a.jpg"]),
        ("*/*.jpg", ["x/b.jpg"]),
        ("**/*.jpg", ["a.jpg", "x/b.jpg", "x/y/c.jpg"]),
        ("**", ["a.jpg", "x/b.jpg", "x/y/c.jpg", "x/y/d.png"]),
        ("x/**/*.png", ["y/d.png"]),
        ("**/y/*", ["x/y/c.jpg", "x/y/d.png"]),
        ("?/y/[cd].*", ["x/y/c.jpg", "x/y/d.png"]),
    ],
)
def test_globs_find_what_a_shell_would(tmp_path, pattern, wanted):
    for name in ["a.jpg", "x/b.jpg", "x/y/c.jpg", "x/y/d.png", "x/y/e.txt"]:
        touch(tmp_path / name)
    assert find_pictures(f"{tmp_path}/{pattern}").names == tuple(wanted)


def test_paths_may_be_relative_or_start_at_home_or_hold_brackets(tmp_path, monkeypatch):
    touch(tmp_path / "set [2020]" / "a.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ["set [2020]", "~/set [2020]", "**/*.jpg", "set*/*.jpg"]:
        listing = find_pictures(path)
        with opened(listing) as open_file, open_file(listing.names[0]) as file:
            assert file.read() == b"x"


def test_links_never_lead_in_circles_nor_out(tmp_path):
    touch(tmp_path / "outside.jpg")
    touch(tmp_path / "elsewhere" / "linked.jpg")
    touch(tmp_path / "set" / "sub" / "a.jpg")
    (tmp_path / "set" / "loop").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "sub" / "up").symlink_to("..")
    (tmp_path / "set" / "parent").symlink_to(tmp_path)
    (tmp_path / "set" / "root").symlink_to("/")
    (tmp_path / "set" / "self").symlink_to("self")
    (tmp_path / "set" / "twin").symlink_to("sub")
    (tmp_path / "set" / "more").symlink_to(tmp_path / "elsewhere")
    wanted = ("more/linked.jpg", "sub/a.jpg")
    assert find_pictures(str(tmp_path / "set")).names == wanted
    assert find_pictures(f"{tmp_path}/set/**/*.jpg").names == wanted


def test_files_that_are_no_pictures_from_outside_are_named(tmp_path):
    touch(tmp_path / "good.jpg")
    touch(tmp_path / "empty.jpg", b"")
    (tmp_path / "gone.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.jpg")
    with (tmp_path / "huge.webp").open("wb") as file:
        file.truncate(2**40)  # sparse
    listing = find_pictures(str(tmp_path))
    assert listing.names == ("good.jpg",)
    assert [name for name, _ in listing.skipped] == [
        "empty.jpg",
        "gone.png",
        "huge.webp",
        "pipe.jpg",
    ]
    assert listing.skipped[0].reason == "empty file"
    assert "not a regular file" in listing.skipped[3].reason


def test_a_zip_is_read_in_memory_whatever_its_names_are(tmp_path):
    members = [
        ("b.jpg", b"b"),
        ("../../evil.png", b"evil"),
        ("/etc/abs.webp", b"abs"),
        ("folder/", b""),
        ("folder.jpg/", b""),
        ("__MACOSX/b.jpg", b"no"),
        (".cache/c.jpg", b"no"),
        ("poses.csv", b"no"),
    ]
    path = write_zip(tmp_path / "set.zip", members)
    listing = find_pictures(str(path))
    assert listing.names == ("../../evil.png", "/etc/abs.webp", "b.jpg")
    with opened(listing) as open_file:
        assert [open_file(name).read() for name in listing.names] == [b"evil", b"abs", b"b"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["set.zip"]


def test_an_encrypted_member_is_named(tmp_path):
    path = write_zip(tmp_path / "set.zip", [("a.jpg", b"a"), ("secret.jpg", b"s")])
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1  # flag of the last entry in the directory
    path.write_bytes(content)
    listing = find_pictures(str(path))
    assert listing.names == ("a.jpg",)
    assert listing.skipped == (("secret.jpg", "encrypted"),)


@pytest.mark.parametrize("path", ["missing", "missing.zip", "/no/such/folder", ""])
def test_a_missing_path_says_what_was_looked_for_and_how_to_give_it(path):
    with pytest.raises(UsageError, match="no folder, glob or .zip") as error:
        find_pictures(path)
    assert f"'{path}'" in str(error.value)
    assert "--dataset_path" in str(error.value)
    assert (os.getcwd() in str(error.value)) == (not path.startswith("/"))


def test_a_place_without_pictures_says_so(tmp_path):
    touch(tmp_path / "folder" / "notes.txt")
    write_zip(tmp_path / "empty.zip", [])
    for path in ["folder", "empty.zip", "*.jpg", "**/*.jpg"]:
        with pytest.raises(UsageError, match=r"no pictures at.* \(.*\); give --dataset_path"):
            find_pictures(str(tmp_path / path))


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + bytes(100), b"PK\x05\x06"])
def test_a_file_that_is_no_zip_says_so(tmp_path, content):
    path = touch(tmp_path / "set.zip", content)
    with pytest.raises(UsageError, match="no .zip that can be read"):
        find_pictures(str(path))


def test_two_double_stars_are_refused(tmp_path):
    with pytest.raises(UsageError, match="more than one"):
        find_pictures(f"{tmp_path}/**/x/**/*.jpg")


def test_stamps_change_with_the_content(tmp_path):
    path = touch(tmp_path / "a.jpg", b"one")
    os.utime(path, (1, 1))
    first = find_pictures(str(tmp_path)).stamps
    touch(path, b"two")
    assert find_pictures(str(tmp_path)).stamps != first
    zips = [write_zip(tmp_path / f"{c}.zip", [("a.jpg", c)]) for c in "ab"]
    assert find_pictures(str(zips[0])).stamps != find_pictures(str(zips[1])).stamps


def test_strange_names_are_printed_on_one_line(tmp_path):
    names = [b"new\nline.jpg", b"byte\xff.jpg", b"esc\x1b[2J.jpg", "grüße.jpg".encode()]
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb"):
            pass
    skipped = [name for name, _ in find_pictures(str(tmp_path)).skipped]
    assert skipped == [r"byte\udcff.jpg", r"esc\x1b[2J.jpg", "grüße.jpg", r"new\nline.jpg"]
    assert printable("right\u202eleft\r") == r"right\u202eleft\r"
