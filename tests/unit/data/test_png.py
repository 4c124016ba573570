"""PNG files to pixels: every colour type, depth, filter and order, and what no file may do."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from deploykit.data import png
from deploykit.data.png import data_url, file_of_url, groups_by_size, png_of, png_pixels, png_size

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(list(shape)).integers(0, 256, shape, dtype=np.uint8)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def file(
    lines: bytes, *, width: int, height: int, depth: int = 8, colour: int = 2, order: int = 0, more: bytes = b""
) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, order)
    body = chunk(b"IHDR", head) + more + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def filtered(rows: NDArray[np.uint8], kinds: list[int], step: int) -> bytes:
    """Lines as an encoder writes them, byte by byte as section 9.2 has it."""
    out = bytearray()
    before = [0] * rows.shape[1]
    for row, kind in zip(rows.tolist(), kinds, strict=True):
        out.append(kind)
        for place, value in enumerate(row):
            a, b = (row[place - step] if place >= step else 0), before[place]
            c = before[place - step] if place >= step else 0
            p = a + b - c
            nearest = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
            out.append((value - (0, a, b, (a + b) // 2, nearest)[kind]) & 255)
        before = row
    return bytes(out)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    colour=st.sampled_from([0, 2, 4, 6]),
    depth=st.sampled_from([8, 16]),
    data=st.data(),
)
def test_every_filter_is_undone(height: int, width: int, colour: int, depth: int, data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.integers(0, 4), min_size=height, max_size=height))
    channels, octets = CHANNELS[colour], depth // 8
    samples = noise(height, width, channels, octets)
    lines = filtered(samples.reshape(height, -1), kinds, channels * octets)
    upper = samples[..., 0]
    wanted = np.repeat(upper[:, :, :1], 3, axis=2) if channels < 3 else upper[:, :, :3]
    found = png_pixels(file(lines, width=width, height=height, depth=depth, colour=colour))
    assert found.dtype == np.uint8
    assert (found == wanted).all()


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_small_grey_values_reach_white(depth: int) -> None:
    values = np.arange(1 << depth, dtype=np.uint8)
    bits = np.unpackbits(values[:, None], axis=1)[:, 8 - depth :].ravel()
    found = png_pixels(file(b"\0" + np.packbits(bits).tobytes(), width=len(values), height=1, depth=depth, colour=0))
    assert found[0, :, 0].tolist() == np.linspace(0, 255, len(values)).astype(int).tolist()


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4), (8, 8), (13, 21)])
def test_an_interlaced_file_is_put_together(size: tuple[int, int]) -> None:
    height, width = size
    pixels = noise(height, width, 3)
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    lines = b""
    for left, top, right, down in passes:
        part = pixels[top::down, left::right]
        if part.size:
            lines += filtered(part.reshape(len(part), -1), [row % 5 for row in range(len(part))], 3)
    assert (png_pixels(file(lines, width=width, height=height, order=1)) == pixels).all()


def test_a_palette_gives_its_colours() -> None:
    colours = chunk(b"PLTE", bytes([1, 2, 3, 250, 251, 252]))
    good = file(b"\0\0\1\1", width=3, height=1, colour=3, more=colours)
    assert png_pixels(good)[0].tolist() == [[1, 2, 3], [250, 251, 252], [250, 251, 252]]
    with pytest.raises(ValueError, match="palette lacks"):
        png_pixels(file(b"\0\0\1\2", width=3, height=1, colour=3, more=colours))
    with pytest.raises(ValueError, match="palette"):
        png_pixels(file(b"\0\0\1\1", width=3, height=1, colour=3))


@pytest.mark.parametrize("shape", [(5, 9), (7, 3, 3), (1, 1, 3)])
def test_what_is_written_is_read_again(shape: tuple[int, ...]) -> None:
    pixels = noise(*shape)
    data = png_of(pixels)
    assert png_size(data) == shape[:2]
    assert (png_pixels(data) == (pixels if pixels.ndim == 3 else pixels[..., None])).all()
    assert file_of_url(data_url(data)) == data


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_pillow_reads_the_same(mode: str) -> None:
    image = pytest.importorskip("PIL.Image")
    slope = np.add.outer(np.arange(40) * 3, np.arange(50) * 2).astype(np.uint8)
    plain = image.fromarray(np.stack([slope, slope.T.reshape(40, 50), noise(40, 50)], axis=2))
    made = plain.convert(mode)
    stream = io.BytesIO()
    made.save(stream, "PNG")
    assert (png_pixels(stream.getvalue()) == np.asarray(made.convert("RGB"))).all()
    assert (np.asarray(image.open(io.BytesIO(png_of(noise(4, 6, 3))))) == noise(4, 6, 3)).all()


def test_broken_files_are_refused_with_the_reason() -> None:
    good = png_of(noise(9, 9, 3))
    for cut in (0, 4, 20, 40, len(good) // 2, len(good) - 1):
        with pytest.raises(ValueError, match="PNG"):
            png_pixels(good[:cut])
    flipped = bytearray(good)
    flipped[60] ^= 1
    with pytest.raises(ValueError, match="checksum"):
        png_pixels(bytes(flipped))
    bad = {
        "fewer pixels": file(b"\0" * 4, width=1, height=2),
        "filter 9": file(b"\x09\0\0\0", width=1, height=1),
        "at most": file(b"", width=1 << 13, height=1 << 13),
        "a side": file(b"", width=1, height=1 << 15),  # each row costs a step, and a few bytes make millions of them
        "no PNG has": file(b"", width=0, height=3),
        "does not begin": b"GIF89a" + bytes(60),
    }
    for reason, data in bad.items():
        with pytest.raises(ValueError, match=reason):
            png_pixels(data)


def test_a_filtered_file_takes_a_step_for_each_row_and_column(monkeypatch: pytest.MonkeyPatch) -> None:
    """And little memory: what is computed lies twice in it, whatever the sides."""
    steps = []
    real = png._guessed
    monkeypatch.setattr(png, "_guessed", lambda *given: steps.append(len(given[0])) or real(*given))
    for height, width in ((2, 300), (300, 2), (40, 30)):
        steps.clear()
        pixels = noise(height, width, 3)
        lines = filtered(pixels.reshape(height, -1), [4] * height, 3)
        assert (png_pixels(file(lines, width=width, height=height)) == pixels).all()
        assert len(steps) == height + width - 1
        assert sum(steps) == height * width


def test_images_of_one_size_go_together_while_memory_takes_them() -> None:
    assert groups_by_size([(8, 8), (9, 8), (8, 8), (8, 9), (8, 8)]) == [[0, 2, 4], [1], [3]]
    large = [(4096, 2048)] * 3 + [(4096, 4096)] * 2 + [(1, 1)]
    assert groups_by_size(large) == [[0, 1], [2], [3], [4], [5]]
    assert groups_by_size([]) == []


def test_a_bomb_takes_no_more_memory_than_its_header_says() -> None:
    import tracemalloc

    data = file(bytes(50_000_000), width=2, height=2)
    tracemalloc.start()
    png_pixels(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


@pytest.mark.parametrize("url", ["", "hello", "data:image/png;base64,@@@", "data:image/jpeg;base64,AAAA"])
def test_what_is_no_url_of_an_image_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"no image|no base64"):
        file_of_url(url)
