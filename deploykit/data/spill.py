"""Values that stay in memory while they are few, and lie on disk once they are many: only what is asked for is read.

The files are unnamed ones in the folder for temporary files (TMPDIR): they are gone with the process, however it ends.
"""

from __future__ import annotations

__all__ = ["Gathering", "Stored", "gathered_texts", "taken"]

import operator
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Generic, TypeVar, overload

from deploykit.artifacts.atomic import disk_errors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Value = TypeVar("Value")

IN_MEMORY_BYTES = 2**24
"""Of values as they would be written; as Python objects they take some four times as much."""


class Stored(Sequence[Value]):
    """Values in a file, in an order of their own.

    Args:
        content: all of them, one after another: uint8.
        ends: where each ends: int64.
        decode: makes a value of its bytes.
        order: which of them these are; all unless told.
    """

    def __init__(
        self,
        content: NDArray[np.uint8],
        ends: NDArray[np.int64],
        decode: Callable[[bytes], Value],
        order: NDArray[np.int64] | None = None,
    ) -> None:
        self._content, self._ends, self._decode, self._order = content, ends, decode, order

    def __len__(self) -> int:
        return len(self._ends if self._order is None else self._order)

    @overload
    def __getitem__(self, index: int) -> Value: ...
    @overload
    def __getitem__(self, index: slice) -> Stored[Value]: ...
    def __getitem__(self, index: int | slice) -> Value | Stored[Value]:
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        place = operator.index(index)
        place += len(self) if place < 0 else 0
        if not 0 <= place < len(self):
            raise IndexError(index)
        number = place if self._order is None else int(self._order[place])
        begin = int(self._ends[number - 1]) if number else 0
        return self._decode(self._content[begin : int(self._ends[number])].tobytes())

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> Stored[Value]:
        """These of them, in this order; nothing is copied."""
        import numpy as np

        chosen = np.asarray(indices, dtype=np.int64)
        order = chosen if self._order is None else self._order[chosen]
        return Stored(self._content, self._ends, self._decode, order)


class Gathering(Generic[Value]):
    """Takes values one by one, and gives a sequence of them; ArtifactError where the disk is full.

    Args:
        encode: makes bytes of a value.
        decode: makes the value of them again.
    """

    def __init__(self, encode: Callable[[Value], bytes], decode: Callable[[bytes], Value]) -> None:
        self._encode, self._decode = encode, decode
        self._held: list[Value] = []
        self._size = 0
        self._files: tuple[IO[bytes], IO[bytes]] | None = None

    def append(self, value: Value) -> None:
        """Take one more."""
        content = self._encode(value)
        self._size += len(content)
        if self._files is not None:
            _write(self._files, content, self._size)
            return
        self._held.append(value)
        if self._size > IN_MEMORY_BYTES:
            with disk_errors(_folder()):
                self._files = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 (as long as this lives)
            self._size = 0
            for each in self._held:
                content = self._encode(each)
                self._size += len(content)
                _write(self._files, content, self._size)
            self._held = []

    def extend(self, values: Iterable[Value]) -> None:
        """Take all of these."""
        for value in values:
            self.append(value)

    def done(self) -> Sequence[Value]:
        """All that was taken so far."""
        if self._files is None:
            return tuple(self._held)
        with disk_errors(_folder()):
            for file in self._files:
                file.flush()
        import numpy as np

        content, ends = self._files
        return Stored(
            np.memmap(content, dtype=np.uint8, mode="r"), np.memmap(ends, dtype=np.int64, mode="r"), self._decode
        )


def _write(files: tuple[IO[bytes], IO[bytes]], content: bytes, end: int) -> None:
    with disk_errors(_folder()):
        files[0].write(content)
        files[1].write(end.to_bytes(8, sys.byteorder, signed=True))


def _folder() -> Path:
    return Path(tempfile.gettempdir())


def gathered_texts() -> Gathering[str]:
    """A gathering of texts."""
    return Gathering(str.encode, bytes.decode)


def taken(values: Sequence[Value], indices: Sequence[int]) -> Sequence[Value]:
    """These of the values, in this order."""
    if isinstance(values, Stored):
        return values.take(indices)
    return tuple(values[index] for index in indices)
