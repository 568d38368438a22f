"""Photos become datasets: faces are found and upright, objects centred, the rest is named."""

import csv
import io
import zipfile

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter
from skimage import data

import curriculums
import prepare_photos
from image_io import faces, photo_checks, photo_report, placing
from image_io.placing import Square
from system.errors import UsageError

# Of the face in scikit-image's photo, by hand: between the eyes, and how far the eyes are apart.
# In CelebA's aligned pictures (178 x 218) the eyes are at (69, 111) and (109, 111), of which the
# curriculum shows a centred square of 142.4.
EYES, EYE_DISTANCE = (224, 112), 40
CELEBA_EYES, CELEBA_EYE_DISTANCE = (0.5, (111 - (218 - 142.4) / 2) / 142.4), 40 / 142.4


@pytest.fixture(scope="module")
def portrait():
    return Image.fromarray(data.astronaut())


def prepared(folder, *words, out="out.zip"):
    """Prepare the photos of folder; return the pictures in the .zip and the rows of the csv."""
    assert prepare_photos.main([str(folder), str(folder.parent / out), *words]) == 0
    return contents(folder.parent / out)


def contents(path):
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pictures = {name: Image.open(io.BytesIO(archive.read(name))) for name in names}
    return pictures, rows(path.with_suffix(".csv"))


def rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.mark.parametrize(("tilt", "scale"), [(0, 1), (15, 0.7), (-20, 1.3)])
def test_a_face_is_upright_and_as_large_as_in_celeba(portrait, tilt, scale):
    middle = np.array(portrait.size) / 2
    photo = portrait.rotate(-tilt, Image.Resampling.BICUBIC)  # clockwise
    photo = photo.resize([round(scale * side) for side in photo.size])
    face = faces.find_faces(photo, faces.open_cascade(None))[0]
    turn = np.radians(tilt)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    eyes = scale * (middle + matrix @ (EYES - middle))
    side = scale * EYE_DISTANCE / CELEBA_EYE_DISTANCE
    assert face.side == pytest.approx(side, rel=0.15)
    assert face.angle == pytest.approx(tilt, abs=6)
    below = (CELEBA_EYES[1] - 0.5) * side
    wanted = eyes - matrix @ (0, below)
    assert (face.x, face.y) == pytest.approx(tuple(wanted), abs=0.08 * side)


class Cascade:
    """Sees a mouth or nose in eight windows of a photo and the face around it in four."""

    def __init__(self, part):
        self.part = part

    def detect_multi_scale(self, image, **_):
        if image.shape == (77, 77):  # a candidate at one of the fine tilts
            places = [(38, 38, 32)] * 5
        else:
            places = [(*self.part, 30)] * 8 + [(68, 64, 85)] * 4
        return [{"c": x - width // 2, "r": y - width // 2, "width": width}
                for x, y, width in places]  # fmt: skip


@pytest.mark.parametrize("part", [(60, 88), (66, 72), (68, 64)])
def test_a_part_of_a_face_is_no_face(part):
    (face,) = faces.find_faces(Image.new("L", (128, 128)), Cascade(part))
    assert face.side == pytest.approx(85 / faces.WINDOW_SHARE, rel=0.05)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("side", [20, 45, 140])  # enlarged, as it is, and halved before the turn
@pytest.mark.parametrize("at", [(150.0, 110.5), (240.0, 120.0)])
def test_a_cut_shows_the_photo_where_its_square_is(mode, side, at):
    photo = np.full((250, 350, len(mode)), 255, np.uint8)
    photo[..., 0] = np.arange(350).clip(max=255)  # red is the column up to 255, green is the row
    photo[..., 1] = np.arange(250)[:, None]
    square, size = Square(x=at[0], y=at[1], side=side, angle=25), 24
    picture = np.asarray(placing.cut(Image.fromarray(photo), square, size), float)
    turn, places = np.radians(25), ((np.arange(size) + 0.5) / size - 0.5) * side
    right, down = np.meshgrid(places, places)
    column = at[0] + np.cos(turn) * right - np.sin(turn) * down - 0.5  # of the pixels' middles
    row = at[1] + np.sin(turn) * right + np.cos(turn) * down - 0.5
    is_ramp = column < 250
    assert np.abs(picture[..., 0] - column)[is_ramp].max() < 1.5
    assert np.abs(picture[..., 1] - row).max() < 1.5


def test_two_faces_and_none(portrait, folder):
    face = portrait.crop((124, 12, 324, 212))
    both = Image.new("RGB", (480, 260), (128, 128, 128))
    both.paste(face, (20, 40))
    both.paste(face.transpose(Image.Transpose.FLIP_LEFT_RIGHT), (250, 20))
    both.save(folder / "two.png")
    Image.fromarray(data.coffee()).save(folder / "none.png")
    pictures, lines = prepared(folder, "--kind", "face", "--size", "64")
    assert [(line["photo"], line["result"], line["reason"]) for line in lines] == [
        ("none.png", "dropped", "no face found"), ("two.png", "used", ""), ("two.png", "used", ""),
    ]  # fmt: skip
    assert [picture.size for picture in pictures.values()] == [(64, 64)] * 2


def test_at_one_scale_objects_keep_their_sizes(folder):
    for name, radius, scale, color in [("a", 20, 1, "red"), ("b", 40, 1, "blue"), ("c", 80, 2, 0)]:
        photo = disk((400 * scale, 300 * scale), (150 * scale, 140 * scale), radius, color=color)
        photo.save(folder / f"{name}.png")
    words = ["--kind", "object", "--size", "64", "--share", "0.5"]
    for flags, diameters in [([], [32, 32, 32]), (["--one_scale"], [16, 32, 32])]:
        pictures, _ = prepared(folder, *words, *flags, out=f"{len(flags)}.zip")
        for picture, diameter in zip(pictures.values(), diameters, strict=True):
            shown = np.argwhere(np.asarray(picture)[..., 1] < 150)
            assert np.ptp(shown, axis=0) + 1 == pytest.approx([diameter] * 2, abs=3)


def disk(size=(400, 300), at=(250, 120), radius=40, ground=(255, 255, 255), color=(200, 30, 60)):
    photo = Image.new("RGB", size, ground)
    x, y = at
    ImageDraw.Draw(photo).ellipse((x - radius, y - radius, x + radius, y + radius), color)
    return photo


@pytest.mark.parametrize("ground", [(255, 255, 255), (120, 150, 130), "transparent"])
def test_an_object_is_centred_and_fills_its_share(folder, ground):
    photo = disk(ground=(255, 255, 255) if ground == "transparent" else ground)
    if ground == "transparent":
        photo.putalpha(disk(ground=(0, 0, 0), color=(255, 255, 255)).convert("L"))
    photo.save(folder / "disk.png")
    for kind in ("white", "transparent"):
        pictures, lines = prepared(
            folder, "--kind", "object", "--size", "100", "--share", "0.5", "--ground", kind
        )
        (picture,) = pictures.values()
        colors = np.asarray(picture.convert("RGBA"))
        y, x = np.mgrid[:100, :100] + 0.5
        distance = np.hypot(x - 50, y - 50)
        assert np.abs(colors[distance < 23, :3].astype(int) - (200, 30, 60)).max() <= 3
        assert (colors[distance > 27, 3] == (255 if kind == "white" else 0)).all()
        if kind == "white":
            assert (colors[distance > 27, :3] == 255).all()
        assert float(lines[0]["x"]) == pytest.approx(250, abs=2)
        assert float(lines[0]["side"]) == pytest.approx(160, abs=4)


@pytest.mark.parametrize(
    ("photo", "reason"),
    [
        (disk(at=(390, 120)), "the object reaches the photo's border"),
        (Image.new("RGB", (90, 90), (9, 9, 9)), "no object on the ground"),
        (Image.fromarray(data.coffee()), "the ground is not plain"),
        (disk(radius=4), "no object on the ground"),
        (disk(radius=16), "small: 41 pixels for 100"),
        (disk().filter(ImageFilter.GaussianBlur(12)), "blurred"),
    ],
)
def test_what_cannot_be_used_is_named_and_nothing_is_written(folder, photo, reason):
    photo.save(folder / "photo.png")
    out = folder.parent / "out.zip"
    with pytest.raises(UsageError, match="no photo can be used"):
        prepare_photos.main([str(folder), str(out), "--kind", "object", "--size", "100"])
    assert rows(out.with_suffix(".csv"))[0]["reason"].startswith(reason)
    assert not out.exists()


def test_a_size_that_suits_small_photos_is_named(folder, capsys):
    for index, radius in enumerate((60, 17, 20, 5)):
        disk(radius=radius).save(folder / f"{index}.png")
    prepared(folder, "--kind", "object", "--size", "256")
    assert "with --size 64, 2 of the small ones are used" in capsys.readouterr().out
    lines = prepared(folder, "--kind", "object", "--size", "64")[1]
    assert not any(line["reason"].startswith("small") for line in lines)
    assert "--size" not in capsys.readouterr().out.partition("python")[0]


def test_the_sheet_shows_what_was_dropped(folder):
    heights = []
    for photo in (disk(radius=60), disk(radius=17), Image.new("RGB", (90, 90), (9, 9, 9))):
        photo.save(folder / f"{len(heights)}.png")
        prepared(folder, "--kind", "object", "--size", "256")
        with Image.open(folder.parent / "out.png") as sheet:
            heights.append(sheet.height)
    assert heights[1] - heights[0] >= photo_report.SIDE  # a row of dropped photos
    assert heights[2] == heights[1]  # which has room for two


def test_copies_and_damaged_files_are_dropped_and_photos_stay(portrait, folder):
    portrait.save(folder / "a.png")
    portrait.resize((300, 300)).save(folder / "b.jpg", quality=60)
    portrait.transpose(Image.Transpose.ROTATE_90).save(folder / "c.png")
    (folder / "d.jpg").write_bytes(b"\xff\xd8\xff\xe0 broken")
    (folder / "e.jpg").touch()
    before = {path: path.read_bytes() for path in folder.iterdir()}
    pictures, lines = prepared(folder, "--kind", "crop", "--size", "64")
    reasons = {line["photo"]: line["reason"].partition(":")[0] for line in lines}
    assert reasons == {"a.png": "", "c.png": "", "b.jpg": "nearly the same as another",
                       "d.jpg": "unreadable", "e.jpg": "unreadable"}  # fmt: skip
    assert list(pictures) == ["000000.png", "000001.png"]
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    for name in ("Photos", "SmallPhotos"):
        curriculums.load(name, file=folder.parent / "out_curricula.py")
    with Image.open(folder.parent / "out.png") as sheet:
        assert sheet.width > 300


def test_only_its_own_output_is_replaced(portrait, folder, tmp_path, capsys):
    portrait.save(folder / "a.png")
    words = ["--kind", "crop", "--size", "32"]
    first, _ = prepared(folder, *words)
    edited = tmp_path / "out_curricula.py"
    edited.write_text("Photos = {}\n")
    second, _ = prepared(folder, *words)
    assert first.keys() == second.keys()
    assert edited.read_text() == "Photos = {}\n"
    assert "out_curricula.py was there already and is kept" in capsys.readouterr().err
    for beside in ("mine.png", "mine.csv"):
        (tmp_path / beside).write_text("of somebody")
        with pytest.raises(UsageError, match=f"{beside}: exists and was not written by"):
            prepare_photos.main([str(folder), str(tmp_path / "mine.zip"), *words])
        assert (tmp_path / beside).read_text() == "of somebody"
        (tmp_path / beside).unlink()
    others = tmp_path / "others.zip"
    with zipfile.ZipFile(others, "w") as archive:
        archive.write(folder / "a.png", "a.png")
    content = others.read_bytes()
    for output, text in ((others, "was not written by"), (tmp_path / "a.tar", "must be a .zip"),
                         (tmp_path / "no" / "a.zip", "there is no folder")):  # fmt: skip
        with pytest.raises(UsageError, match=text):
            prepare_photos.main([str(folder), str(output), *words])
    with pytest.raises(UsageError, match="; give FOLDER, "):  # this command has no --dataset_path
        prepare_photos.main([str(tmp_path / "nowhere"), str(tmp_path / "b.zip"), *words])
    for flag in (["--one_scale"], ["--share", "0.5"], ["--ground", "transparent"]):
        with pytest.raises(UsageError, match=f"{flag[0]}.*: is for --kind object"):
            prepare_photos.main([str(folder), str(tmp_path / "b.zip"), *words, *flag])
    with pytest.raises(UsageError, match="--cascade"):
        prepare_photos.main([str(folder), str(tmp_path / "b.zip"), "--kind", "face",
                             "--cascade", str(folder / "a.png")])  # fmt: skip
    assert others.read_bytes() == content


def test_a_square_is_cut_out_exactly():
    """Pixels hold their own coordinates: a turned square shows what its definition says."""
    y, x = np.mgrid[:200, :240]
    photo = Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))
    square = Square(x=120.0, y=90.0, side=80.0, angle=30.0)
    colors = np.asarray(placing.cut(photo, square, 40)).astype(float)
    for u, v in ((20, 20), (5, 30), (33, 8)):
        right, down = (np.array((u, v)) + 0.5 - 20) * 2
        turn = np.radians(30)
        wanted = (120 + np.cos(turn) * right - np.sin(turn) * down - 0.5,
                  90 + np.sin(turn) * right + np.cos(turn) * down - 0.5)  # fmt: skip
        assert tuple(colors[v, u, :2]) == pytest.approx(
            wanted, abs=1.6
        )  # Pillow cuts fractions off
    assert placing.share_outside(photo, square) == 0
    half_out = Square(x=0, y=90, side=80)
    assert placing.share_outside(photo, half_out) == pytest.approx(0.5, abs=0.02)


def test_blur_and_copies_are_told_from_other_pictures(portrait):
    sharp = portrait.resize((128, 128))
    assert photo_checks.blur(sharp) < 0.5
    assert photo_checks.blur(sharp.filter(ImageFilter.GaussianBlur(2.5))) > photo_checks.MAX_BLUR
    seen = photo_checks.Seen()
    rng = np.random.default_rng(0)
    for number in range(100):  # more than there is room for at first
        noise = Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8))
        assert seen.twin(f"{number}", noise.resize((64, 64))) is None
    assert seen.twin("new", sharp) is None
    assert seen.twin("copy", sharp.point(lambda value: min(255, 1.04 * value))) == "new"
