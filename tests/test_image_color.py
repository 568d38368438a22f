"""Color profiles, bit depths and EXIF rotation: same pixels in training, metrics, inversion."""

import io

import numpy as np
import pytest
from icc_profiles import cmyk_profile, grey_profile, rgb_profile, stored
from PIL import Image, PngImagePlugin
from test_bad_data import encoded
from test_image_decoding import solid

from image_io import color, decoding
from image_io.decoding import Framing, decode_picture, read_picture
from metrics import real_images
from rendering import photos
from system.errors import UsageError

WHOLE = Framing(image_size=16, crop="none", resize="antialias")
RED = (200, 60, 60)
P3 = rgb_profile("Display P3")


def grey16(value):
    return Image.fromarray(np.full((16, 16), value, np.uint16))


PROFILES = {  # picture, its profile, and the sRGB color that it means
    "Display P3": (solid("RGB", stored(RED, "Display P3")), P3, RED),
    "Adobe RGB": (
        solid("RGB", stored(RED, "Adobe RGB", lambda v: v ** (1 / 2.2))),
        rgb_profile("Adobe RGB", lambda v: v**2.2),
        RED,
    ),
    "linear": (
        solid("RGB", stored(RED, "sRGB", lambda v: v)),
        rgb_profile("sRGB", lambda v: v),
        RED,
    ),
    "sRGB": (solid("RGB", RED), rgb_profile("sRGB"), RED),
    "palette in P3": (solid("RGB", stored(RED, "Display P3")).quantize(4), P3, RED),
    "grey in P3": (solid("L", 90), P3, (90, 90, 90)),
    "linear grey": (solid("L", 128), grey_profile(lambda v: v), (188, 188, 188)),  # half the light
    "linear grey, 16 bits": (grey16(128 * 257), grey_profile(lambda v: v), (188, 188, 188)),
    "profile of another kind": (solid("RGB", RED), grey_profile(lambda v: v), RED),
    "damaged profile": (solid("RGB", RED), P3[:200], RED),
    "no profile": (solid("RGB", RED), b"<html>", RED),
}


@pytest.mark.parametrize("kind", PROFILES)
def test_colors_are_converted_to_srgb_by_the_profile(kind):
    image, profile, color = PROFILES[kind]
    pixels = decode_picture(io.BytesIO(encoded(image, icc_profile=profile)))
    np.testing.assert_allclose(pixels.mean((1, 2)), color, atol=2)


def test_the_stored_values_of_display_p3_are_the_known_ones():
    # By the matrix from linear sRGB to linear P3 of CSS Color Module Level 4.
    assert stored(RED, "Display P3") == (185, 71, 66)


@pytest.mark.parametrize(
    ("file_format", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"lossless": True})]
)
def test_profiles_of_other_formats(file_format, options):
    image = solid("RGB", stored(RED, "Display P3"))
    pixels = decode_picture(io.BytesIO(encoded(image, file_format, icc_profile=P3, **options)))
    np.testing.assert_allclose(pixels.mean((1, 2)), RED, atol=3)


def test_an_srgb_profile_changes_no_pixel():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    profile = rgb_profile("sRGB")
    plain, tagged = (
        decode_picture(io.BytesIO(content))
        for content in (encoded(image), encoded(image, icc_profile=profile))
    )
    assert np.array_equal(plain, tagged)


@pytest.mark.parametrize(("inks", "grey"), [((0, 0, 0, 0), 255), ((255, 0, 0, 0), 119)])
def test_inks_are_what_their_profile_says(inks, grey):
    # This profile prints cyan as a grey of L* = 50, which is sRGB 119; without it, cyan is cyan.
    content = encoded(solid("CMYK", inks), "JPEG", quality=95, icc_profile=cmyk_profile())
    np.testing.assert_allclose(decode_picture(io.BytesIO(content)), grey, atol=2)


def test_transparency_survives_the_profile(tmp_path):
    solid("RGBA", (*stored(RED, "Display P3"), 128)).save(tmp_path / "a.png", icc_profile=P3)
    found = read_picture(tmp_path / "a.png")
    assert found.mode == "RGBA"
    np.testing.assert_allclose(found.getpixel((3, 3)), (*RED, 128), atol=2)


def test_megabytes_of_text_and_a_profile_that_is_too_large_are_no_fault(monkeypatch):
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 3_000_000, zip=True)
    monkeypatch.setattr(color, "MAX_PROFILE_BYTES", len(P3) - 1)
    content = encoded(solid("RGB", RED), pnginfo=text, icc_profile=P3 + bytes(2_000_000))
    assert decode_picture(io.BytesIO(content))[:, 0, 0].tolist() == list(RED)


# One decoder for every command


def upside_down():
    image = Image.fromarray(np.arange(16 * 16, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 3
    return encoded(image, exif=exif), np.arange(256).reshape(16, 16)[::-1, ::-1]


KINDS = {  # content, and what is to be seen: a grey or color, or all values of a picture
    "16 bit grey": (encoded(grey16(100 * 257)), 100),
    "palette": (encoded(solid("RGB", (100, 100, 100)).quantize(4)), 100),
    "a fifth opaque": (encoded(solid("RGBA", (0, 0, 0, 51))), 204),
    "half clear": (encoded(solid("LA", (90, 51))), 222),
    "EXIF turn": upside_down(),
    "profile": (encoded(solid("RGB", stored((100, 100, 100), "Display P3")), icc_profile=P3), 100),
}


@pytest.mark.parametrize("kind", KINDS)
def test_training_metrics_and_inversion_see_the_same_pixels(kind, tmp_path):
    content, expected = KINDS[kind]
    wanted = np.broadcast_to(expected, (3, 16, 16))
    path = tmp_path / "0.png"
    path.write_bytes(content)
    ((of_training,),) = decoding.decode_all(lambda name: path.open("rb"), ["0.png"], WHOLE)
    of_metrics = real_images.open_real_set(tmp_path, tmp_path / "cache").image(0).numpy()
    picture = read_picture(path)
    of_inversion = photos.open_photo(picture, "a", 16, crop="none", background=1.0).photo.image
    np.testing.assert_allclose(of_training, wanted, atol=2)
    assert np.array_equal(of_training, of_metrics)
    np.testing.assert_allclose((of_inversion.numpy() + 1) * 127.5, wanted, atol=2)


@pytest.mark.parametrize("damage", ["empty", "cut", "html"])
def test_a_damaged_picture_is_one_line_in_every_reader(damage, tmp_path):
    whole = encoded(
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    )
    path = tmp_path / "0.png"
    path.write_bytes({"empty": b"", "cut": whole[:200], "html": b"<html>"}[damage])
    for read in (read_picture, lambda _: real_images.open_real_set(tmp_path, tmp_path / "cache")):
        with pytest.raises(UsageError, match=r"0\.png('|: cannot be read:) [(\w]+") as raised:
            read(path)
        assert "\n" not in str(raised.value)
        assert (damage == "empty") == ("empty file" in str(raised.value))


# Large photos


@pytest.mark.parametrize("resize", ["antialias", "nearest"])
def test_a_jpg_above_the_limit_is_decoded_at_half_its_size(monkeypatch, tmp_path, resize):
    image = Image.fromarray(np.repeat(np.repeat(coarse(), 16, 0), 16, 1))  # 64 x 48
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.jpg"
    image.save(path, quality=95, exif=exif)
    framing = Framing(image_size=3, crop=48, resize=resize)
    upright = image.transpose(Image.Transpose.ROTATE_270)
    expected = decode_picture(io.BytesIO(encoded(upright)), framing)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 64 * 48 - 1)
    assert read_picture(path).size == (24, 32)
    pixels = decode_picture(io.BytesIO(path.read_bytes()), framing)
    np.testing.assert_allclose(pixels.astype(int), expected, atol=12)


def coarse():
    return np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)


@pytest.mark.parametrize(("file_format", "options"), [("PNG", {}), ("JPEG", {"progressive": True})])
def test_what_cannot_be_decoded_smaller_is_refused_by_its_size(monkeypatch, file_format, options):
    content = encoded(solid("RGB", RED), file_format, **options)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 255)
    with pytest.raises(ValueError, match="16 x 16 pixels, more than 255"):
        decode_picture(io.BytesIO(content))
