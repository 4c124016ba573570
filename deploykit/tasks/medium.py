"""What the messages of a task are - texts, images - and how they become what a model takes."""

from __future__ import annotations

__all__ = ["Encoder", "Hard", "Medium", "TensorInput", "Traced"]

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class TensorInput:
    """An input of a graph.

    Attributes:
        dtype: its data type, as Triton's clients name it.
        dims: its shape for one message; -1 is any length.
        axes: what those of any length are called.
        needed: whether every graph takes it.
    """

    dtype: Literal["INT64", "UINT8"]
    dims: tuple[int, ...]
    axes: tuple[str, ...]
    needed: bool = True


@dataclass(frozen=True)
class Traced:
    """What PyTorch's exporter is given.

    Attributes:
        module: gives the task's output.
        arguments: an example.
        names: of the arguments.
        dynamic_shapes: their axes of any length.
    """

    module: Any
    arguments: tuple[Any, ...]
    names: tuple[str, ...]
    dynamic_shapes: tuple[Any, ...]


@dataclass(frozen=True)
class Hard:
    """A message chosen to break a model.

    Attributes:
        name: what it is called in a report.
        message: itself.
        sized: whether it stands for a size (tokens, pixels) that every model has to take.
    """

    name: str
    message: str
    sized: bool = False


class Encoder(Protocol):
    """Messages to the inputs of a graph, in this process as in the served model."""

    def encode(self, messages: Sequence[str], *, words: bool = False) -> dict[str, NDArray[Any]]:
        """The graph's inputs for messages that go together as one batch.

        Raises:
            DataError: a message can't be read.
        """
        ...


class Medium(Protocol):
    """One kind of message. Stages know texts, images and the like only through this protocol; a task names its own."""

    @property
    def name(self) -> str:
        """The input of the served entry: one message, as bytes."""
        ...

    @property
    def textual(self) -> bool:
        """Whether messages are texts: what reads words (checks of texts, altered copies, trimming) asks for it."""
        ...

    @property
    def beside(self) -> tuple[str, ...]:
        """The files that a checkpoint needs beside its weights."""
        ...

    @property
    def served_files(self) -> tuple[str, ...]:
        """The files of a model folder that the served entry reads."""
        ...

    @property
    def libraries(self) -> tuple[str, ...]:
        """The Python packages that lie beside the served entry."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorInput]:
        """What a graph may take."""
        ...

    @property
    def neighbour(self) -> str:
        """A large message, beside which others must get the answer that they get alone."""
        ...

    @property
    def refused(self) -> str:
        """A message that no model can answer: it has to refuse it, and to go on."""
        ...

    def read(self, value: str, folder: Path) -> str:
        """The message that a field of a data file stands for.

        Args:
            value: of the field.
            folder: of the data file.

        Raises:
            DataError: it stands for none.
        """
        ...

    def sent(self, messages: Sequence[str]) -> list[bytes]:
        """What a client sends for each message.

        Raises:
            RequestError: a message can't be sent.
        """
        ...

    def groups(self, messages: Sequence[str]) -> list[list[int]]:
        """The numbers of the messages that can go together as one batch.

        Raises:
            DataError: a message can't be read.
        """
        ...

    def encoder(self, folder: Path) -> Encoder:
        """What makes the inputs of the graph in a model folder.

        Raises:
            ModelError: the folder lacks what it needs.
        """
        ...

    def hard(self, encoder: Encoder | None) -> list[Hard]:
        """Messages chosen to break a model.

        Args:
            encoder: the reference's; None where it is behind a server.
        """
        ...

    def served_settings(self, folder: Path) -> Mapping[str, Any]:
        """What the served entry must know of a model folder to read messages; plain JSON."""
        ...

    def processor(self, checkpoint: Path, max_length: int) -> Any:
        """What makes training rows; its `save_pretrained` writes the files of `beside`.

        Args:
            checkpoint: the folder.
            max_length: tokens that a text is truncated to.
        """
        ...

    def rows(self, processor: Any, messages: Sequence[str], *, offsets: bool) -> Mapping[str, Sequence[Any]]:
        """What a model is trained on, by name, a value for each message; with `offset_mapping` where asked."""
        ...

    def whole(self, model: Any, folder: Path) -> Any:
        """The PyTorch model, in evaluation, with all that the graph computes in front of it."""
        ...

    def reader(self, folder: Path, *, offsets: bool) -> Callable[[Sequence[str]], Mapping[str, Any]]:
        """What gives that model its inputs: PyTorch tensors; where asked also `words`, what tokens decide on."""
        ...

    def traced(self, whole: Any, output: str) -> Traced:
        """What is exported of that model, for its output of that name."""
        ...

    def trials(self, encoder: Encoder, whole: Any, messages: Sequence[str]) -> Iterator[Mapping[str, NDArray[Any]]]:
        """Batches that break wrong graphs, real messages among them."""
        ...
