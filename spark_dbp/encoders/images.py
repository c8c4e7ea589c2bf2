"""Decode image files, and turn them into arrays of pixels.

Imports numpy and `bad_items`; Pillow inside functions.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from spark_dbp.encoders import bad_items
from spark_dbp.encoders.bad_items import BadItemError
from spark_dbp.encoders.libraries import load_library
from spark_dbp.errors import ConfigError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# Models scale the shorter side to a fixed length: a line of 1 x 20,000 pixels would become one of gigabytes.
MOST_ELONGATED = 200
_ORIENTATION = 0x0112  # the tag of EXIF


@cache
def _load_pillow() -> Any:
    image = load_library("PIL.Image")
    load_library("PIL.ImageFile").LOAD_TRUNCATED_IMAGES = False
    # Our own limit stands in its place: it is the user's, and is looked at before decoding too.
    image.MAX_IMAGE_PIXELS = None
    return image


def decode_image(content: bytes | memoryview, max_pixels: int) -> Any:
    """Decode one image file. The content decides what it is, not a name.

    Truncated files are refused, never decoded in part. Alpha and transparent colours lie on white, EXIF's
    rotation is applied, grey of 16 bits is scaled to 8, CMYK and palettes become RGB, of an animation the
    first frame is taken. Colour profiles are not applied.

    Parameters
    ----------
    content : bytes or memoryview
        A whole file: JPEG, PNG, WebP, GIF, BMP or TIFF.
    max_pixels : int
        Files with more (width times height) are refused from their header, before decoding.

    Returns
    -------
    PIL.Image.Image
        RGB, loaded.

    Raises
    ------
    BadItemError
        With one of the reasons of `bad_items`.
    """
    if len(content) == 0:
        raise BadItemError(bad_items.EMPTY_IMAGE)
    pillow = _load_pillow()
    try:
        image = pillow.open(io.BytesIO(content), formats=FORMATS)
        width, height = image.size
        if width * height > max_pixels:
            raise BadItemError(bad_items.TOO_LARGE)
        if max(width, height) > MOST_ELONGATED * min(width, height):
            raise BadItemError(bad_items.TOO_NARROW)
        image.load()
        return _to_rgb(pillow, _rotate(pillow, image))
    except (BadItemError, MemoryError):
        raise
    # Pillow meets broken files with errors of many types (ValueError, SyntaxError, struct.error, zlib.error
    # ...).
    except Exception as error:
        is_cut = "truncated" in str(error).lower()
        raise BadItemError(bad_items.TRUNCATED if is_cut else bad_items.UNDECODABLE) from error


def _rotate(pillow: Any, image: Any) -> Any:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken EXIF says nothing of the pixels
        return image
    turn = pillow.Transpose
    turns = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_270,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image


def _to_rgb(pillow: Any, image: Any) -> Any:
    mode = image.mode
    if mode.startswith("I;16") or mode == "I":
        # convert("L") would clip at 255. Pillow before 11 gives 16-bit grey as "I".
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 65_535:
            raise BadItemError(bad_items.DEEP_PIXELS)
        scaled = ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)
        return pillow.fromarray(scaled).convert("RGB")
    if mode == "F":
        raise BadItemError(bad_items.DEEP_PIXELS)
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        over = image.convert("RGBA")
        white = pillow.new("RGB", over.size, (255, 255, 255))
        white.paste(over, mask=over.getchannel("A"))
        return white
    return image if mode == "RGB" else image.convert("RGB")


@dataclass(frozen=True)
class PixelSteps:
    """How an image becomes an array: resize, crop at the centre, scale to [0, 1], subtract mean, divide by
    std.

    Attributes
    ----------
    resize : int or (int, int) or None
        Length of the shorter side, or (height, width), in pixels; None: not resized.
    crop : (int, int) or None
        Height and width of the crop; what is smaller is padded with black.
    resample : int
        Pillow's number of the filter: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic.
    mean, std : sequence of 3 floats
        Of values in [0, 1].

    Examples
    --------
    >>> PixelSteps.from_options({"size": 224}).resize
    (224, 224)
    """

    resize: int | tuple[int, int] | None
    crop: tuple[int, int] | None = None
    resample: int = 2
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> PixelSteps:
        """From ``size`` (pixels, or [height, width]), ``mean``, ``std`` and ``resample`` of `embed.options`.

        Raises
        ------
        ConfigError
        """
        try:
            return cls(
                resize=_read_pair(options["size"]),
                resample=_read_filter(options.get("resample", 2)),
                mean=_read_three(options.get("mean", (0.0, 0.0, 0.0))),
                std=_read_three(options.get("std", (1.0, 1.0, 1.0))),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"embed.options do not say how images become pixels: {error!r}",
                mend="give size (pixels, or [height, width]), mean and std (3 numbers each), and resample "
                "(nearest, lanczos, bilinear or bicubic)",
            ) from error

    @classmethod
    def from_processor(cls, config: Mapping[str, Any], where: str) -> PixelSteps:
        """From what transformers writes into preprocessor_config.json.

        Raises
        ------
        ConfigError
        """
        try:
            resize: int | tuple[int, int] | None = None
            if config.get("do_resize", True):
                size = config["size"]
                shorter = size.get("shortest_edge") if isinstance(size, Mapping) else None
                resize = int(shorter) if shorter is not None else _read_pair(size)
            crop = _read_pair(config["crop_size"]) if config.get("do_center_crop") else None
            scale = (
                float(config.get("rescale_factor", 1 / 255)) * 255
                if config.get("do_rescale", True)
                else 255.0
            )
            normalize = config.get("do_normalize", True)
            mean = _read_three(config["image_mean"]) if normalize else (0.0, 0.0, 0.0)
            std = _read_three(config["image_std"]) if normalize else (1.0, 1.0, 1.0)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{where} does not say how images become pixels: {error!r}",
                mend="give embed.options size, mean, std and resample instead",
            ) from error
        # (scale * x - mean) / std, for x in [0, 1].
        mean, std = tuple(m / scale for m in mean), tuple(s / scale for s in std)
        return cls(resize, crop, _read_filter(config.get("resample", 2)), mean, std)

    def apply(self, image: Any) -> npt.NDArray[np.float32]:
        """The pixels of an RGB image as float32, shape (3, height, width)."""
        if self.resize is not None:
            image = image.resize(self._find_size(image.size), self.resample)
        if self.crop is not None:
            height, width = self.crop
            left, top = (image.size[0] - width) // 2, (image.size[1] - height) // 2
            image = image.crop((left, top, left + width, top + height))
        raw = np.asarray(image)
        pixels = np.empty((3, *raw.shape[:2]), np.float32)
        for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            np.multiply(raw[..., channel], np.float32(1 / (255 * std)), out=pixels[channel])
            pixels[channel] -= np.float32(mean / std)
        return pixels

    def _find_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height after resizing an image of this width and height."""
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        assert self.resize is not None
        width, height = size
        if width <= height:
            return self.resize, self.resize * height // width
        return self.resize * width // height, self.resize


def _read_pair(value: Any) -> tuple[int, int]:
    if isinstance(value, Mapping):
        return int(value["height"]), int(value["width"])
    if isinstance(value, Sequence) and not isinstance(value, str):
        height, width = value
        return int(height), int(width)
    return int(value), int(value)


def _read_three(value: Any) -> tuple[float, ...]:
    first, second, third = value
    return float(first), float(second), float(third)


def _read_filter(value: Any) -> int:
    names = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}
    if isinstance(value, str):
        return names[value.lower()]
    return int(value)
