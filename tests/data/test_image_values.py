"""Every kind of pixel that a file can hold becomes the right 8 bits, or the image is refused with the reason."""

import io
import re
import struct

import numpy as np
import pytest
from PIL import Image

from esformer.data.base import CorruptImage
from esformer.data.decoding import PIXELS
from esformer.data.images import decode

WORDS = np.array([[0, 30_000, 65_535], [256, 128, 129]], dtype=np.uint16)
BYTES = np.array([[0, 117, 255], [1, 0, 1]], dtype=np.uint8)
"""Those, of 8 bits: divided by 257, and rounded."""
COLOURS = np.stack([WORDS, WORDS[::-1], WORDS // 2], axis=-1)


def tiff(values, photometric=1, sample_format=1, planar=1, bits=None, order="<"):
    """A plain TIFF of such values, which Pillow itself could not write: H, W or H, W, C."""
    values = values.astype(values.dtype.newbyteorder(order))
    height, width, count = (*values.shape, 1)[:3]
    data = (np.moveaxis(values, -1, 0) if planar == 2 else values).tobytes()
    plane = len(data) // (count if planar == 2 else 1)
    bits = bits or values.dtype.itemsize * 8
    tags = {256: [width], 257: [height], 258: [bits] * count, 259: [1], 262: [photometric], 277: [count], 278: [height]}
    tags |= {279: [plane] * (len(data) // plane), 284: [planar], 339: [sample_format] * count}
    if bits == 12:
        tags[256] = [width * 8 * values.dtype.itemsize // 12]
    tags[273] = list(range(1000, 1000 + len(data), plane))
    entries, more, at = b"", b"", 8 + 2 + 12 * len(tags) + 4
    for tag, numbers in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(numbers)}I", *numbers)
        place = packed if len(numbers) == 1 else struct.pack(f"{order}I", at + len(more))
        entries += struct.pack(f"{order}HHI", tag, 4, len(numbers)) + place
        more += packed if len(numbers) > 1 else b""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return (head + entries + bytes(4) + more).ljust(1000, b"\0") + data


def saved(image, kind, **settings):
    image.save(file := io.BytesIO(), kind, **settings)
    return file.getvalue()


def gray(file):
    found = np.asarray(decode(file))
    assert (found == found[..., :1]).all()
    return found[..., 0]


def pgm(words, most):
    return f"P5 3 2 {most}\n".encode() + words.astype(">u2").tobytes()


WIDE = Image.fromarray(WORDS)
SIXTEEN = {
    "PNG": saved(WIDE, "PNG"),
    "TIFF": saved(WIDE, "TIFF"),
    "TIFF, other order": tiff(WORDS, order=">"),
    "TIFF, deflated": saved(WIDE, "TIFF", compression="tiff_deflate"),
    "TIFF, black is most": tiff(65_535 - WORDS, photometric=0),
    "PGM": pgm(WORDS, 65_535),
    "JPEG 2000": saved(WIDE.resize((96, 64), Image.Resampling.NEAREST), "JPEG2000"),
}


@pytest.mark.parametrize("file", SIXTEEN.values(), ids=SIXTEEN)
def test_sixteen_bits_are_brought_to_eight_by_their_range(file):
    found = gray(file)
    assert np.array_equal(found[:: len(found) // 2, :: len(found[0]) // 3], BYTES)


def test_every_value_of_sixteen_bits():
    words = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    exact = np.rint(words / 257).astype(np.uint8)
    assert np.array_equal(gray(saved(Image.fromarray(words), "PNG")), exact)


def test_twelve_bits():
    packed = np.frombuffer(bytes([0x00, 0x08, 0x00, 0xFF, 0xFF, 0xFF]), dtype=np.uint8).reshape(1, 6)
    assert gray(tiff(packed, bits=12)).tolist() == [[0, 128, 255, 255]]
    assert gray(pgm(np.array([0, 2048, 4095] * 2), 4095))[0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("order", "<>")
def test_colours_of_sixteen_bits(order):
    found = np.asarray(decode(tiff(COLOURS, photometric=2, order=order)))
    assert np.abs(found - COLOURS / 257).max() <= 1  # Pillow gives their upper bytes
    ppm = b"P6 3 2 65535\n" + COLOURS.astype(">u2").tobytes()
    assert np.abs(np.asarray(decode(ppm)) - COLOURS / 257).max() <= 1


REFUSED = {
    "signed, 16 bits": tiff(WORDS.astype(np.int16), sample_format=2),
    "signed, 8 bits": tiff(BYTES.astype(np.int8), sample_format=2),
    "32 bits": tiff(WORDS.astype(np.uint32)),
    "signed, 32 bits": tiff(WORDS.astype(np.int32), sample_format=2),
    "floats": tiff((WORDS / 65_535).astype(np.float32), sample_format=3),
    "Pillow's I": saved(Image.new("I", (9, 9), 40_000), "TIFF"),
    "Pillow's F": saved(Image.new("F", (9, 9), 0.5), "TIFF"),
    "PFM": b"Pf\n3 1\n-1.0\n" + np.array([0, 0.5, 1], dtype="<f4").tobytes(),
}


@pytest.mark.parametrize("file", REFUSED.values(), ids=REFUSED)
def test_values_of_no_known_range_are_refused(file):
    with pytest.raises(CorruptImage, match=r"\(.*of no known range: save it with 8 or 16 bits, unsigned\)"):
        decode(file)


def test_what_pillow_would_confuse_is_refused():
    with pytest.raises(CorruptImage, match="colours of 16 bits one after the other, which Pillow confuses"):
        decode(tiff(COLOURS, photometric=2, planar=2))
    eight = (COLOURS >> 8).astype(np.uint8)
    for planar in (1, 2):
        assert np.array_equal(np.asarray(decode(tiff(eight, photometric=2, planar=planar))), eight)


RED = {"RGB": (254, 0, 0), "RGBA": (254, 0, 0, 9), "CMYK": (1, 255, 255, 0), "YCbCr": (76, 85, 255)}
RED |= {"LAB": (136, 208, 195)}
GRAY = {"1": 255, "L": 200, "LA": (200, 9)}


@pytest.mark.parametrize("mode", [*RED, *GRAY, "P", "PA"])
def test_every_mode_that_has_eight_bits(mode):
    image = Image.new(mode, (9, 9), (RED | GRAY).get(mode))
    if mode in ("P", "PA"):
        image = Image.new("RGB", (9, 9), RED["RGB"]).convert("P").convert(mode)
    for kind in ("PNG", "TIFF", "WEBP", "BMP", "GIF"):
        try:
            file = saved(image, kind)
        except (OSError, ValueError):  # this kind of file has no such mode
            continue
        found = np.asarray(decode(file)).astype(int)
        expected = (GRAY[mode],) * 3 if mode in ("1", "L") else (200,) * 3 if mode == "LA" else (253, 2, 4)
        assert found.shape == (9, 9, 3)
        assert np.abs(found - expected).max() <= (8 if mode in ("LAB", "P", "PA") or kind == "WEBP" else 4)


def test_the_colours_behind_transparency_stay_what_they_are():
    palette = Image.new("P", (9, 9), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    clear = Image.new("RGBA", (9, 9), (10, 20, 30, 0))
    for file in (saved(clear, "PNG"), saved(palette, "PNG", transparency=1), saved(clear, "TIFF")):
        assert np.asarray(decode(file))[4, 4].tolist() == [10, 20, 30]


@pytest.mark.parametrize("size", [(PIXELS, 2), (30_000, 30_000)])
def test_too_many_pixels_are_refused_before_they_are_decoded(size, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as other libraries do
    width, height = size
    file = f"P5 {width} {height} 255\n".encode()
    reason = f"it says that it has {width:,} x {height:,} pixels, and at most {PIXELS:,} are decoded"
    with pytest.raises(CorruptImage, match=re.escape(reason)):
        decode(file)


def test_programs_that_files_would_start_are_not_started():
    for kind in ("EPS", "PSD", "TGA"):
        file = saved(Image.new("RGB", (9, 9)), kind) if kind != "PSD" else b"8BPS\0\1" + bytes(100)
        with pytest.raises(CorruptImage, match="of no known format"):
            decode(file)
    for kind in ("GIF", "AVIF"):
        assert decode(saved(Image.new("RGB", (9, 9)), kind)).size == (9, 9)
