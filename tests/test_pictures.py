"""Decoding what strangers send as pictures."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from wan_host.errors import ReferenceRejected
from wan_host.pictures import fit, shrink
from wan_host.references import ReferenceLimits, decode_image

FIELD = "config.first_frame"
LIMITS = ReferenceLimits()


def encoded(image, **options):
    out = io.BytesIO()
    image.save(out, **{"format": "PNG"} | options)
    return out.getvalue()


def decode(data, limits=LIMITS):
    return decode_image(data, FIELD, limits)


def refusal(data, limits=LIMITS):
    with pytest.raises(ReferenceRejected) as caught:
        decode(data, limits)
    assert str(caught.value).startswith(f"{FIELD}: ")
    return str(caught.value)


def gradient(width=40, height=24):
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([x, y, (x + y) / 2], axis=-1).astype(np.uint8)


@pytest.mark.parametrize(
    "options", [{"format": "PNG"}, {"format": "BMP"}, {"format": "WEBP", "lossless": True}, {"format": "JPEG", "quality": 98}]
)
def test_the_allowed_formats_come_out_as_rgb_of_their_own_size(options):
    pixels = decode(encoded(Image.fromarray(gradient()), **options))
    assert pixels.dtype == np.uint8
    assert pixels.shape == (24, 40, 3)
    assert np.abs(pixels.astype(int) - gradient()).mean() < 3


def test_a_gif_of_one_frame_is_decoded_through_its_palette():
    image = Image.new("RGB", (8, 4), (255, 0, 0))
    assert (decode(encoded(image, format="GIF")) == (255, 0, 0)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = Image.fromarray(gradient())
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert (decode(encoded(stored, exif=exif)) == gradient()).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_make_a_picture_unusable():
    data = encoded(Image.fromarray(gradient()), format="JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert decode(data).shape == (24, 40, 3)


def test_alpha_is_flattened_on_white():
    image = Image.new("RGBA", (2, 1), (200, 0, 0, 0))
    image.putpixel((1, 0), (200, 0, 0, 255))
    assert decode(encoded(image)).tolist() == [[[255, 255, 255], [200, 0, 0]]]


def test_a_transparent_palette_entry_is_flattened_on_white():
    image = Image.new("P", (2, 1), 0)
    image.putpalette([9, 9, 9, 50, 60, 70])
    image.putpixel((1, 0), 1)
    assert decode(encoded(image, transparency=0)).tolist() == [[[255, 255, 255], [50, 60, 70]]]


def test_grey_with_and_without_alpha_becomes_rgb():
    assert decode(encoded(Image.new("L", (2, 2), 77)))[0, 0].tolist() == [77, 77, 77]
    assert decode(encoded(Image.new("LA", (2, 2), (77, 255))))[0, 0].tolist() == [77, 77, 77]
    assert decode(encoded(Image.new("1", (2, 2), 1)))[0, 0].tolist() == [255, 255, 255]


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    image = Image.fromarray(np.array([[0, 0x4000, 0xFFFF]], dtype=np.uint16))
    assert decode(encoded(image))[0, :, 0].tolist() == [0, 0x40, 0xFF]


def test_cmyk_becomes_rgb():
    red = decode(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), format="JPEG", quality=95))
    assert red[8, 8, 0] > 200
    assert red[8, 8, 1:].max() < 80


def test_an_icc_profile_is_converted_to_srgb():
    linear = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ"))  # no RGB profile: does not fit, is ignored
    assert decode(encoded(Image.new("RGB", (2, 2), (90, 91, 92)), icc_profile=linear.tobytes()))[0, 0].tolist() == [90, 91, 92]
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    same = decode(encoded(Image.new("RGB", (2, 2), (90, 91, 92)), icc_profile=srgb.tobytes()))
    assert np.abs(same[0, 0].astype(int) - (90, 91, 92)).max() <= 1
    broken = encoded(Image.new("RGB", (2, 2), (90, 91, 92)), icc_profile=b"no profile at all")
    assert decode(broken)[0, 0].tolist() == [90, 91, 92]


def test_a_photo_with_a_second_view_is_no_animation():
    first, second = Image.fromarray(gradient()), Image.fromarray(gradient()[::-1])
    data = encoded(first, format="MPO", save_all=True, append_images=[second])
    assert decode(data).shape == (24, 40, 3)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animations_are_refused(kind):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "green")]
    assert "animated" in refusal(encoded(frames[0], format=kind, save_all=True, append_images=frames[1:]))


@pytest.mark.parametrize(
    "data", [b"<html>not found</html>", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", b"\x00" * 99]
)
def test_what_is_no_image_is_refused_with_the_allowed_formats(data):
    assert "PNG, JPEG, WEBP, GIF, BMP" in refusal(data)


def test_nothing_at_all_is_refused():
    assert "empty" in refusal(b"")


def test_other_image_formats_are_refused():
    assert "no image" in refusal(encoded(Image.fromarray(gradient()), format="TIFF"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_truncated_pictures_are_refused(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, format=kind)
    refusal(data[: len(data) // 2])


@pytest.mark.filterwarnings("ignore")  # decoders warn of what they repair
def test_flipped_bytes_never_raise_anything_but_a_refusal():
    data = encoded(Image.fromarray(gradient()), format="PNG")
    generator = np.random.default_rng(1)
    for _ in range(200):
        broken = bytearray(data)
        for position in generator.integers(0, len(data), 4):
            broken[position] = generator.integers(256)
        try:
            decode(bytes(broken))
        except ReferenceRejected:
            continue


def test_the_pixel_limit_is_judged_by_the_header_before_anything_is_decoded():
    assert "10000x6000 = 60,000,000 pixels" in refusal(png_bomb(10_000, 6_000))
    assert "too many pixels" in refusal(png_bomb(60_000, 60_000))
    small = ReferenceLimits(max_pixels=100)
    assert "at most 100 are allowed" in refusal(encoded(Image.fromarray(gradient())), small)


def test_a_decompression_bomb_in_the_text_of_a_png_is_refused():
    text = b"comment\x00\x00" + zlib.compress(bytes(50_000_000))
    whole = encoded(Image.fromarray(gradient()))
    refusal(whole[:33] + chunk(b"zTXt", text) + whole[33:])


def test_fit_crops_around_the_centre_and_hits_the_size_exactly():
    image = np.zeros((100, 300, 3), dtype=np.uint8)
    image[:, 100:200] = (0, 255, 0)
    fitted = fit(image, 64, 64)
    assert fitted.shape == (64, 64, 3)
    assert (fitted[:, 4:-4] == (0, 255, 0)).all()  # the filter looks a few pixels over the edge of the crop


def test_fit_leaves_a_picture_of_the_right_size_as_it_is():
    assert (fit(gradient(), 40, 24) == gradient()).all()


@pytest.mark.parametrize(("height", "width"), [(1, 3000), (3000, 1), (1, 1), (17, 33)])
def test_fit_copes_with_every_shape(height, width):
    assert fit(np.full((height, width, 3), 9, dtype=np.uint8), 48, 80).shape == (80, 48, 3)


def test_shrink_keeps_the_aspect_and_never_enlarges():
    assert shrink(np.zeros((300, 600, 3), dtype=np.uint8), 200).shape == (100, 200, 3)
    assert shrink(np.zeros((30, 60, 3), dtype=np.uint8), 200).shape == (30, 60, 3)
    assert shrink(np.zeros((1, 6000, 3), dtype=np.uint8), 200).shape == (1, 200, 3)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_bomb(width, height):
    """A few kilobytes that say they are ``width`` x ``height``."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1 << 20), 9)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(20_000, 20), (20, 20_000)])
def test_a_side_of_twenty_thousand_pixels_is_refused_whatever_the_area(size):
    said = refusal(encoded(Image.new("L", size)))
    assert said == f"{FIELD}: the image has {size[0]}x{size[1]} pixels; at most 16,384 a side are allowed"
