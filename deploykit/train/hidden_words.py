"""What a pretraining on texts hides: words, which the encoder learns to say."""

from __future__ import annotations

__all__ = ["check_pretrainable", "hidden_words", "masking_collator"]

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deploykit.errors import ModelError
from deploykit.recipe import Pretrain
from deploykit.runners.texts import fast_tokenizer
from deploykit.tasks.pruned import PLAN_KEY, PREFIX_KEY
from deploykit.train.hidden import Hidden
from deploykit.train.rows import NO_LABEL, Row

_SHOWN, _RANDOM = 0.8, 0.1
"""Of the chosen tokens: those that show as the mask, and those that show as another token; the rest stay."""


def hidden_words(model: Path, settings: Pretrain, *, max_length: int, trust_pickle: bool) -> Hidden:
    """The encoder of a checkpoint with a masked-language head, its messages, and what is hidden of them.

    Raises:
        ModelError: the encoder has no such head, or its tokenizer no mask.
    """
    import torch
    from transformers import AutoModel

    check_pretrainable(model)
    tokenizer = fast_tokenizer(model, max_length)
    if tokenizer.mask_token_id is None or not tokenizer.is_fast:
        raise ModelError(
            f"{model}: its tokenizer has no mask token" if tokenizer.is_fast else f"{model} has no fast tokenizer",
            "leave out pretrain.epochs, or use an encoder of the BERT kind",
        )
    network = _network(model, trust_pickle=trust_pickle)
    return Hidden(
        processor=tokenizer,
        network=network,
        rows=lambda texts: _rows(tokenizer, network, texts),
        collator=lambda seed: masking_collator(tokenizer, settings.masked, seed, whole_words=settings.whole_words),
        encoder=lambda: AutoModel.from_pretrained(
            model, dtype=torch.float32, trust_remote_code=False, use_safetensors=None if trust_pickle else True
        ),
    )


def check_pretrainable(folder: Path) -> None:
    """Refuse a checkpoint that has no masked-language head in transformers, from its config.json alone.

    Raises:
        ModelError: says why.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    kind, hint = config.model_type, "leave out pretrain.epochs, or use an encoder of the BERT kind"
    if kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES or getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{folder}: transformers has no masked-language head for an encoder of kind {kind}", hint)
    if getattr(config, PLAN_KEY, None) is not None:
        raise ModelError(
            f"{folder} is pruned, and pretraining is for the whole encoder", "pretrain what it was cut from"
        )
    if getattr(config, PREFIX_KEY, None) is not None:
        raise ModelError(
            f"{folder} has a prefix, and pretraining is for the encoder alone",
            "pretrain the model that it was learned on",
        )


def masking_collator(
    tokenizer: Any, share: float, seed: int, *, whole_words: bool = True
) -> Callable[[Sequence[Row]], Any]:
    """Rows as one batch in which words, or tokens, are hidden; `labels` are theirs, and `NO_LABEL` elsewhere.

    At least one word of a message is hidden. Four in five tokens of it show as the mask, one in ten as any token, one
    in ten as what they are.

    Args:
        tokenizer: the model's.
        share: of the words that are hidden.
        seed: of what is hidden, where no epoch has drawn before.
        whole_words: hide all pieces of a word together.
    """
    import torch
    from transformers import DataCollatorWithPadding

    pad = DataCollatorWithPadding(tokenizer)
    generator = torch.Generator().manual_seed(seed)
    special = torch.tensor(sorted(tokenizer.all_special_ids))
    ordinary = torch.tensor([each for each in range(len(tokenizer)) if each not in set(special.tolist())])

    def collate(rows: Sequence[Row]) -> Any:
        batch = pad([{name: value for name, value in row.items() if name != "words"} for row in rows])
        ids = batch["input_ids"]
        labels = torch.full_like(ids, NO_LABEL)
        for number, row in enumerate(rows):
            words = torch.tensor(row["words"])
            if not whole_words:
                words = torch.where(words >= 0, torch.arange(len(words)), words)
            there = torch.tensor(sorted({*words.tolist()} - {-1}))
            if not len(there):
                continue
            drawn = torch.rand(len(there), generator=generator)
            hidden = there[(drawn < share) | (drawn == drawn.min())]
            chosen = torch.isin(words, hidden).nonzero().squeeze(1)
            labels[number, chosen] = ids[number, chosen]
            how = torch.rand(len(chosen), generator=generator)
            other = ordinary[torch.randint(len(ordinary), (len(chosen),), generator=generator)]
            shown = torch.where(how < _SHOWN, tokenizer.mask_token_id, ids[number, chosen])
            ids[number, chosen] = torch.where(how >= 1 - _RANDOM, other, shown)
        batch["labels"] = labels
        return batch

    return collate


def _rows(tokenizer: Any, network: Any, texts: Sequence[str]) -> list[Row]:
    """What the model takes of each message, and `words`: the word of each token, -1 for none."""
    import inspect

    encoded = tokenizer(list(texts), truncation=True, padding=False)
    taken = inspect.signature(network.forward).parameters
    return [
        {name: values[row] for name, values in encoded.items() if name in taken}
        | {"words": [-1 if word is None else word for word in encoded.word_ids(row)]}
        for row in range(len(texts))
    ]


def _network(model: Path, *, trust_pickle: bool) -> Any:
    """The encoder with a masked-language head."""
    import torch
    from transformers import AutoModelForMaskedLM

    try:
        return AutoModelForMaskedLM.from_pretrained(
            model, dtype=torch.float32, trust_remote_code=False, use_safetensors=None if trust_pickle else True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"transformers can't load {model} for pretraining: {reason}", "check its config.json and weights"
        ) from error
