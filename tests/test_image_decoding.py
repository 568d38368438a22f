import io
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from test_bad_data import encoded, png_of_declared_size

from datasets import dataset_options, find_images, open_images
from image_io.decoding import MAX_PIXELS, Framing, crop_box, decode_all, decode_picture
from metrics import real_images
from scenes.rendering import render_cars
from scenes.toy_car_images import FOV_DEGREES, toy_car_scenes


def framing(image_size=8, crop="none", resize="antialias"):
    return Framing(image_size=image_size, crop=crop, resize=resize)


def decoded(content, **options):
    return decode_picture(io.BytesIO(content), framing(**options))


def coordinates(width, height):
    """Return a picture whose red is x and whose green is y."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def palette(index, **transparency):
    image = Image.new("P", (16, 16), index)
    image.putpalette([0, 0, 0, 200, 100, 50])
    return image, transparency


def solid(mode, color):
    return Image.new(mode, (16, 16), color)


SIXTEEN_BITS = Image.fromarray(np.full((16, 16), 100 * 257 + 20, np.uint16))
COLORS = {
    "grey": (encoded(solid("L", 90)), (90, 90, 90)),
    "one bit": (encoded(solid("1", 1)), (255, 255, 255)),
    "16 bit grey": (encoded(SIXTEEN_BITS), (100, 100, 100)),
    "clear 16 bit grey": (encoded(SIXTEEN_BITS, transparency=100 * 257 + 20), (255, 255, 255)),
    "palette": (encoded(palette(1)[0]), (200, 100, 50)),
    "clear palette": (encoded(palette(1)[0], transparency=1), (255, 255, 255)),
    "palette alphas": (encoded(palette(1)[0], transparency=b"\xff\x80"), (227, 177, 152)),
    "clear grey": (encoded(solid("L", 90), transparency=90), (255, 255, 255)),
    "clear color": (encoded(solid("RGB", (9, 8, 7)), transparency=(9, 8, 7)), (255, 255, 255)),
    "alpha": (encoded(solid("RGBA", (200, 100, 50, 128))), (227, 177, 152)),
    "clear": (encoded(solid("RGBA", (0, 0, 0, 0))), (255, 255, 255)),
    "grey alpha": (encoded(solid("LA", (90, 51))), (222, 222, 222)),
    "jpg": (encoded(solid("RGB", (200, 100, 50)), "JPEG", quality=95), (200, 100, 50)),
    "grey jpg": (encoded(solid("L", 90), "JPEG"), (90, 90, 90)),
    "cmyk jpg": (encoded(solid("CMYK", (0, 128, 255, 0)), "JPEG", quality=95), (255, 127, 0)),
    "webp": (encoded(solid("RGB", (200, 100, 50)), "WEBP", lossless=True), (200, 100, 50)),
    "tif": (encoded(solid("RGB", (200, 100, 50)), "TIFF", compression="jpeg"), (200, 100, 50)),
    "cmyk tif": (encoded(solid("CMYK", (0, 128, 255, 0)), "TIFF"), (255, 127, 0)),
    "16 bit tif": (encoded(SIXTEEN_BITS, "TIFF"), (100, 100, 100)),
    "32 bit tif": (encoded(solid("I", 90), "TIFF"), (90, 90, 90)),
    "floating-point tif": (encoded(solid("F", 0.5), "TIFF"), (128, 128, 128)),
    "bmp": (encoded(solid("RGB", (200, 100, 50)), "BMP"), (200, 100, 50)),
    "clear gif": (encoded(palette(1)[0], "GIF", transparency=1), (255, 255, 255)),
    "avif": (encoded(solid("RGB", (200, 100, 50)), "AVIF"), (200, 100, 50)),
    "jpeg 2000": (encoded(solid("RGB", (200, 100, 50)), "JPEG2000"), (200, 100, 50)),
    "clear webp": (encoded(solid("RGBA", (0, 0, 0, 0)), "WEBP", lossless=True), (255, 255, 255)),
}


@pytest.mark.parametrize("kind", COLORS)
def test_every_kind_of_picture_becomes_rgb_over_white(kind):
    content, color = COLORS[kind]
    pixels = decoded(content)
    assert pixels.shape == (3, 8, 8)
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels.mean((1, 2)), color, atol=2)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(orientation, file_format):
    image = Image.fromarray(noise(6, 4)).resize((96, 64))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(image, file_format, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    expected = decoded(encoded(upright.convert("RGB")), crop="center", image_size=8)
    np.testing.assert_allclose(
        decoded(content, crop="center", image_size=8).astype(int), expected, atol=2
    )


@pytest.mark.parametrize(("mode", "value"), [("F", 2.0), ("F", -0.1), ("F", np.nan), ("I", -1),
                                             ("I", 2**16)])  # fmt: skip
def test_grey_of_an_unknown_range_is_refused(mode, value):
    with pytest.raises(ValueError, match=r"holds grey from .*; 0 to (1|255|65535) is understood"):
        decoded(encoded(solid(mode, value), "TIFF"))


def test_a_damaged_orientation_is_ignored():
    content = encoded(solid("RGB", (200, 100, 50)), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    (pixels,) = results_of({"a.jpg": content})
    np.testing.assert_allclose(pixels.mean((1, 2)), (200, 100, 50), atol=3)


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "GIF", "TIFF", "AVIF"])
def test_an_animation_gives_its_first_frame(file_format):
    frames = [solid("RGB", color) for color in [(250, 0, 0), (0, 250, 0), (0, 0, 250)]]
    options = {"lossless": True} if file_format == "WEBP" else {}
    content = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_allclose(decoded(content).mean((1, 2)), (250, 0, 0), atol=1)


def test_celeba_keeps_a_centred_square_of_four_fifths():
    side = 178 * 256 / 320
    left, top = (178 - side) / 2, (218 - side) / 2
    assert crop_box(178, 218, "celeba") == pytest.approx((17.8, 37.8, 160.2, 180.2))
    centres = (np.arange(64) + 0.5) * side / 64 - 0.5
    pixels = decoded(encoded(coordinates(178, 218)), crop="celeba", image_size=64)
    np.testing.assert_allclose(pixels[0], np.tile(left + centres, (64, 1)), atol=0.6)
    np.testing.assert_allclose(pixels[1], np.tile(top + centres, (64, 1)).T, atol=0.6)


@pytest.mark.parametrize("image_size", [32, 64, 100, 128, 256, 300])
def test_celeba_nearest_takes_the_pixels_of_the_published_tensor(image_size):
    # 320 x 384 needs no enlarging, so each pixel of the centre 256 x 256 names its place exactly:
    # it starts at (32, 64). The published code shrinks it as a tensor.
    y, x = np.mgrid[:384, :320]
    source = np.stack([x - 32, y - 64, 0 * x], -1).clip(0, 255).astype(np.uint8)
    square = torch.from_numpy(source[64:320, 32:288]).permute(2, 0, 1)[None].float()
    wanted = torch.nn.functional.interpolate(square, size=(image_size,) * 2, mode="nearest")[0]
    content = encoded(Image.fromarray(source))
    pixels = decoded(content, crop="celeba", image_size=image_size, resize="nearest")
    np.testing.assert_array_equal(pixels, wanted.numpy())
    if image_size == 64:
        assert pixels[0, 0].tolist() == pixels[1, :, 0].tolist() == list(range(0, 256, 4))


def test_celeba_nearest_follows_the_published_steps():
    # 178 x 218 becomes 320 x 391; the centre 256 x 256 starts at (32, 68); 1 pixel in 4 is taken.
    image = Image.fromarray(np.asarray(Image.fromarray(noise(30, 37)).resize((178, 218))))
    enlarged = image.resize((320, 391), Image.Resampling.BILINEAR)
    wanted = np.asarray(enlarged.crop((32, 68, 288, 324)))[::4, ::4].transpose(2, 0, 1)
    pixels = decoded(encoded(image), crop="celeba", image_size=64, resize="nearest")
    assert np.abs(pixels.astype(int) - wanted).max() <= 1  # Pillow rounds twice
    assert (pixels == wanted).mean() > 0.99


@pytest.fixture
def places(tmp_path):
    """Options of eight CelebA pictures; red and green are column and row in the 256 x 256 kept."""
    # 320 x 320 needs no enlarging, and the centre 256 x 256 begins at (32, 32).
    place = (np.arange(320) - 32).clip(0, 255).astype(np.uint8)
    red, green = np.meshgrid(place, place)
    (tmp_path / "photos").mkdir()
    for number in range(8):
        picture = Image.fromarray(np.stack([red, green, 0 * red], -1))
        picture.save(tmp_path / "photos" / f"{number}.png")
    return dataset_options("CelebA", str(tmp_path / "photos"), resize="nearest")


@pytest.mark.parametrize(("image_size", "step"), [(32, 8), (64, 4), (128, 2)])
def test_celeba_is_mirrored_and_then_shrunk_as_published(places, tmp_path, image_size, step):
    # The published code takes pixels 0, step, 2 step, ... of the tensor, mirrored or not.
    plain, mirrored = list(range(0, 256, step)), list(range(255, 0, -step))
    images = open_images(places, image_size, cache_dir=tmp_path / "c", show_progress=False)
    trained = images.batch(np.arange(8), rng=torch.Generator().manual_seed(0))
    choice = real_images.Choice(options=places, image_size=image_size, count=8, is_flipped=True)
    blocks = real_images.chosen_images(choice, find_images(places))
    evaluated = torch.from_numpy(np.stack([pixels for block in blocks for pixels in block]))
    assert images.batch(np.arange(8))[:, 0, 0].tolist() == [plain] * 8
    for batch in (trained, evaluated):
        kinds = [row == mirrored for row in batch[:, 0, 0].tolist()]
        assert 0 < sum(kinds) < 8
        for image, is_mirrored in zip(batch, kinds, strict=True):
            assert (image[0] == torch.tensor(mirrored if is_mirrored else plain)).all()
            assert (image[1].T == torch.tensor(plain)).all()


@pytest.mark.parametrize("crop", ["none", "center"])
def test_other_data_sets_are_shrunk_by_pillow_as_published(crop):
    image = coordinates(256, 256)
    wanted = np.asarray(image.resize((64, 64), Image.Resampling.NEAREST)).transpose(2, 0, 1)
    pixels = decoded(encoded(image), crop=crop, image_size=64, resize="nearest")
    np.testing.assert_array_equal(pixels, wanted)
    assert pixels[0, 0].tolist() == list(range(2, 256, 4))


@pytest.mark.parametrize(
    ("crop", "box"),
    [
        ("none", (0, 0, 60, 40)),
        ("center", (10, 0, 50, 40)),
        (20, (20, 10, 40, 30)),
        (100, (10, 0, 50, 40)),
    ],
)
def test_crops_of_a_wide_picture(crop, box):
    assert crop_box(60, 40, crop) == box
    assert crop_box(40, 60, crop) == (box[1], box[0], box[3], box[2])


def test_a_crop_at_its_own_size_keeps_every_pixel():
    image = noise(61, 40)
    for resize in ["antialias", "nearest"]:
        pixels = decoded(encoded(Image.fromarray(image)), crop=20, image_size=20, resize=resize)
        np.testing.assert_array_equal(pixels.transpose(1, 2, 0), image[10:30, 20:40])


def test_antialias_averages_and_nearest_picks():
    board = (np.indices((128, 128)).sum(0) % 2 * 255).astype(np.uint8)
    content = encoded(Image.fromarray(board))
    smooth = decoded(content, image_size=32)
    np.testing.assert_allclose(smooth[:, 2:-2, 2:-2], 127, atol=2)
    picked = decoded(content, image_size=32, resize="nearest")
    np.testing.assert_array_equal(picked, np.tile(board[2::4, 2::4], (3, 1, 1)))


def test_points_reach_from_the_first_to_the_last_pixel():
    pixels = decoded(encoded(coordinates(128, 128)), image_size=32, resize="points")
    wanted = np.linspace(0, 127, 32)
    np.testing.assert_allclose(pixels[0], np.tile(wanted, (32, 1)), atol=0.51)
    np.testing.assert_allclose(pixels[1].T, np.tile(wanted, (32, 1)), atol=0.51)


def test_points_of_a_picture_are_what_rays_see():
    cars, poses = toy_car_scenes(range(6), seed=0)

    def seen(size, rays):
        images = render_cars(cars, poses, size, FOV_DEGREES, supersampling=rays).images
        return (images * 255 + 0.5).to(torch.uint8).numpy()

    photos = [encoded(Image.fromarray(one.transpose(1, 2, 0))) for one in seen(256, 3)]

    def error(resize):
        made = np.stack([decoded(one, image_size=32, resize=resize) for one in photos])
        return np.abs(made.astype(int) - seen(32, 1)).mean()

    assert error("points") < 0.6 * min(error("antialias"), error("nearest"))


@pytest.mark.parametrize("crop", ["none", "center", 400, "celeba"])
@pytest.mark.parametrize("size", [(1002, 650), (518, 1204)])
def test_a_large_jpg_decoded_small_looks_the_same(crop, size):
    blurred = Image.fromarray(noise(size[0] // 10, size[1] // 10)).resize(size)
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(blurred, "JPEG", quality=95, exif=exif)
    whole = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    expected = decoded(encoded(whole), crop=crop, image_size=32).astype(int)
    difference = np.abs(decoded(content, crop=crop, image_size=32) - expected)
    assert difference.mean() < 2
    assert difference.max() < 16


def results_of(contents):
    names = list(contents)
    return [
        item
        for block in decode_all(lambda name: io.BytesIO(contents[name]), names, framing())
        for item in block
    ]


@pytest.mark.parametrize("side", [8200, 12_000, 50_000, 2**31 - 1])
def test_a_picture_that_claims_too_much_is_refused_unread(side):
    assert side**2 > MAX_PIXELS
    content = png_of_declared_size(side, side)
    tracemalloc.start()
    (result,) = results_of({"bomb.png": content})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert result.name == "bomb.png"
    assert "pixels" in result.reason
    assert "DOS" not in result.reason  # Pillow takes it for an attack
    assert peak < 2**20


PICTURE = Image.fromarray(noise(40, 30))
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "TGA"]
HEALTHY = {f: encoded(PICTURE, f) for f in FORMATS}


@pytest.mark.parametrize("file_format", HEALTHY)
def test_unreadable_pictures_are_named_with_a_reason(file_format):
    content = HEALTHY[file_format]
    middle = len(content) // 2
    contents = {
        "good": content,
        "cut.x": content[:middle],
        "head\nonly": content[:12],
        "html": b"<!doctype html><html>404</html>",
        "zeros": bytes(1000),
        "eps": encoded(PICTURE, "EPS"),  # would run Ghostscript
    }
    good, *bad = results_of(contents)
    assert good.shape == (3, 8, 8)
    assert [name for name, _ in bad] == ["cut.x", r"head\nonly", "html", "zeros", "eps"]
    assert all(reason and "\n" not in reason and " at 0x" not in reason for _, reason in bad)
    assert bad[-1].reason == "not a picture of a known format"


def test_a_flipped_bit_in_a_png_is_noticed():
    content = bytearray(encoded(Image.new("RGB", (64, 64), (3, 4, 5))))
    for position in range(50, len(content) - 20, 7):
        content[position] ^= 16
        (result,) = results_of({"a.png": bytes(content)})
        content[position] ^= 16
        assert result[0] == "a.png"


def test_order_is_kept_over_many_pictures():
    contents = {str(i): encoded(solid("L", i % 256)) for i in range(600)}
    results = results_of(contents)
    assert [int(pixels[0, 0, 0]) for pixels in results] == [i % 256 for i in range(600)]


def test_a_file_that_cannot_be_opened_is_named():
    def refuse(name):
        raise PermissionError(13, "Permission denied")

    ((result,),) = decode_all(refuse, ["a.jpg"], framing())
    assert result == ("a.jpg", "[Errno 13] Permission denied")
