"""The sections of a recipe that say how the model is trained, made small, and stored in few bits."""

from __future__ import annotations

__all__ = ["Finetune", "Pretrain", "Prune", "Quantize"]

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from deploykit.recipe.values import INT32_MAX, Count, CountOrAll, KeptLayers, Positive, Section, Text, not_bf16


class Finetune(Section):
    """How the pretrained model is trained on the data."""

    epochs: float = Field(
        default=4.0, ge=0, allow_inf_nan=False,
        description="Passes over the training rows; 0, with the contrastive loss: only the head is fitted.",
    )  # fmt: skip
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
        "prompt",
        "p_tuning",
        "prefix",
    ] = Field(
        default="full",
        description="What is trained: all layers, the head, upper layers, gradually more, biases, normalizations; a "
        "peft adapter, merged in the end; virtual tokens (p_tuning: through a network); keys and values (prefix).",
    )
    loss: Literal["auto", "cross_entropy", "contrastive", "two_towers"] = Field(
        default="auto",
        description="What is minimized; contrastive: texts of one label are drawn together and others apart, and a "
        "head is fitted to what came of it (few examples a label); two_towers: messages near the text of their entry; "
        "auto: the task's own.",
    )
    pooling: Literal["auto", "own", "mean"] = Field(
        default="auto",
        description="What the head of a text-classification reads: own: what the architecture gives it (BERT: the "
        "first token); mean: the tokens' mean at length one, and the head begins as a regression; auto: mean where the "
        "pretrained model says that it compares means.",
    )
    temperature: Positive = Field(
        default=0.05, description="What cosines are divided by in the contrastive loss and that of two towers."
    )
    trained_layers: Count = Field(default=2, description="How many upper layers strategy last_layers trains.")
    layer_decay: float = Field(
        default=1.0, gt=0, le=1, description="How fast each layer learns, as a share of the one above it."
    )
    adapter_rank: Count = Field(default=8, description="Rank of the matrices of an adapter (IA3 has none).")
    adapter_alpha: Count = Field(default=16, description="Scale of an adapter; over its rank it multiplies.")
    adapter_dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout in front of LoRA's matrices.")
    quantized_base: Literal["none", "nf4", "int8"] = Field(
        default="none",
        description="How the frozen weights are stored while lora trains (QLoRA, by bitsandbytes); the result has them "
        "written out in full, as rounded.",
    )
    prompt_tokens: Annotated[int, Field(ge=1, le=512)] = Field(
        default=16,
        description="Virtual tokens of the strategies prompt, p_tuning and prefix; each costs time when served.",
    )
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
    augment: tuple[Literal["typos", "word_dropout", "synonyms", "back_translation"], ...] = Field(
        default=(), strict=False,
        description="How copies of the training messages are altered: misspelt words, words left out, pieces replaced "
        "by their neighbours in the embedding, or all of it said in other words by way of another language.",
    )  # fmt: skip
    translator: Text | None = Field(
        default=None,
        description="What back_translation translates with: a sequence-to-sequence model; absent: none.",
    )
    translator_back: Text | None = Field(
        default=None,
        description="What translates back; absent: nothing, the translator says it in the same language.",
    )
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
        default=None,
        description="Epochs without a better validation metric (or loss, where a task has two metrics) before training"
        " stops; absent: never.",
    )
    dropout: float | None = Field(
        default=None, ge=0, lt=1, description="Dropout in the encoder and the head; absent: the model's own."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="Number format in training; auto: bf16 on a GPU that has it, else fp32."
    )
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = Field(
        default="adamw",
        description="The optimizer; those of 8 bits need bitsandbytes, and the paged one, which moves its state to the "
        "machine's memory when the GPU's is full, a GPU.",
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
            if self.learns_prompt:
                raise ValueError(
                    f"the teacher does not know the virtual tokens of {self.strategy}: leave out one of both"
                )
        if self.quantized_base != "none" and self.strategy != "lora":
            raise ValueError(f"quantized_base: {self.quantized_base} is for strategy: lora, not {self.strategy}")
        if ("back_translation" in self.augment) != (self.translator is not None):
            raise ValueError("augment: [back_translation] and translator go together: name both, or none")
        if self.translator_back is not None and self.translator is None:
            raise ValueError("translator_back comes after a translator: name both, or none")
        if self.gradient_checkpointing and self.adversarial:
            raise ValueError("adversarial needs the embeddings' slope, which gradient_checkpointing drops: use one")
        return self

    @property
    def learns_prompt(self) -> bool:
        """Whether virtual tokens are what is trained."""
        return self.strategy in ("prompt", "p_tuning")

    def for_texts(self) -> list[str]:
        """The keys that are set and work on words."""
        strategy = self.learns_prompt or self.strategy == "prefix"
        wanted = {"augment": self.augment, "teacher": self.teacher, "strategy": strategy}
        return [f"finetune.{key}" for key, set_so in wanted.items() if set_so]


class Pretrain(Section):
    """How the encoder goes on reading unlabelled messages (data.train, data.unlabelled) before it is fine-tuned."""

    epochs: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="Passes over the messages; 0: none, it is only fine-tuned."
    )
    learning_rate: float = Field(default=1e-4, gt=0, le=1, description="The highest learning rate.")
    masked: float = Field(default=0.15, gt=0, lt=1, description="Share of the words that are hidden and to be said.")
    whole_words: bool = Field(default=True, description="Whether all pieces of a word are hidden together.")
    batch_size: Count = Field(default=32, description="Messages in a batch, on each device.")
    warmup: float = Field(default=0.1, ge=0, le=1, description="Fraction of the steps in which the rate rises.")
    weight_decay: float = Field(default=0.01, ge=0, le=1, description="AdamW's weight decay.")
    freeze_embeddings: bool = Field(default=True, description="Whether the token embeddings stay as they are.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="Number format it computes in; auto: bf16 on a GPU that has it, else fp32."
    )


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
    epochs: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="Passes over as many rows as there are to train on, to recover in; absent: 16, or 40 where one"
        " layer stays, whose steps are cheaper; 0: fitted, not retrained.",
    )
    copies: int = Field(
        default=4,
        ge=0,
        le=1000,
        description="Altered copies of each message that the unpruned model answers, to learn from.",
    )
    teachers: Count = Field(
        default=1,
        description="Fine-tunings of the unpruned model, each from another seed, whose mean answer is learned; the"
        " first is the one that the pruned model is held against.",
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
    hidden_weight: float | None = Field(
        default=None,
        ge=0,
        description="Weight of the unpruned model's last hidden states; 0 leaves them out; absent: 5, or 0 where one"
        " layer stays, whose states can't be those of many.",
    )

    @model_validator(mode="after")
    def _rounds_while_it_recovers(self) -> Self:
        fewest = self.epochs_for(2)
        if self.qat_epochs > fewest:
            raise ValueError(f"qat_epochs ({self.qat_epochs:g}) must not be above epochs ({fewest:g})")
        return self

    @property
    def retrains(self) -> bool:
        """Whether what is left is trained, not fitted alone."""
        return self.epochs != 0

    def epochs_for(self, layers: int) -> float:
        """The epochs of the recovery of so many layers."""
        return (40.0 if layers == 1 else 16.0) if self.epochs is None else self.epochs

    def hidden_weight_for(self, layers: int) -> float:
        """The weight of the last hidden states in the recovery of so many layers."""
        return (0.0 if layers == 1 else 5.0) if self.hidden_weight is None else self.hidden_weight


class Quantize(Section):
    """How weights and activations are stored and computed."""

    scheme: Annotated[
        Literal["int8", "int8_dynamic", "int8_static", "int8_weights", "int4_weights", "fp16", "none"],
        BeforeValidator(not_bf16),
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
