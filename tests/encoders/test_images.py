"""What each kind of image file becomes, and why others are refused."""

from __future__ import annotations

import io
import random
import tracemalloc

import numpy as np
import pytest
from conftest import encode_picture, make_picture
from PIL import Image

from spark_dbp.encoders import REASONS, BadItemError, bad_items, decode_image
from spark_dbp.encoders.images import PixelSteps
from spark_dbp.errors import ConfigError

MOST = 100_000_000


def decode(content: bytes) -> np.ndarray:
    image = decode_image(content, MOST)
    assert image.mode == "RGB"
    return np.asarray(image)


def refuse(content: bytes, max_pixels: int = MOST) -> str:
    with pytest.raises(BadItemError) as caught:
        decode_image(content, max_pixels)
    assert caught.value.reason in REASONS
    return caught.value.reason


@pytest.mark.parametrize("name", ["PNG", "BMP", "TIFF", "GIF", "JPEG", "WEBP"])
def test_formats(name: str):
    picture = make_picture(20, 10)
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}.get(name, {})
    found = decode(encode_picture(picture, name, **options))
    assert found.shape == (10, 20, 3)
    if name in ("PNG", "BMP", "TIFF", "WEBP"):
        assert (found == np.asarray(picture)).all()
    else:
        assert abs(found.astype(int) - np.asarray(picture).astype(int)).mean() < 12


def test_memoryview_is_taken():
    assert decode_image(memoryview(encode_picture(make_picture())), MOST).size == (40, 30)


def test_no_image():
    assert refuse(b"") == bad_items.EMPTY_IMAGE
    assert refuse(b"<html>404</html>") == bad_items.UNDECODABLE
    assert refuse(b"\x89PNG\r\n\x1a\n") == bad_items.UNDECODABLE
    assert refuse(b"\xff\xd8\xff\xe0" + bytes(100)) in (bad_items.UNDECODABLE, bad_items.TRUNCATED)


@pytest.mark.parametrize("name", ["PNG", "BMP", "TIFF", "JPEG", "WEBP", "GIF"])
def test_truncated_files_are_never_decoded_in_part(name: str):
    content = encode_picture(make_picture(200, 200), name)
    assert refuse(content[: len(content) * 2 // 3]) in (bad_items.TRUNCATED, bad_items.UNDECODABLE)
    if name in ("JPEG", "BMP", "PNG"):
        assert refuse(content[: len(content) * 2 // 3]) == bad_items.TRUNCATED


def test_a_setting_of_pillow_does_not_let_truncated_files_in(monkeypatch):
    from PIL import ImageFile

    from spark_dbp.encoders import images

    images._load_pillow.cache_clear()
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    content = encode_picture(make_picture(200, 200), "JPEG")
    assert refuse(content[: len(content) // 2]) == bad_items.TRUNCATED


def test_cmyk():
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert abs(decode(encode_picture(red, "JPEG", quality=95))[4, 4].astype(int) - [255, 0, 0]).max() <= 6


def test_palette():
    palette = make_picture(16, 16).quantize(8)
    assert (decode(encode_picture(palette)) == np.asarray(palette.convert("RGB"))).all()


@pytest.mark.parametrize("name", ["PNG", "GIF"])
def test_transparent_colour_of_a_palette_lies_on_white(name: str):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.putpixel((1, 1), 1)
    found = decode(encode_picture(image, name, transparency=0))
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[1, 1].tolist() == [200, 0, 0]


def test_alpha_lies_on_white():
    image = Image.new("RGBA", (2, 1))
    image.putpixel((0, 0), (255, 0, 0, 128))
    image.putpixel((1, 0), (0, 0, 0, 0))
    assert decode(encode_picture(image)).tolist() == [[[255, 127, 127], [255, 255, 255]]]
    grey = Image.new("LA", (1, 1), (0, 0))
    assert decode(encode_picture(grey)).tolist() == [[[255, 255, 255]]]


def test_transparent_colour_without_a_palette():
    image = Image.new("RGB", (1, 1), (9, 9, 9))
    assert decode(encode_picture(image, transparency=(9, 9, 9))).tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize("name", ["PNG", "TIFF"])
def test_grey_of_16_bits_is_scaled(name: str):
    ramp = np.array([[0, 257, 1000, 32_896, 65_535]], np.uint16)
    assert decode(encode_picture(Image.fromarray(ramp), name))[0, :, 0].tolist() == [0, 1, 4, 128, 255]


def test_grey_and_one_bit():
    assert decode(encode_picture(Image.new("L", (2, 2), 77)))[0, 0].tolist() == [77, 77, 77]
    assert decode(encode_picture(Image.new("1", (2, 2), 1)))[0, 0].tolist() == [255, 255, 255]


def test_pixels_of_32_bits_are_refused():
    assert (
        refuse(encode_picture(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF")) == bad_items.DEEP_PIXELS
    )
    assert (
        refuse(encode_picture(Image.fromarray(np.full((2, 2), 1 << 20, np.int32)), "TIFF"))
        == bad_items.DEEP_PIXELS
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_rotation_of_exif(orientation: int, name: str):
    from PIL import ImageOps

    picture = make_picture(48, 32)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode_picture(picture, name, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    assert decode(content).shape == np.asarray(expected).shape
    assert (decode(content) == np.asarray(expected)).all()
    assert (decode(content).shape[:2] == (48, 32)) == (orientation >= 5)


def test_broken_exif_is_ignored():
    content = encode_picture(make_picture(48, 32), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode(content).shape == (32, 48, 3)


def test_one_pixel():
    assert decode(encode_picture(Image.new("RGB", (1, 1), (1, 2, 3)))).tolist() == [[[1, 2, 3]]]


def test_large_images_are_refused_before_decoding():
    content = encode_picture(Image.new("1", (20_000, 20_000)))
    tracemalloc.start()
    assert refuse(content) == bad_items.TOO_LARGE
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000
    assert refuse(encode_picture(make_picture(40, 30)), 1199) == bad_items.TOO_LARGE
    assert decode_image(encode_picture(make_picture(40, 30)), 1200).size == (40, 30)


def test_the_limit_is_the_users_also_above_pillows_own():
    content = encode_picture(Image.new("1", (14_000, 14_000)))
    assert decode_image(content, 200_000_000).size == (14_000, 14_000)


def test_lines_are_refused():
    """Resizing the shorter side of 1 x 5,000 pixels to 256 would make 327 million pixels."""
    assert refuse(encode_picture(Image.new("L", (5_000, 1)))) == bad_items.TOO_NARROW


@pytest.mark.parametrize("name", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation(name: str):
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    content = encode_picture(red, name, save_all=True, append_images=[blue, blue])
    assert Image.open(io.BytesIO(content)).n_frames >= 2
    assert abs(decode(content)[0, 0].astype(int) - [255, 0, 0]).max() < 8


def test_other_formats_are_refused():
    assert refuse(encode_picture(make_picture(), "PPM")) == bad_items.UNDECODABLE
    assert refuse(encode_picture(make_picture(), "ICO")) == bad_items.UNDECODABLE


@pytest.mark.filterwarnings("ignore:::PIL")
def test_noise_in_files_is_refused_or_decoded_but_raises_nothing_else():
    rng = random.Random(7)
    for name in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        content = bytearray(encode_picture(make_picture(30, 30), name))
        for _ in range(150):
            broken = bytearray(content)
            for _ in range(rng.randint(1, 6)):
                broken[rng.randrange(min(len(broken), 400))] = rng.randrange(256)
            try:
                assert decode_image(bytes(broken), 1_000_000).mode == "RGB"
            except BadItemError as error:
                assert error.reason in REASONS


def test_steps_equal_transformers():
    from transformers import AutoImageProcessor, CLIPImageProcessor  # noqa: F401
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    config = {
        "size": {"shortest_edge": 24},
        "crop_size": {"height": 20, "width": 22},
        "do_center_crop": True,
        "resample": 3,
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.3, 0.4],
    }
    steps = PixelSteps.from_processor(config, "config")
    processor = CLIPImageProcessorPil(**config)
    for width, height in [(40, 30), (30, 41), (24, 24), (100, 57)]:
        picture = make_picture(width, height)
        expected = processor(images=picture, return_tensors="np")["pixel_values"][0]
        assert np.allclose(steps.apply(picture), expected, atol=1e-5)


def test_steps_that_say_nothing_are_refused():
    with pytest.raises(ConfigError, match=r"size"):
        PixelSteps.from_options({"mean": [0, 0, 0]})
    with pytest.raises(ConfigError, match=r"preprocessor_config"):
        PixelSteps.from_processor({"size": "large"}, "preprocessor_config.json")
