"""The kinds of values that recipes have, each with one error in words, and what all sections have in common."""

from __future__ import annotations

__all__ = [
    "INT32_MAX",
    "Count",
    "CountOrAll",
    "FractionOrPath",
    "KeptLayers",
    "Lengths",
    "Names",
    "Positive",
    "Section",
    "Text",
    "not_bf16",
]

import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

INT32_MAX: Final = 2**31 - 1
"""What config.pbtxt holds for a batch size or an instance count."""


def _one_line(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be blank")
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        raise ValueError("must not contain line breaks, NUL or other control characters")
    return value


def _fraction_or_path(value: object) -> object:
    """Decides between the members of `float | str`, so that one wrong value gives one error."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("must be a file, or a fraction of the training rows above 0 and at most 0.5")
    if isinstance(value, str):
        return _one_line(value)
    if not 0 < value <= 0.5:
        raise ValueError(f"must be a file, or a fraction of the training rows above 0 and at most 0.5, not {value}")
    return float(value)


def _count_or_all(value: object) -> object:
    """Decides between the members of `int | Literal["all"]`, so that one wrong value gives one error."""
    if value == "all" or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= INT32_MAX):
        return value
    raise ValueError(f"must be `all` or a whole number from 0, not {value!r}")


def _lengths(value: object) -> object:
    """Decides between the members of `Literal["data"] | tuple[int, ...]`, so that one wrong value gives one error."""
    if value == "data":
        return value
    counts = [value] if isinstance(value, int) else value
    whole = isinstance(counts, list | tuple) and all(
        isinstance(count, int) and not isinstance(count, bool) and 3 <= count <= INT32_MAX for count in counts
    )
    if not whole or not counts:
        raise ValueError(f"must be `data` or a list of token counts from 3, such as [16, 64], not {value!r}")
    return tuple(counts)  # type: ignore[arg-type]


def _kept_layers(value: object) -> object:
    """What stays of each layer, as text: LAYER/HEADS/COLUMNS, in order."""
    layers = [value] if isinstance(value, str) else value
    if not isinstance(layers, list | tuple) or not all(
        isinstance(layer, str) and re.fullmatch(r"[0-9]{1,4}/[1-9][0-9]{0,5}/[1-9][0-9]{0,6}", layer)
        for layer in layers
    ):
        raise ValueError(f"must be a list of LAYER/HEADS/COLUMNS, such as [0/12/768, 5/12/1152], not {value!r}")
    numbers = [int(layer.partition("/")[0]) for layer in layers]
    if numbers != sorted(set(numbers)):
        raise ValueError(f"must name each layer once, in order, not {', '.join(layers)}")
    return tuple(layers)


def not_bf16(value: object) -> object:
    """Says why there is no bfloat16, which training has."""
    if value in ("bf16", "bfloat16"):
        raise ValueError("bf16: onnxruntime has no bfloat16 products on a CPU; take int8 there, and fp16 on a GPU")
    return value


def _name_or_names(value: object) -> object:
    """Decides between the members of `str | tuple[str, ...]`, so that one wrong value gives one error."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"must be a column, or a list of columns, not {value!r}")
    checked = tuple(_one_line(name) for name in names)
    return checked[0] if len(checked) == 1 else checked


Text = Annotated[str, Field(min_length=1), AfterValidator(_one_line)]
Count = Annotated[int, Field(ge=1, le=INT32_MAX)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
FractionOrPath = Annotated[float | str, BeforeValidator(_fraction_or_path)]
Lengths = Annotated[Literal["data"] | tuple[int, ...], BeforeValidator(_lengths)]
Names = Annotated[str | tuple[str, ...], BeforeValidator(_name_or_names)]
CountOrAll = Annotated[int | Literal["all"], BeforeValidator(_count_or_all)]
KeptLayers = Annotated[tuple[str, ...], BeforeValidator(_kept_layers)]


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, types are not guessed, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())
