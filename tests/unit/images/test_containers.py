"""One picture in every container, layout and order of parts: always the same pixels, or a code that says why not."""

import io
import struct
import zlib

import layouts
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import chunk, chunks, encode, exif, png, segment, segments
from PIL import Image

from deepfake_ray.errors import ErrorCode, ImageError
from deepfake_ray.images.decode import Limits, decode, header
from deepfake_ray.images.formats import foreign
from deepfake_ray.images.formats.containers import sniff

LIMITS = Limits(max_bytes=1 << 26, max_pixels=1 << 24)
PICTURE = layouts.photograph()
IMAGE = Image.fromarray(PICTURE)
GREY = np.asarray(IMAGE.convert("L"))
GREY3 = np.repeat(GREY[..., None], 3, axis=2)
KINDS = layouts.of_all_kinds()
JPEG = KINDS["jpeg-baseline"]
TURN = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a.transpose(1, 0, 2), 2),
    8: lambda a: np.rot90(a),
}


def pixels(data):
    """The decoded picture; its header, where there is one, says the same."""
    found = decode(data, LIMITS)
    assert found.pixels.shape == (found.height, found.width, 3)
    said = header(data)
    assert (said.format, said.width, said.height) == (found.format, found.width, found.height)
    assert said.jpeg_quality == found.jpeg_quality
    return found.pixels


def code(data):
    with pytest.raises(ImageError) as caught:
        decode(data, LIMITS)
    return str(caught.value.code)


def pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def mean_difference(a, b):
    assert a.shape == b.shape
    return np.abs(a.astype(int) - b).mean()


# --- right pixels in every layout


@pytest.mark.parametrize("name", KINDS)
def test_all_kinds_give_the_picture(name):
    expected = {"turned": TURN[6](PICTURE), "bit": None, "grey": GREY3, "grey12": GREY3, "grey16": GREY3}
    wanted = next((expected[word] for word in name.split("-") if word in expected), PICTURE)
    found = pixels(KINDS[name])
    if wanted is None:
        assert np.array_equal(found, np.repeat(np.asarray(IMAGE.convert("1"))[..., None], 3, axis=2) * 255)
    elif "alpha" in name and not name.startswith("bmp"):
        share = np.minimum(np.mgrid[0:48, 0:64][1] * 4, 255)[..., None] / 255
        assert mean_difference(found, PICTURE * share + 255 * (1 - share)) < 6
    else:
        tolerance = 10 if "palette" in name or name.startswith("gif") else 5
        assert mean_difference(found, wanted) <= (tolerance if name.split("-")[1] not in ("rgb", "lzw") else 5)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planar", [False, True])
def test_deep_tiff_rgb(bits, order, planar):
    """darktable 18815, Pillow 5178: planes were taken for rows, 10 to 14 bits for the lower ones of 16."""
    deep = (PICTURE.astype(np.uint16) << (bits - 8)) | 3
    data = layouts.tiff(deep, bits, 2, planar=planar, order=order, rows_per_strip=7)
    assert np.array_equal(pixels(data), PICTURE)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("width", [1, 63, 64])
def test_deep_tiff_grey(bits, width):
    """Pillow 2610, 5403: 12 bits were nearly black. Rows of odd widths end within a byte."""
    grey = GREY[:, :width]
    deep = (grey.astype(np.uint16) << (bits - 8))[..., None]
    expected = np.repeat(grey[..., None], 3, axis=2)
    assert np.array_equal(pixels(layouts.tiff(deep, bits, 1)), expected)
    assert np.array_equal(pixels(layouts.tiff((1 << bits) - 1 - deep, bits, 0, rows_per_strip=5)), expected)


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("photometric", [0, 1])
def test_compressed_deep_tiff_is_right_or_unsupported(bits, photometric):
    deep = (GREY.astype(np.uint16) << (bits - 8))[..., None]
    stored = (1 << bits) - 1 - deep if photometric == 0 else deep
    data = layouts.tiff(stored, bits, photometric, deflate=True)
    try:
        found = decode(data, LIMITS).pixels
    except ImageError:
        assert code(data) == "unsupported_format"
    else:
        assert np.array_equal(found, GREY3)


def test_compressed_deep_planes():
    data = layouts.tiff(PICTURE.astype(np.uint16) * 257, 16, 2, planar=True, deflate=True)
    assert np.array_equal(pixels(data), PICTURE)


def test_layouts_that_pillow_gets_wrong_are_unsupported():
    """Rows of deep planes are taken for pixels, the second of two planes for grey, differences for samples."""
    deep = np.dstack([PICTURE, GREY]).astype(np.uint16) * 257
    assert code(layouts.tiff(deep, 16, 2, planar=True, more=[(338, 2)])) == "unsupported_format"
    assert code(layouts.tiff(deep, 16, 5, planar=True)) == "unsupported_format"
    two = np.dstack([GREY, GREY // 2])
    assert code(layouts.tiff(two, 8, 1, planar=True, deflate=True, more=[(338, 2)])) == "unsupported_format"
    predicted = layouts.tiff(PICTURE, 8, 2, deflate=True, more=[(317, 2)])
    deflate, pack_bits = (struct.pack("<HHIH", 259, 3, 1, kind) for kind in (8, 32773))
    assert code(predicted.replace(deflate, pack_bits)) == "unsupported_format"


@pytest.mark.parametrize("more", [(339, 2), (339, 3)])
def test_signed_and_floating_tiffs_are_unsupported(more):
    data = layouts.tiff(GREY[..., None].astype(np.uint16), 16, 1, more=[more])
    assert code(data) == "unsupported_format"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("deep", [False, True])
def test_tiff_orientation(orientation, deep):
    data = layouts.tiff(PICTURE.astype(np.uint16) * 257, 16, 2, planar=deep, more=[(274, orientation)])
    assert np.array_equal(pixels(data), TURN[orientation](PICTURE))


@pytest.mark.parametrize("header_bytes", [108, 124])
def test_a_bmp_whose_alpha_is_0_throughout_is_opaque(header_bytes):
    """ImageSharp 369 and 581, image 539."""
    for alpha in (0, 255):
        assert np.array_equal(pixels(layouts.bmp(PICTURE, alpha, header_bytes)), PICTURE)
    half = PICTURE * 0.5 + 127.5
    assert mean_difference(pixels(layouts.bmp(PICTURE, 128, header_bytes)), half) <= 1


def test_transparent_samples_of_16_bits():
    """Pillow 9281. Samples that share the upper 8 bits with the transparent one are not transparent."""
    grey = np.array([[0x1234, 0x1235, 0x1334]], np.uint16)[..., None]
    assert pixels(layouts.png_of(grey, 0, struct.pack(">H", 0x1234)))[0, :, 0].tolist() == [255, 0x12, 0x13]
    rgb = np.array([[[0x1234, 0x5678, 0x9ABC], [0x1234, 0x5678, 0x9ABD]]], np.uint16)
    found = pixels(layouts.png_of(rgb, 2, struct.pack(">HHH", 0x1234, 0x5678, 0x9ABC)))
    assert found.tolist() == [[[255] * 3, [0x12, 0x56, 0x9A]]]


@pytest.mark.parametrize(("depth", "more_bits"), [(1, 2), (2, 0), (2, 4), (4, 0), (4, 16), (8, 0), (8, 256)])
def test_transparent_samples_of_few_bits(depth, more_bits):
    """Of 2 and 4 bits Pillow compares the samples as it scaled them. Bits above the depth do not count."""
    samples = (np.arange(8) % (1 << depth)).astype(np.uint8)
    header = struct.pack(">IIBBBBB", 8, 1, depth, 0, 0, 0, 0)
    packed = np.packbits((samples[:, None] >> np.arange(depth)[::-1]) & 1).tobytes()
    data = png(
        [
            (b"IHDR", header),
            (b"tRNS", struct.pack(">H", 1 | more_bits)),
            (b"IDAT", zlib.compress(b"\0" + packed)),
            (b"IEND", b""),
        ]
    )
    shades = samples.astype(int) * 255 // ((1 << depth) - 1)
    assert pixels(data)[0, :, 0].tolist() == np.where(samples == 1, 255, shades).tolist()


# --- JPEG: what lies before the scan

XMP = b"http://ns.adobe.com/xap/1.0/\x00<x:xmpmeta Adobe Exif\x00\x00II*\x00 premature end of file, truncated/>"
PLAIN = [
    (0xE1, XMP),
    (0xE1, b"http://ns.adobe.com/xmp/extension/\x00Exif\x00\x00MM\x00*"),
    (0xE2, b"ICC_PROFILE\x00\x01\x01Copyright Adobe Systems"),
    (0xED, b"Photoshop 3.0\x00Adobe"),
    (0xEE, b"Acrobat, not Adobe"),
    (0xFE, b"Adobe Exif\x00\x00 JFIF\x00 \xff\xee not truncated"),
    (0xEB, b"\xff\xd8\xff\xe1\xff\xda\xff\xd9"),
]
parts = st.lists(st.tuples(st.sampled_from(PLAIN), st.sampled_from([0, 7, 30_000, 65_000])), max_size=6)


def with_segments(jpeg, drawn, more=()):
    """The file with segments (marker, content, bytes of filling) in places of their own, each with fill bytes."""
    edges = [start for start, _ in segments(jpeg)]
    inserted = {}
    for place, fill, part in drawn:
        inserted.setdefault(edges[place % len(edges)], []).append(b"\xff" * fill + part)
    out = jpeg[:2]
    for a, b in zip(edges, [*edges[1:], len(jpeg)], strict=True):
        out += b"".join(inserted.get(a, [])) + jpeg[a:b]
    return out


@st.composite
def insertions(draw):
    """(place, fill bytes, segment)"""
    return [
        (draw(st.integers(1, 8)), draw(st.sampled_from([0, 1, 3000])), segment(marker, content + bytes(length)))
        for (marker, content), length in draw(parts)
    ]


@settings(max_examples=25)
@given(insertions(), st.integers(1, 8), st.sampled_from("<>"), st.integers(1, 8), st.booleans())
def test_orientation_counts_wherever_it_lies(drawn, orientation, order, place, is_behind):
    """exif_reader 5, docx-editor 733: EXIF behind XMP and colour profiles of any length."""
    block = (place, 0, segment(0xE1, b"Exif\x00\x00" + exif(orientation, order)))
    made = with_segments(JPEG, [*drawn, block] if is_behind else [block, *drawn])
    assert np.array_equal(pixels(made), TURN[orientation](pillow(JPEG)))
    assert decode(made, LIMITS).jpeg_quality == decode(JPEG, LIMITS).jpeg_quality == 90


@settings(max_examples=25)
@given(insertions(), st.integers(1, 8), st.booleans())
def test_inks_are_inverted_by_app14_alone(drawn, place, is_adobe):
    """WeasyPrint 2179, sharp 1649: a real APP14 anywhere counts, the word in a text does not."""
    cmyk = layouts.without_segments(encode(IMAGE.convert("CMYK"), "JPEG", quality=95), 0xEE)
    adobe = (place, 0, segment(0xEE, b"Adobe\x00\x64\x00\x00\x00\x00\x00"))
    found = pixels(with_segments(cmyk, [*drawn, adobe] if is_adobe else drawn))
    paper = np.asarray(Image.open(io.BytesIO(cmyk)))  # Pillow inverts all
    inks = paper if is_adobe else 255 - paper
    expected = (255 - inks[..., :3].astype(float)) * (255 - inks[..., 3:].astype(float)) / 255
    assert mean_difference(found, expected) <= 1


def test_damaged_and_repeated_exif():
    blocks = [b"", b"garbage", b"II*\x00\xff\xff\xff\xff", exif(9), exif(6)[:14], b"MM\x00*\x00\x00\x00\x08\xff\xff"]
    for block in blocks:
        made = with_segments(JPEG, [(1, 0, segment(0xE1, b"Exif\x00\x00" + block))])
        assert np.array_equal(pixels(made), pillow(JPEG))
    # A directory that says it has more entries than there are still has those.
    more = exif(6)[:8] + struct.pack("<H", 40) + exif(6)[10:]
    made = with_segments(JPEG, [(1, 0, segment(0xE1, b"Exif\x00\x00" + more))])
    assert np.array_equal(pixels(made), TURN[6](pillow(JPEG)))


# --- JPEG: what viewers show all the same (jpeg-decoder 43, 130; yolov5 3450; generative_inpainting 188)


def jpegs():
    return [encode(IMAGE, "JPEG", quality=90, **options) for options in ({}, {"progressive": True}, {"subsampling": 2})]


@given(st.sampled_from(jpegs()), st.integers(1, 400), st.sampled_from([b"\x00", b"\x20", b"\xff"]))
def test_stray_bytes_before_the_end_marker(jpeg, number, byte):
    assert np.array_equal(pixels(jpeg[:-2] + byte * number + jpeg[-2:]), pillow(jpeg))


@given(st.sampled_from(jpegs()), st.integers(1, 5), st.integers(1, 300))
def test_stray_bytes_between_segments(jpeg, place, number):
    start = segments(jpeg)[place][0]
    assert np.array_equal(pixels(jpeg[:start] + bytes(number) + jpeg[start:]), pillow(jpeg))


@given(st.sampled_from(jpegs()), st.sampled_from([b"", b"SEFT" + bytes(20), bytes(30), JPEG]))
def test_a_missing_end_marker_costs_nothing_when_all_rows_came(jpeg, trailer):
    """libjpeg-turbo 163: Samsung's panoramas."""
    assert np.array_equal(pixels(jpeg[:-2] + trailer), pillow(jpeg))


def test_a_damaged_colour_profile_costs_no_picture():
    """libjpeg-turbo reads it, and warns of a "bad ICC marker"."""
    for content in (
        b"ICC_PROFILE\x00\x01\x01a",
        b"ICC_PROFILE\x00\x00\x00",
        b"ICC_PROFILE\x00\x05\x02b",
        b"ICC_PROFILE\x00",
    ):
        for number in (1, 2):
            made = with_segments(JPEG, [(1, 0, segment(0xE2, content))] * number)
            assert np.array_equal(pixels(made), pillow(JPEG))


def test_odd_versions_and_scan_headers():
    versioned = bytearray(JPEG)
    versioned[JPEG.index(b"JFIF\x00") + 5] = 0
    assert np.array_equal(pixels(bytes(versioned)), pillow(JPEG))
    scan = segments(JPEG)[-1][0]
    spectral = bytearray(JPEG)
    spectral[scan + 5 + 2 * JPEG[scan + 4] + 1] = 0
    assert np.array_equal(pixels(bytes(spectral)), pillow(JPEG))
    both = bytes(spectral)[:-2] + bytes(9) + JPEG[-2:]
    assert np.array_equal(pixels(both), pillow(JPEG))


def test_a_second_warning_does_not_hide_the_first():
    """libjpeg reports its last warning alone: stray bytes at the end stood before a damaged stretch."""
    jpeg = encode(IMAGE, "JPEG", quality=90, restart_marker_rows=1)
    at = jpeg.index(b"\xff\xd1")
    damaged = jpeg[: at - 20] + b"\x13\x37\x99" * 9 + jpeg[at:]
    for data in (damaged, damaged[:-2] + bytes(50) + damaged[-2:]):
        assert code(data) in ("truncated", "decode_failed")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_changed_bits_are_not_excused(options):
    """What was refused with bits changed in its scan is refused still: data that are left over are no stray bytes."""
    import simplejpeg

    jpeg = encode(Image.fromarray(layouts.photograph(96, 96)), "JPEG", quality=90, **options)
    start = jpeg.index(b"\xff\xda") + 14
    rng = np.random.default_rng(0)
    refused = excused = 0
    for _ in range(400):
        changed = bytearray(jpeg)
        changed[rng.integers(start, len(jpeg) - 2)] ^= 1 << rng.integers(8)
        try:
            simplejpeg.decode_jpeg(bytes(changed), "RGB")
        except ValueError:
            refused += 1
            try:
                decode(bytes(changed), LIMITS)
                excused += 1
            except ImageError:
                pass
    assert refused > 20
    assert excused <= refused / 20  # where the bits behind the last block happen to be ones


def test_a_progressive_file_without_its_last_scans():
    """libjpeg shows what it has of it, without a warning."""
    jpeg = encode(IMAGE, "JPEG", progressive=True)
    scans = [at for at in range(len(jpeg)) if jpeg[at : at + 2] == b"\xff\xda"]
    for at in scans[1:]:
        assert code(jpeg[:at] + b"\xff\xd9") == "truncated"


@pytest.mark.parametrize(
    ("patch", "expected"),
    [
        ({0: 0xC1, 3: 12}, "unsupported_format"),  # 12 bits a sample
        ({0: 0xC5}, "unsupported_format"),  # hierarchical
        ({4: 0, 5: 0}, "decode_failed"),  # the height comes after the scan
    ],
)
def test_jpeg_processes(patch, expected):
    data = bytearray(JPEG)
    frame = JPEG.index(b"\xff\xc0") + 1
    for place, value in patch.items():
        data[frame + place] = value
    assert code(bytes(data)) == expected


# --- PNG, WebP, AVIF, TIFF: metadata cost nothing

BIG = zlib.compress(b'{"nodes": []}' * 170_000)
ANCILLARY = [
    (b"eXIf", b"\x00\x08\x00\x02garbage"),
    (b"eXIf", b"b'Exif\\x00\\x00II*\\x00'"),
    (b"zTXt", b"workflow\x00\x00" + BIG),
    (b"iTXt", b"prompt\x00\x01\x00\x00\x00" + BIG),
    (b"iCCP", b"display\x00\x00" + BIG),
    (b"iCCP", b"no zlib"),
    (b"pHYs", b""),
    (b"gAMA", b"\x00"),
    (b"cHRM", bytes(5)),
    (b"tRNS", b"\x00"),
    (b"tEXt", b"Comment\x00truncated, unexpected end of file"),
    (b"tEXt", b"Raw profile type exif\x00garbage"),
    (b"prVt", b""),
]


@given(
    st.lists(st.tuples(st.sampled_from(ANCILLARY), st.integers(1, 3), st.booleans()), max_size=5),
    st.binary(max_size=40),
)
def test_ancillary_chunks_and_trailers_cost_no_picture(drawn, trailer):
    """Pillow 5528, 5978, 6252, 8363; libjxl 4383: text, profiles, EXIF, checksums, and bytes behind the end."""
    found = chunks(KINDS["png-rgb"])
    for (kind, content), place, is_wrong in drawn:
        found.insert(min(place, len(found) - 1), chunk(kind, content, 7) if is_wrong else (kind, content))
    assert np.array_equal(pixels(png(found) + trailer * 500), PICTURE)


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"IDAT", b"IEND"])
def test_checksums_of_what_the_picture_needs(kind):
    found = [chunk(*part, 7) if part[0] == kind else part for part in chunks(KINDS["png-palette"])]
    assert code(png(found)) == "decode_failed"


@given(st.integers(1, 8), st.booleans(), st.booleans())
def test_png_orientation(orientation, is_behind, is_text):
    found = chunks(KINDS["png-rgb"])
    block = (b"eXIf", exif(orientation))
    if is_text:  # as ImageMagick writes it
        lines = "\n".join(["", "exif", "      40", (b"Exif\x00\x00" + exif(orientation)).hex()])
        block = (b"zTXt", b"Raw profile type exif\x00\x00" + zlib.compress(lines.encode()))
    found.insert(len(found) - 1 if is_behind else 1, block)
    assert np.array_equal(pixels(png(found)), TURN[orientation](PICTURE))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_webp_and_avif_orientation(orientation):
    for kind, tolerance in (("WEBP", 0), ("AVIF", 5)):
        options = {"lossless": True} if kind == "WEBP" else {"quality": 90}
        data = encode(IMAGE, kind, exif=b"Exif\x00\x00" + exif(orientation), **options)
        assert mean_difference(pixels(data), TURN[orientation](PICTURE)) <= tolerance


@pytest.mark.parametrize("kind", ["webp", "avif"])
@pytest.mark.parametrize("number", [1, 2])
def test_damaged_exif_costs_no_picture(kind, number):
    """format_parser 210. In AVIF it is the boxes that say which way up."""
    whole = KINDS[f"{kind}-turned"]
    at = max(whole.find(b"II*\x00"), whole.find(b"MM\x00*"))
    garbage = b"\x00\x08\x00\x02garb" if number == 1 else bytes(8)
    damaged = whole[:at] + garbage + whole[at + 8 :]
    assert at > 0
    assert mean_difference(pixels(damaged), PICTURE if kind == "webp" else TURN[6](PICTURE)) <= 5


def test_damaged_exif_pointer_in_a_tiff():
    data = layouts.tiff(PICTURE.astype(np.uint16) * 257, 16, 2, more=[(34665, 0xFFFF)])
    assert np.array_equal(pixels(data), PICTURE)


# --- completeness


@pytest.mark.parametrize("name", ["gif-still", "gif-animated", "gif-transparent"])
@pytest.mark.parametrize("trailer", [b"", b"\x00" * 9, bytes(range(1, 55)), b"GIF89a", b"\xff" * 5000])
def test_gifs_with_and_without_what_follows(name, trailer):
    """whats-in-a-gif 3, image-gif 138."""
    whole = KINDS[name]
    expected = pixels(whole)
    assert np.array_equal(pixels(whole + trailer), expected)
    assert np.array_equal(pixels(whole[:-1]), expected)


@pytest.mark.parametrize("size", [0, 1, 54, 2**31, 2**32 - 1])
@pytest.mark.parametrize("place", [2, 34])
def test_bmp_sizes_may_be_nonsense(size, place):
    """leptonica 381, metadata-extractor 250: of the file, and of the pixels."""
    data = bytearray(KINDS["bmp-rgb"])
    data[place : place + 4] = struct.pack("<I", size)
    assert np.array_equal(pixels(bytes(data)), PICTURE)
    assert code(bytes(data[:-1])) == "truncated"


@pytest.mark.parametrize("name", KINDS)
def test_no_prefix_that_lacks_pixels_decodes(name):
    """Every length of file down from whole; those that lose only an end marker may give the whole picture."""
    data = KINDS[name]
    expected = decode(data, LIMITS).pixels
    near_the_end = range(max(1, len(data) - 60), len(data))
    for length in [*range(1, len(data), max(1, len(data) // 60)), *near_the_end]:
        try:
            found = decode(data[:length], LIMITS).pixels
        except ImageError:
            continue
        assert len(data) - length <= 60
        assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    "name", [name for name in KINDS if name.split("-")[0] in ("webp", "avif", "jpeg", "gif", "png")]
)
@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_a_rest_of_zeros_is_no_picture(name, share):
    """JPEGDecoder 39, stb 92: downloads into files of their full size."""
    data = encode_larger(name) if name in ("webp-lossy", "webp-lossless", "avif-rgb") else KINDS[name]
    assert code(data[: int(len(data) * share)].ljust(len(data), b"\x00")) in ("truncated", "decode_failed")


@pytest.mark.parametrize("options", [{"quality": 100}, {"quality": 80, "method": 0}, {"lossless": True, "method": 0}])
@pytest.mark.parametrize("animated", [False, True])
def test_a_webp_that_ends_in_one_colour_is_whole(options, animated):
    """Its bitstream ends in zero bytes, but its decoder asks for each of them."""
    picture = np.zeros((1000, 1000, 3), np.uint8)
    picture[:400] = np.random.default_rng(0).integers(0, 256, (400, 1000, 3))
    more = {"save_all": True, "append_images": [IMAGE.resize((1000, 1000))]} if animated else {}
    data = encode(Image.fromarray(picture), "WEBP", **options, **more)
    assert np.array_equal(pixels(data), pillow(data))
    assert code(data[: len(data) // 4].ljust(len(data), b"\x00")) in ("truncated", "decode_failed")


def encode_larger(name):
    image = Image.fromarray(layouts.photograph(240, 320))
    kind = name.split("-")[0].upper()
    return encode(image, kind, **({"lossless": True} if name == "webp-lossless" else {"quality": 80}))


# --- what is no image


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<!DOCTYPE html><html>403", "HTML"),
        (b"\n <HTML><body>", "HTML"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied', "XML"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"BMW and Mercedes are cars, this is a text", "text"),
        ("Übergröße".encode() * 200, "text"),
        ("text".encode("utf-16"), "text"),
        (b'{"error": "secret-token"}', "JSON"),
        (b"%PDF-1.7 secret-token", "PDF"),
        (b"PK\x03\x04secret-token", "ZIP"),
        (b"\x00\x00\x01\x00\x01\x00" + bytes(30), "ICO"),
        (b"\x00\x00\x00\x18ftypmp42" + bytes(30), "MP4"),
        (b"\x00\x00\x00\x14ftypqt  " + bytes(30), "QuickTime"),
        (b"P6\n3 2\n255\n" + bytes(18), "Netpbm"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:secret-token", "git lfs pull"),
        (b"\x1f\x8b\x08\x00" + bytes(30), "gzip"),
        (b"x" * 100 + bytes(157) + b"ustar\x0000" + bytes(255), "tar"),
        (b"RIFF\x00\x00\x00\x00WAVE", "WAV"),
        (bytes(1000), "zero bytes"),
        (b"\x07secret-token\x00\xff\xfe", "no known format"),
    ],
)
def test_what_is_no_image_is_named(data, words):
    with pytest.raises(ImageError) as caught:
        decode(data, LIMITS)
    assert caught.value.code is ErrorCode.NOT_AN_IMAGE
    assert words in caught.value.message
    assert "secret" not in caught.value.message
    assert header(data) is None


@given(st.binary(min_size=1, max_size=300))
def test_any_bytes_have_a_name(data):
    assert foreign.what(data)
    assert sniff(data) != "bmp" or not foreign.is_text(data)


@given(st.sampled_from(sorted(KINDS)), st.data())
def test_messages_repeat_nothing_of_the_file(name, draw):
    """Words in a file move no code, and do not come back."""
    secret = b"unexpected-end-of-file-truncated-secret"
    at = draw.draw(st.integers(12, max(13, len(KINDS[name]) - 60)))
    data = KINDS[name][:at] + secret + KINDS[name][at + len(secret) :]
    try:
        decode(data, LIMITS)
        message = ""
    except ImageError as error:
        message = str(error)
    assert "secret" not in message
