"""Pictures of strangers, decoded with care: formats, sizes and frames are judged before a pixel is decoded."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from wan_host.errors import ReferenceRejected

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")

_MAX_SIDE = 16_384
"""Pixels: WEBP's own limit, and more than any camera's. What is longer is a mistake, whose middle nobody means."""
_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(data: bytes, field: str, max_pixels: int) -> NDArray[np.uint8]:
    """Decode one picture to sRGB, uint8 of shape (height, width, 3).

    EXIF orientation is applied, alpha is flattened on white, an ICC profile is converted to sRGB (ignored where it is broken
    or does not fit the picture). Raises ReferenceRejected, which begins with ``field``, for other formats than FORMATS,
    animations, truncated files, and, judged by the header alone, more than ``max_pixels`` or a side of more than 16,384.
    """
    if not data:
        raise ReferenceRejected(f"{field}: the reference is empty; allowed is an image ({', '.join(FORMATS)})")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ReferenceRejected(f"{field}: this is no image; allowed are {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ReferenceRejected(f"{field}: the image has too many pixels; at most {max_pixels:,} are allowed") from None
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  # decoders raise whatever a hostile file provokes
        raise ReferenceRejected(f"{field}: the image cannot be read ({type(error).__name__})") from None
    with image:
        _check_size(image, field, max_pixels)
        try:
            animated = _is_animated(image)
            pixels = None if animated else _to_rgb(image)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  # as above
            raise ReferenceRejected(f"{field}: the image is damaged or truncated ({type(error).__name__})") from None
    if pixels is None:
        raise ReferenceRejected(f"{field}: the image is animated; allowed is an image of one frame")
    return pixels


def _check_size(image: Image.Image, field: str, max_pixels: int) -> None:
    width, height = image.size
    if max(width, height) > _MAX_SIDE:
        raise ReferenceRejected(f"{field}: the image has {width}x{height} pixels; at most {_MAX_SIDE:,} a side are allowed")
    if width * height > max_pixels:
        size = f"{width}x{height} = {width * height:,}"
        raise ReferenceRejected(f"{field}: the image has {size} pixels; at most {max_pixels:,} are allowed")


def fit(image: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Crop around the centre to the aspect of ``width`` x ``height``, then resize to exactly that (Lanczos)."""
    if image.shape[:2] == (height, width):
        return image
    return np.array(ImageOps.fit(Image.fromarray(image), (width, height), method=Image.Resampling.LANCZOS))


def shrink(image: NDArray[np.uint8], longest: int) -> NDArray[np.uint8]:
    """Return ``image`` with its longest edge at most ``longest`` pixels, aspect kept (Lanczos); never enlarge."""
    height, width = image.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, math.floor(width * scale + 0.5)), max(1, math.floor(height * scale + 0.5)))
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    turn = _TURNS.get(_orientation(image))
    profile = image.info.get("icc_profile")
    image.load()
    picture: Image.Image = image
    if picture.mode.startswith("I"):  # 16 bits of grey: Pillow's own conversion clips instead of scaling
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    elif picture.has_transparency_data:
        picture = picture.convert("RGBA")
    elif picture.mode not in {"RGB", "CMYK", "L"}:
        picture = picture.convert("RGB")
    if profile:
        picture = _to_srgb(picture, profile)
    if picture.mode == "RGBA":
        white = Image.new("RGB", picture.size, "white")
        white.paste(picture, mask=picture.getchannel("A"))
        picture = white
    if picture.mode != "RGB":
        picture = picture.convert("RGB")
    if picture is not image:
        image.close()  # pictures at the limit take 200 MB a copy: keep as few as possible
    if turn is not None:
        picture = picture.transpose(turn)
    return np.array(picture)


def _is_animated(image: Image.Image) -> bool:
    # Phones append a second view of the same photo to a JPEG (format MPO): no animation.
    return image.format != "MPO" and bool(getattr(image, "is_animated", False))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # noqa: BLE001  # broken metadata does not make a picture unusable
        return 1


def _to_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    output = "RGBA" if picture.mode == "RGBA" else "RGB"
    try:
        converted = ImageCms.profileToProfile(picture, io.BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode=output)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return picture
    return converted or picture
