"""Images as messages: a PNG file in a string, pixels for the graph, which resizes and normalizes them itself.

A message is a data URL (RFC 2397) with the file in base64: so it is its content, wherever it came from, and stays a
string that can be compared, hashed and kept in records.
"""

from __future__ import annotations

__all__ = ["IMAGES", "Images", "Preprocessing"]

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from deploykit.data.png import MOST_BYTES, data_url, file_of_url, groups_by_size, png_of, png_pixels, png_size
from deploykit.errors import DataError, ModelError, RequestError
from deploykit.tasks.medium import Encoder, Hard, TensorInput, Traced

_SETTINGS = "preprocessor_config.json"
_SIDES = ((1, 1), (1, 9), (9, 1), (8, 8), (31, 17), (64, 64), (200, 40), (224, 224), (300, 480))
_INPUT = "pixels"
_ONE_SIZE = ("deit", "vit", "vit_msn")
"""Models that have a position for each patch, and take no other image."""


@dataclass(frozen=True)
class Preprocessing:
    """What is done to pixels in front of a model: `preprocessor_config.json`, as image processors write it.

    Attributes:
        height: that every image is resized to, in pixels.
        width: likewise. Resizing is bilinear and filtered where it shrinks (`antialias`); sides are not kept in
            proportion, and nothing is cut off.
        mean: of each channel, taken off values of 0 to 1.
        std: of each channel, that the rest is divided by.
    """

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def of(cls, folder: Path) -> Self:
        """That of a checkpoint folder; a `shortest_edge` stands for both sides.

        Raises:
            ModelError: the file is not there, or can't be used.
        """
        path = folder / _SETTINGS
        hint = 'write {"size": {"height": 224, "width": 224}, "image_mean": [...], "image_std": [...]} there'
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            size = found["size"]
            size = {"shortest_edge": size} if isinstance(size, int) else size
            height, width = (int(size[side] if side in size else size["shortest_edge"]) for side in ("height", "width"))
            plain = found.get("do_normalize", True) is False
            means, stds = found.get("image_mean", [0.5] * 3), found.get("image_std", [0.5] * 3)
            mean = (0.0, 0.0, 0.0) if plain else tuple(map(float, means))
            std = (1.0, 1.0, 1.0) if plain else tuple(map(float, stds))
        except FileNotFoundError:
            raise ModelError(f"{folder} has no {_SETTINGS}, which says how images are resized", hint) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{path} does not say how images are resized ({error!r})", hint) from None
        if height < 1 or width < 1 or len(mean) != 3 or len(std) != 3 or not all(std):
            raise ModelError(f"{path}: no size of one pixel or more, or no three means and deviations", hint)
        _check_model(folder, height, width)
        return cls(height, width, mean, std)

    def save_pretrained(self, folder: Path | str, **_: Any) -> None:
        """Write it into a checkpoint folder."""
        settings = {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": self.height, "width": self.width},
            "resample": 2,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / _SETTINGS).write_text(json.dumps(settings, indent=1), encoding="utf-8")

    def apply(self, pixels: Any) -> Any:
        """What a model takes, float32 [images, 3, height, width], of uint8 [images, rows, columns, 3]."""
        import torch
        from torch.nn import functional

        values = pixels.permute(0, 3, 1, 2).to(torch.float32) / 255
        size = (self.height, self.width)
        values = functional.interpolate(values, size=size, mode="bilinear", align_corners=False, antialias=True)
        mean, std = (torch.tensor(each, device=values.device).reshape(1, 3, 1, 1) for each in (self.mean, self.std))
        return (values - mean) / std


class Images:
    """PNG files; the graph takes their pixels, whatever their size."""

    name = "image"
    textual = False
    beside = (_SETTINGS,)
    served_files: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    tensors: Mapping[str, TensorInput] = {_INPUT: TensorInput("UINT8", (-1, -1, 3), ("height", "width"))}

    @property
    def neighbour(self) -> str:
        """An image of many pixels."""
        return data_url(png_of(_noise(256, 256)))

    @property
    def refused(self) -> str:
        """Half of a file."""
        whole = png_of(_noise(9, 9))
        return data_url(whole[: len(whole) // 2])

    def read(self, value: str, folder: Path) -> str:
        """The image in a data URL, or in the PNG file that a path names; relative to the data file's folder.

        Raises:
            DataError: there is no such file, or it is no PNG.
        """
        try:
            if value.startswith("data:"):
                data = file_of_url(value)
            else:
                path = folder / value
                if path.stat().st_size > MOST_BYTES:
                    raise ValueError(f"{path.stat().st_size} bytes, at most {MOST_BYTES} are taken")
                data = path.read_bytes()
            png_pixels(data)
        except OSError as error:
            raise DataError(
                f"{value[:200]!r} can't be read: {error.strerror or error}",
                "name PNG files, relative to the folder of the data file",
            ) from None
        except ValueError as error:
            raise DataError(f"{value[:80]!r}: {error}", "images are PNG files") from None
        return data_url(data)

    def sent(self, messages: Sequence[str]) -> list[bytes]:
        """The files.

        Raises:
            RequestError: a message is no data URL of a PNG.
        """
        files = []
        for number, message in enumerate(messages):
            try:
                files.append(file_of_url(message))
            except ValueError as error:
                raise RequestError(f"message {number}: {error}", hint="send PNG files", status=400) from None
        return files

    def groups(self, messages: Sequence[str]) -> list[list[int]]:
        """Images of one size go together, as many as memory takes.

        Raises:
            DataError: a message is no PNG.
        """
        return groups_by_size([_readable(number, message, png_size) for number, message in enumerate(messages)])

    def encoder(self, folder: Path) -> Encoder:
        """Files to pixels; the graph does the rest."""
        return _Decoder()

    def hard(self, encoder: Encoder | None) -> list[Hard]:
        """Black, white and noise, grey and in colours, of sizes from one pixel on."""
        flat = [Hard(name, _message(np.full((8, 8, 3), value, np.uint8))) for name, value in _FLAT]
        grey = Hard("grey", data_url(png_of(_noise(12, 7)[:, :, 0])))
        board = Hard("one pixel black, one white", _message((np.indices((16, 16)).sum(axis=0) % 2 * 255)[..., None]))
        sizes = [Hard(f"{width} x {height} pixels", _message(_noise(height, width)), True) for height, width in _SIDES]
        return [*flat, grey, board, *sizes]

    def served_settings(self, folder: Path) -> Mapping[str, Any]:
        """The sizes of the images that the model is warmed up with."""
        found = Preprocessing.of(folder)
        return {"warmup": [[1, found.height, found.width], [8, found.height, found.width]]}

    def processor(self, checkpoint: Path, max_length: int) -> Preprocessing:
        """Its preprocessing."""
        return Preprocessing.of(checkpoint)

    def rows(self, processor: Any, messages: Sequence[str], *, offsets: bool) -> Mapping[str, Sequence[Any]]:
        """`pixel_values` of each image, float32 [3, height, width], resized and normalized once."""
        import torch

        values = []
        for number, message in enumerate(messages):
            pixels = torch.from_numpy(_readable(number, message, png_pixels)[np.newaxis])
            values.append(processor.apply(pixels)[0].numpy())
        return {"pixel_values": values}

    def whole(self, model: Any, folder: Path) -> Any:
        """The model behind its preprocessing: `pixels`, uint8 [images, rows, columns, 3], in."""
        import torch

        done = Preprocessing.of(folder)

        class OfPixels(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, pixels: torch.Tensor) -> Any:
                return self.model(pixel_values=done.apply(pixels).to(self.model.dtype))

        return OfPixels().eval()

    def reader(self, folder: Path, *, offsets: bool) -> Callable[[Sequence[str]], Mapping[str, Any]]:
        """Messages to `pixels`."""
        import torch

        decoder = _Decoder()

        def read(messages: Sequence[str]) -> dict[str, Any]:
            return {name: torch.from_numpy(values) for name, values in decoder.encode(messages).items()}

        return read

    def traced(self, whole: Any, output: str) -> Traced:
        """Images of any number and size in, the task's output out."""
        import torch

        class Logits(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.whole = whole

            def forward(self, pixels: torch.Tensor) -> torch.Tensor:
                logits: torch.Tensor = self.whole(pixels)[output]
                return logits

        example = torch.from_numpy(np.stack([_noise(9, 11)] * 2))
        axes = {axis: torch.export.Dim(name) for axis, name in enumerate(("batch", "height", "width"))}
        return Traced(Logits(), (example,), (_INPUT,), (axes,))

    def trials(self, encoder: Encoder, whole: Any, messages: Sequence[str]) -> Iterator[Mapping[str, NDArray[Any]]]:
        """Real images, and noise of sizes from one pixel on, one and several at once."""
        for group in self.groups(messages[:8]):
            yield encoder.encode([messages[number] for number in group])
        for number, (height, width) in enumerate(_SIDES):
            yield {_INPUT: np.stack([_noise(height, width)] * (1 + number % 3))}


IMAGES = Images()
_FLAT = (("black", 0), ("white", 255), ("mid-grey", 128))


def _check_model(folder: Path, height: int, width: int) -> None:
    """Refuse a model that does not take images of three channels and that size; ModelError says why."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # who loads the model says so
    channels, side = config.get("num_channels", 3), config.get("image_size")
    if channels != 3:
        raise ModelError(f"{folder} takes images of {channels} channel(s), and gets three", "use a model of RGB images")
    if config.get("model_type") in _ONE_SIZE and side not in (None, [height, width], *[height] * (height == width)):
        raise ModelError(
            f"{folder} takes images of {side} pixels, and {_SETTINGS} says {height} x {width}",
            "write the same size in both",
        )


class _Decoder:
    """Files to pixels."""

    def encode(self, messages: Sequence[str], *, words: bool = False) -> dict[str, NDArray[Any]]:
        """`pixels`, uint8 [images, height, width, 3].

        Raises:
            DataError: a message is no PNG, or they are of more than one size.
        """
        pixels = [_readable(number, message, png_pixels) for number, message in enumerate(messages)]
        if len({each.shape for each in pixels}) > 1:
            raise DataError("images of more than one size can't go as one batch", "ask for each size by itself")
        return {_INPUT: np.stack(pixels)}


def _readable(number: int, message: str, read: Callable[[bytes], Any]) -> Any:
    try:
        return read(file_of_url(message))
    except ValueError as error:
        raise DataError(f"message {number + 1}: {error}", "images are PNG files") from None


def _noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng([height, width]).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _message(pixels: NDArray[Any]) -> str:
    return data_url(png_of(np.broadcast_to(pixels, (*pixels.shape[:2], 3)).astype(np.uint8)))
