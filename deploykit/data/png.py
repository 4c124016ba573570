"""PNG files to pixels and back, with numpy and zlib alone: the same code in this process and inside of Triton.

It is copied into a package beside `model.py`. Written from the PNG specification (third edition, W3C 2025): every
colour type and bit depth, interlaced or not; checksums are held to, what colours mean (gamma, profiles) is not read.
"""

from __future__ import annotations

__all__ = ["MOST_BYTES", "data_url", "file_of_url", "groups_by_size", "png_of", "png_pixels", "png_size"]

import base64
import binascii
import struct
import zlib
from collections.abc import Collection, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

MOST_BYTES = 32 << 20
"""The largest file that is taken."""
MOST_PIXELS = 1 << 24
"""The most pixels that a file may say that it holds, and that are computed together: a few bytes can stand for
gigabytes."""
MOST_SIDE = 1 << 14
"""The longest side in pixels: each costs a step, and a narrow image of a few bytes could have millions."""

_URL = "data:image/png;base64,"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PAETH = 4
_WHOLE = ((0, 0, 1, 1),)
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""The passes of an interlaced file: first column and row, steps between columns and rows (section 8.2)."""


def png_size(data: bytes) -> tuple[int, int]:
    """Height and width in pixels; ValueError says why the bytes are no PNG that is taken."""
    width, height, *_ = _header(data)
    return height, width


def png_pixels(data: bytes) -> NDArray[np.uint8]:
    """The pixels of a PNG file, uint8 [height, width, 3]: grey three times, no transparency, 16 bits cut to 8.

    ValueError says what is wrong with the bytes.
    """
    width, height, depth, colour, interlaced = _header(data)
    chunks = list(_chunks(data))
    palette = next((content for kind, content in chunks if kind == b"PLTE"), b"")
    if colour == 3 and (not palette or len(palette) % 3):
        raise ValueError("a PNG with a palette that has none, or a damaged one")
    channels = _CHANNELS[colour]
    passes = [
        (left, top, right, down, -(-(width - left) // right), -(-(height - top) // down))
        for left, top, right, down in (_ADAM7 if interlaced else _WHOLE)
        if width > left and height > top
    ]
    strides = [-(-columns * channels * depth // 8) for *_, columns, _ in passes]
    stream = _inflated(
        b"".join(content for kind, content in chunks if kind == b"IDAT"),
        sum(rows * (1 + stride) for (*_, rows), stride in zip(passes, strides, strict=True)),
    )
    values = np.zeros((height, width, channels), dtype=np.uint8)
    begin = 0
    for (left, top, right, down, columns, rows), stride in zip(passes, strides, strict=True):
        lines = np.frombuffer(stream, np.uint8, rows * (1 + stride), begin).reshape(rows, 1 + stride)
        begin += lines.size
        plain = _unfiltered(lines[:, 1:], lines[:, 0], max(1, channels * depth // 8))
        values[top::down, left::right] = _samples(plain, depth, columns * channels).reshape(rows, columns, channels)
    if colour == 3:
        colours = np.frombuffer(palette, np.uint8).reshape(-1, 3)
        if int(values.max()) >= len(colours):
            raise ValueError("a PNG with a colour that its palette lacks")
        return colours[values[:, :, 0]]
    if depth < 8:
        values = values * np.uint8(255 // ((1 << depth) - 1))
    return np.repeat(values[:, :, :1], 3, axis=2) if channels < 3 else np.ascontiguousarray(values[:, :, :3])


def groups_by_size(sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The numbers of the images to compute together: of one height and width, and not too many pixels in all."""
    groups: list[list[int]] = []
    open_groups: dict[tuple[int, int], list[int]] = {}
    for number, (height, width) in enumerate(sizes):
        group = open_groups.get((height, width))
        if group is None or (len(group) + 1) * height * width > MOST_PIXELS:
            group = open_groups[height, width] = []
            groups.append(group)
        group.append(number)
    return groups


def png_of(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file of pixels, uint8 [height, width] in grey or [height, width, 3]."""
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    lines = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1)
    head = struct.pack(">IIBBBBB", width, height, 8, 0 if pixels.ndim == 2 else 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    return _SIGNATURE + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )


def data_url(data: bytes) -> str:
    """A file as a data URL (RFC 2397)."""
    return _URL + base64.b64encode(data).decode("ascii")


def file_of_url(url: str) -> bytes:
    """The file in a data URL; ValueError says why there is none."""
    if not url.startswith(_URL):
        raise ValueError(f"no image: it does not begin with {_URL}")
    try:
        return base64.b64decode(url[len(_URL) :], validate=True)
    except binascii.Error as error:
        raise ValueError(f"no base64: {error}") from error


def _header(data: bytes) -> tuple[int, int, int, int, int]:
    """Width, height, bit depth, colour type and interlacing."""
    if len(data) > MOST_BYTES:
        raise ValueError(f"{len(data)} bytes, at most {MOST_BYTES} are taken")
    if not data.startswith(_SIGNATURE):
        raise ValueError("no PNG: it does not begin as one")
    if len(data) < 33 or data[8:16] != b"\0\0\0\rIHDR":
        raise ValueError("a PNG that ends in its header, or has none")
    width, height, depth, colour, packing, filtering, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    if not width or not height or depth not in _DEPTHS.get(colour, ()) or packing or filtering or interlaced > 1:
        raise ValueError("a PNG whose header says what no PNG has")
    if width * height > MOST_PIXELS or max(width, height) > MOST_SIDE:
        raise ValueError(f"{width} x {height} pixels, at most {MOST_PIXELS} and {MOST_SIDE} a side are taken")
    return width, height, depth, colour, interlaced


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each chunk up to the last."""
    begin = len(_SIGNATURE)
    while True:
        if begin + 12 > len(data):
            raise ValueError("a PNG that ends too early")
        (length,) = struct.unpack_from(">I", data, begin)
        end = begin + 8 + length
        if end + 4 > len(data):
            raise ValueError("a PNG that ends too early")
        kind = data[begin + 4 : begin + 8]
        if zlib.crc32(data[begin + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise ValueError(f"a damaged PNG: its part {kind.decode('latin-1')!r} has another checksum")
        if kind == b"IEND":
            return
        yield kind, data[begin + 8 : end]
        begin = end + 4


def _inflated(packed: bytes, size: int) -> bytes:
    """Exactly `size` bytes from a zlib stream, and never more in memory."""
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(packed, size)
    except zlib.error as error:
        raise ValueError(f"a damaged PNG: {error}") from error
    if len(plain) < size:
        raise ValueError("a PNG with fewer pixels than its header says")
    return plain


def _unfiltered(lines: NDArray[np.uint8], filters: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    """The bytes of each line before it was filtered (section 9.2), uint8 [rows, bytes].

    A byte depends on those to its left, above, and above to the left. So what has the same row + column is computed at
    once: as many steps as the two sides have together. The values lie in memory that way round meanwhile.

    Args:
        lines: as they are in the file.
        filters: of each line.
        step: bytes to the value at the left: those of a pixel, 1 at least.
    """
    if filters.max(initial=0) > 4:
        raise ValueError(f"a damaged PNG: the filter {filters.max()} does not exist")
    if not filters.any():
        return lines
    present = frozenset(filters.tolist())
    rows, count = len(lines), lines.shape[1] // step
    tall = rows > count
    given = lines.reshape(rows, count, step)
    given = given.swapaxes(0, 1) if tall else given
    short, long = given.shape[:2]
    # [2 + row + column, 1 + place along the shorter side, byte]; zeros around the image.
    skewed = np.zeros((short + long + 1, short + 1, step), dtype=np.uint8)
    for place in range(short):
        skewed[2 + place : 2 + place + long, 1 + place] = given[place]
    for diagonal in range(short + long - 1):
        first, past = max(0, diagonal - long + 1), min(short, diagonal + 1)
        own, before = slice(first + 1, past + 1), slice(first, past)
        left, above = skewed[diagonal + 1, own], skewed[diagonal + 1, before]
        if tall:
            left, above = above, left
        kinds = filters[diagonal - past + 1 : diagonal - first + 1][::-1] if tall else filters[first:past]
        skewed[2 + diagonal, own] += _guessed(kinds, left, above, skewed[diagonal, before], present)
    found = np.stack([skewed[2 + place : 2 + place + long, 1 + place] for place in range(short)])
    return (found.swapaxes(0, 1) if tall else found).reshape(rows, -1)


def _guessed(
    kinds: NDArray[np.uint8],
    left: NDArray[np.uint8],
    above: NDArray[np.uint8],
    corner: NDArray[np.uint8],
    present: Collection[int],
) -> NDArray[np.uint8]:
    """What filters of these kinds took off each value, given its neighbours: uint8 [values, bytes].

    `present` are the kinds in the whole file: what is not among them is not computed.
    """
    a, b = left.astype(np.int16), above.astype(np.int16)
    guess = _nearest(a, b, corner.astype(np.int16)) if _PAETH in present else np.zeros_like(a)
    if 0 in present:
        guess[kinds == 0] = 0
    if 1 in present:
        np.copyto(guess, a, where=(kinds == 1)[:, np.newaxis])
    if 2 in present:
        np.copyto(guess, b, where=(kinds == 2)[:, np.newaxis])
    if 3 in present:
        np.copyto(guess, (a + b) >> 1, where=(kinds == 3)[:, np.newaxis])
    return guess.astype(np.uint8)


def _nearest(a: NDArray[np.int16], b: NDArray[np.int16], c: NDArray[np.int16]) -> NDArray[np.int16]:
    """Which of the left, the one above and the corner is nearest to left + above - corner, the first of equal ones."""
    to_left, to_above = b - c, a - c
    to_corner = abs(to_left + to_above)
    to_left, to_above = abs(to_left), abs(to_above)
    nearest = np.where(to_above <= to_corner, b, c)
    np.copyto(nearest, a, where=(to_left <= to_above) & (to_left <= to_corner))
    return nearest


def _samples(lines: NDArray[np.uint8], depth: int, count: int) -> NDArray[np.uint8]:
    """The `count` values in each line: uint8 [rows, count], of 16 bits the upper ones."""
    if depth == 8:
        return lines
    if depth == 16:
        return lines[:, ::2]
    bits = np.unpackbits(lines, axis=1).reshape(len(lines), -1, depth)
    weights = (1 << np.arange(depth - 1, -1, -1)).astype(np.uint8)
    values: NDArray[np.uint8] = (bits @ weights)[:, :count]
    return values
