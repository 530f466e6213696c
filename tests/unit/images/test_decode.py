import io
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from deepfake_ray.errors import ErrorCode, ImageError
from deepfake_ray.images.decode import Limits, decode, header
from deepfake_ray.images.formats.containers import sniff
from deepfake_ray.images.preprocessing import CROP, Preparation, prepare, spread_crops

LIMITS = Limits(max_bytes=1_000_000, max_pixels=1_000_000)

# A smooth picture (lossy formats keep it to a few grey levels) whose corners differ, so that turning shows.
Y, X = np.mgrid[0:48, 0:64]
PICTURE = np.stack([4 * X, 5 * Y, 255 - 2 * (X + Y)], axis=-1).clip(0, 255).astype(np.uint8)
GREY = np.repeat((3 * X + Y).astype(np.uint8)[..., None], 3, axis=2)


def encode(image, kind, **options):
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def rgb():
    return Image.fromarray(PICTURE)


def close(pixels, expected, tolerance):
    assert pixels.dtype == np.uint8
    assert pixels.shape == expected.shape
    differences = np.abs(pixels.astype(int) - expected.astype(int)).max(axis=-1)
    assert differences.mean() <= 2 * tolerance
    height, width = (side // 8 * 8 for side in differences.shape)
    blocks = (
        differences[:height, :width].reshape(height // 8, 8, -1, 8) if height and width else differences[None, :, None]
    )
    assert blocks.mean(axis=(1, 3)).max(initial=0) <= 5 * tolerance  # no block of 8 x 8 is lost


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("JPEG", {"quality": 95}, 3),
        ("JPEG", {"quality": 95, "progressive": True}, 3),
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 95}, 4),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("AVIF", {"quality": 95}, 4),
    ],
)
def test_decodes_rgb(kind, options, tolerance):
    decoded = decode(encode(rgb(), kind, **options), LIMITS)
    close(decoded.pixels, PICTURE, tolerance)
    assert (decoded.format, decoded.width, decoded.height) == (kind.lower(), 64, 48)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_grey_becomes_three_equal_channels(kind):
    close(decode(encode(Image.fromarray(GREY[..., 0]), kind), LIMITS).pixels, GREY, 2)


def test_palette_png_and_gif():
    paletted = rgb().quantize(64)
    expected = np.asarray(paletted.convert("RGB"))
    close(decode(encode(paletted, "PNG"), LIMITS).pixels, expected, 0)
    close(decode(encode(paletted, "GIF"), LIMITS).pixels, expected, 0)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=100, **options)
    close(decode(data, LIMITS).pixels, np.full((8, 8, 3), (255, 0, 0), np.uint8), 0)


def test_cmyk_jpeg():
    # Full cyan ink, no other: red is absorbed. Half black ink: every channel is halved.
    for inks, expected in (((255, 0, 0, 0), (0, 255, 255)), ((0, 0, 0, 128), (127, 127, 127))):
        data = encode(Image.new("CMYK", (16, 16), inks), "JPEG", quality=100)
        close(decode(data, LIMITS).pixels, np.full((16, 16, 3), expected, np.uint8), 2)


def test_16_bit_png_is_shifted_not_clipped():
    deep = (X * 1000).astype(np.uint16)  # 0 .. 63,000
    expected = np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, axis=2)
    close(decode(encode(Image.fromarray(deep), "PNG"), LIMITS).pixels, expected, 0)


def test_32_bit_pixels_are_unsupported():
    assert code_of(encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")) == "unsupported_format"


def test_alpha_is_composed_over_white():
    for alpha, expected in ((0, (255, 255, 255)), (255, (200, 0, 0)), (51, (244, 204, 204))):
        data = encode(Image.new("RGBA", (4, 4), (200, 0, 0, alpha)), "PNG")
        close(decode(data, LIMITS).pixels, np.full((4, 4, 3), expected, np.uint8), 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a.transpose(1, 0, 2), 2)),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_exif_orientation(kind, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if kind == "JPEG" else {}
    close(decode(encode(rgb(), kind, exif=exif, **options), LIMITS).pixels, upright(PICTURE), 3)


LARGE = np.ascontiguousarray(np.kron(PICTURE, np.ones((10, 10, 1), np.uint8)))  # 640 x 480


@pytest.mark.parametrize(
    ("enough", "shape"),
    [
        (None, (480, 640)),
        (60, (60, 80)),  # an eighth
        (61, (120, 160)),  # a quarter: libjpeg has the scales 1/8, 2/8 ...
        (100, (120, 160)),
        (241, (480, 640)),  # less than half is no gain
        (10_000, (480, 640)),
    ],
)
def test_a_large_jpeg_is_decoded_as_far_as_needed(enough, shape):
    image = decode(encode(Image.fromarray(LARGE), "JPEG", quality=95), LIMITS, enough)
    assert image.pixels.shape == (*shape, 3)
    assert (image.width, image.height) == (640, 480)
    whole = decode(encode(Image.fromarray(LARGE), "JPEG", quality=95), LIMITS).pixels
    preparation = Preparation(image_size=32)
    close(prepare(image.pixels, preparation), prepare(whole, preparation), 1.5)


def test_a_sideways_jpeg_keeps_its_sides_when_it_is_reduced():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = decode(encode(Image.fromarray(LARGE), "JPEG", quality=95, exif=exif), LIMITS, 60)
    assert image.pixels.shape == (80, 60, 3)
    assert (image.width, image.height) == (480, 640)
    small = np.asarray(Image.fromarray(np.rot90(LARGE, -1)).resize((60, 80), Image.Resampling.BOX))
    close(image.pixels, small, 3)


def test_a_cut_jpeg_is_truncated_at_any_scale():
    data = encode(Image.fromarray(LARGE), "JPEG", quality=95)
    for cut in (data[: len(data) // 2], data[: len(data) // 2] + b"\xff\xd9"):
        with pytest.raises(ImageError) as caught:
            decode(cut, LIMITS, 60)
        assert caught.value.code is ErrorCode.TRUNCATED


def test_how_far_a_preparation_needs_a_jpeg():
    assert Preparation(image_size=32).enough is None
    assert Preparation(image_size=32, decode_margin=2).enough == 64
    assert Preparation(image_size=33, decode_margin=1.5).enough == 50
    assert Preparation(image_size=32, decode_margin=2, resize=CROP).enough is None
    assert Preparation.from_json(Preparation(image_size=32, decode_margin=2).to_json()).decode_margin == 2
    assert "decode_margin" not in Preparation(image_size=32).to_json()  # a bundle from before keeps its id


def test_damaged_exif_does_not_cost_the_picture():
    data = encode(rgb(), "JPEG", quality=95, exif=b"Exif\x00\x00garbage")
    close(decode(data, LIMITS).pixels, PICTURE, 3)


def code_of(data, limits=LIMITS):
    with pytest.raises(ImageError) as caught:
        decode(data, limits)
    return str(caught.value.code)


def faulty():
    # Noise, so that the picture is most of the file.
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8))
    jpeg, png = encode(noise, "JPEG", quality=90), encode(noise, "PNG")
    gif, bmp = encode(noise.quantize(64), "GIF"), encode(noise, "BMP")
    webp, tiff = encode(noise, "WEBP"), encode(noise, "TIFF")
    broken = bytearray(png)
    broken[60:70] = b"\xff" * 10
    return {
        "empty": (b"", "empty"),
        "text": (b"this is no picture", "not_an_image"),
        "html": (b"<html><body>403</body></html>", "not_an_image"),
        "jpeg, a few bytes": (jpeg[:3], "truncated"),
        "jpeg, its header cut": (jpeg[:100] + b"\xff\xd9", "truncated"),
        "jpeg, no scan": (jpeg[: jpeg.index(b"\xff\xda")] + b"\xff\xd9", "decode_failed"),
        "jpeg cut": (jpeg[: len(jpeg) // 2], "truncated"),
        "jpeg cut, with an end marker": (jpeg[: len(jpeg) // 2] + b"\xff\xd9", "truncated"),
        "progressive jpeg cut": (encode(noise, "JPEG", progressive=True)[:-200] + b"\xff\xd9", "truncated"),
        "png cut": (png[: len(png) // 2], "truncated"),
        "png cut, with an end marker": (png[: len(png) // 2] + png[-12:], "truncated"),
        "png damaged": (bytes(broken), "decode_failed"),
        "gif cut": (gif[: len(gif) // 2], "truncated"),
        "bmp cut": (bmp[: len(bmp) // 2], "truncated"),
        "webp cut": (webp[: len(webp) // 2], "truncated"),
        "tiff cut": (tiff[: len(tiff) // 2], "truncated"),
        "jpeg xl": (b"\xff\x0a" + bytes(20), "unsupported_format"),
        "photoshop": (b"8BPS" + bytes(20), "unsupported_format"),
    }


@pytest.mark.parametrize("name", faulty())
def test_faulty_files_have_a_code_and_no_picture(name):
    data, expected = faulty()[name]
    code = code_of(data)
    assert code == expected


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "AVIF"])
def test_no_prefix_of_a_file_decodes(kind):
    image = rgb().quantize(64) if kind == "GIF" else rgb()
    data = encode(image, kind)
    for tenth in range(1, 10):
        code_of(data[: len(data) * tenth // 10])


def test_limits():
    data = encode(rgb(), "PNG")
    assert code_of(data, Limits(max_bytes=len(data) - 1, max_pixels=10**6)) == "too_large"
    for kind in ("PNG", "JPEG"):
        assert code_of(encode(rgb(), kind), Limits(max_bytes=10**6, max_pixels=48 * 64 - 1)) == "too_large"
    assert decode(data, Limits(max_bytes=len(data), max_pixels=48 * 64)).width == 64


def test_a_png_that_declares_a_huge_size_is_not_decoded():
    data = bytearray(encode(rgb(), "PNG"))
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    assert code_of(bytes(data)) == "too_large"


def test_wrong_suffix_does_not_matter_but_the_bytes_do():
    assert sniff(encode(rgb(), "PNG")) == "png"
    assert sniff(b"RIFF\x00\x00\x00\x00WAVE") is None


@pytest.mark.parametrize("quality", [30, 50, 75, 90, 95])
def test_jpeg_quality_is_estimated_from_the_table(quality):
    assert header(encode(rgb(), "JPEG", quality=quality)).jpeg_quality == quality


def test_prepare_resizes_to_the_square_and_leaves_the_right_size_alone():
    preparation = Preparation(image_size=32)
    flat = np.full((100, 50, 3), 77, np.uint8)
    assert np.array_equal(prepare(flat, preparation), np.full((32, 32, 3), 77, np.uint8))
    square = PICTURE[:32, :32]
    assert prepare(square, preparation) is square


def test_preparation_survives_json_and_refuses_what_it_does_not_know():
    preparation = Preparation(image_size=96)
    assert Preparation.from_json(preparation.to_json()) == preparation
    with pytest.raises(ValueError, match="unknown preparation"):
        Preparation.from_json({**preparation.to_json(), "resize": "pad"})


def test_crops_leave_pixels_untouched():
    pixels = np.arange(40 * 60 * 3, dtype=np.uint32).astype(np.uint8).reshape(40, 60, 3)
    preparation = Preparation(image_size=32, resize=CROP)
    assert np.array_equal(prepare(pixels, preparation), pixels[4:36, 14:46])
    assert np.array_equal(prepare(pixels, preparation, (0, 0)), pixels[:32, :32])
    assert np.array_equal(prepare(pixels, preparation, (1, 1)), pixels[8:, 28:])
    assert np.array_equal(prepare(pixels[:32, :32], preparation, (0.3, 0.9)), pixels[:32, :32])


def test_small_images_are_enlarged_before_they_are_cropped():
    """20 x 10 becomes 64 x 32, and the crop is its middle: the left half stays dark, the right half bright."""
    pixels = np.zeros((10, 20, 3), np.uint8)
    pixels[:, 10:] = 200
    found = prepare(pixels, Preparation(image_size=32, resize=CROP))
    assert found.shape == (32, 32, 3)
    assert found[:, :14].max() == 0
    assert found[:, 18:].min() == 200


def test_places_are_spread():
    places = spread_crops(9)
    assert places[0] == (0.5, 0.5)
    assert all(0 <= x < 1 and 0 <= y < 1 for x, y in places)
    gaps = [np.hypot(a[0] - b[0], a[1] - b[1]) for i, a in enumerate(places) for b in places[:i]]
    assert min(gaps) > 0.2


def test_headers_tell_without_pixels():
    import hostile

    from deepfake_ray.images.decode import Header, header

    for name, data in hostile.valid().items():
        kind = hostile.kind_of(name)
        quality = {"jpeg": 90, "jpeg-progressive": 75, "jpeg-420": 50}.get(name)
        assert header(data) == Header(kind, 120, 96, quality)
    assert header(b"") is header(b"no image") is header(b"\x89PNG\r\n\x1a\n") is None


def test_reencoding_gives_all_images_the_traces_of_one_jpeg():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)
    preparation = Preparation(image_size=48, reencode=60)
    found = prepare(pixels, preparation)
    expected = np.asarray(Image.open(io.BytesIO(simplejpeg.encode_jpeg(pixels, 60, colorsubsampling="420"))))
    assert np.abs(found.astype(int) - expected).max() <= 2  # two decoders
    assert np.abs(found.astype(int) - pixels).mean() > 5
    assert Preparation.from_json(preparation.to_json()) == preparation
    assert "reencode" not in Preparation(image_size=48).to_json()  # a bundle from before keeps its id
