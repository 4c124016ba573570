"""Handwritten digits as PNG files: the 1,797 images of 8 x 8 pixels that scikit-learn carries, four fifths to train.

They are from Alpaydin and Kaynak, "Optical recognition of handwritten digits" (UCI, 1998; CC BY 4.0), the part of 13
writers. Their order is that of the collection; each fifth one is for the test, so that both parts have every writer.
"""

from __future__ import annotations

__all__ = ["DigitRow", "digit_rows"]

from dataclasses import dataclass
from typing import Literal

import numpy as np

from deploykit.data.png import data_url, png_of


@dataclass(frozen=True)
class DigitRow:
    """An image as a data URL, and its digit."""

    text: str
    label: str


def digit_rows(part: Literal["train", "test"]) -> list[DigitRow]:
    """The images of a part: 1,438 or 359."""
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = np.rint(found.images * (255 / 16)).astype(np.uint8)
    wanted = [number for number in range(len(pixels)) if (number % 5 == 4) == (part == "test")]
    return [DigitRow(data_url(png_of(pixels[number])), str(found.target[number])) for number in wanted]
