"""Prompt tuning: the encoder stays as it is, and learns from a few tokens of its own in front of every message.

What is learned is the embedding of virtual tokens (Lester et al. 2021), by itself or through a small network that is
left out in the end (P-tuning, Liu et al. 2021; the shortcut around it as in Razdaibiedina et al. 2023). They end up as
rows of the vocabulary, and the tokenizer writes them behind its start token: a head that reads the start token still
finds it first, and what is exported, quantized and served is a checkpoint like any other.
"""

from __future__ import annotations

__all__ = ["Prompt", "fold_prompt", "learn_prompt", "pieces_of_labels"]

import json
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from deploykit.errors import TrainingError
from deploykit.recipe import Finetune


class Prompt(torch.nn.Embedding):
    """The model's token embedding, its own rows frozen and those of the virtual tokens trained.

    Args:
        table: the token embedding, [pieces, width].
        first: the id of the first virtual token; the others follow.
        start: what the virtual tokens begin as, [tokens, width].
        encoded: whether they are learned through a small network.
    """

    def __init__(self, table: torch.nn.Embedding, first: int, start: torch.Tensor, *, encoded: bool) -> None:
        width = table.embedding_dim
        pieces = max(table.num_embeddings, first + len(start))
        super().__init__(pieces, width, padding_idx=table.padding_idx)
        self.first = first
        with torch.no_grad():
            self.weight[: table.num_embeddings] = table.weight
        self.weight.requires_grad_(False)
        self.rows = torch.nn.Parameter(start.clone())
        self.network = _small_network(width) if encoded else None

    def virtual(self) -> torch.Tensor:
        """The embeddings of the virtual tokens: [tokens, width]."""
        return self.rows if self.network is None else self.rows + self.network(self.rows)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings of token ids: [..., width]."""
        rows = self.virtual()
        place = ids - self.first
        inside = (place >= 0) & (place < len(rows))
        learned = functional.embedding(place.clamp(0, len(rows) - 1), rows)
        return torch.where(inside.unsqueeze(-1), learned, super().forward(ids))


def fold_prompt(model: Any) -> None:
    """Give a model that has learned a prompt a plain embedding again, the virtual tokens among its rows."""
    prompt = model.get_input_embeddings()
    if not isinstance(prompt, Prompt):
        return
    plain = torch.nn.Embedding(prompt.num_embeddings, prompt.embedding_dim, padding_idx=prompt.padding_idx)
    with torch.no_grad():
        plain.weight.copy_(prompt.weight)
        plain.weight[prompt.first : prompt.first + len(prompt.rows)] = prompt.virtual()
    model.set_input_embeddings(plain.to(prompt.weight.device))


def _small_network(width: int) -> torch.nn.Sequential:
    """Two layers, which give zeros at first."""
    last = torch.nn.Linear(width, width)
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    return torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.ReLU(), last)


def learn_prompt(model: Any, tokenizer: Any, settings: Finetune, labels: Sequence[str], positions: int) -> Any:
    """Give a model and its tokenizer virtual tokens, to be learned; they begin as pieces of the labels' names.

    That is the start that Lester et al. found best (section 3.2).

    Args:
        model: whose encoder is frozen.
        tokenizer: its own.
        settings: `strategy`, `prompt_tokens` and `max_length`.
        labels: what is learned.
        positions: tokens that the model takes.

    Returns:
        the tokenizer that writes the virtual tokens, and truncates to `finetune.max_length` tokens beside them.

    Raises:
        TrainingError: the tokenizer can't write them, or the model has no room for them.
    """
    count = settings.prompt_tokens
    ends = tokenizer.num_special_tokens_to_add()
    if positions - count <= ends:
        raise TrainingError(
            f"finetune.prompt_tokens={count} leaves no room for a message in the {positions} tokens of the model",
            "use fewer",
        )
    names = [f"[prompt {number}]" for number in range(count)]
    if not tokenizer.is_fast or set(names) & tokenizer.get_vocab().keys():
        reason = "has a prompt already" if tokenizer.is_fast else "is not a fast one"
        raise TrainingError(
            f"finetune.strategy={settings.strategy}: the tokenizer {reason}",
            "go on from the model that it was learned on" if tokenizer.is_fast else "use a model with tokenizer.json",
        )
    chosen = pieces_of_labels(tokenizer, labels, count)
    tokens = [AddedToken(name, special=True, normalized=False) for name in names]
    tokenizer.add_special_tokens({"extra_special_tokens": tokens}, replace_extra_special_tokens=False)
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    spec["post_processor"] = _written(spec["post_processor"], dict(zip(names, _ids(tokenizer, names), strict=True)))
    # Not of the tokenizer's own class: BERT's writes its usual tokens again when it is loaded (transformers 5.23).
    written = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(spec)),
        model_max_length=min(settings.max_length + count, positions),
        model_input_names=list(tokenizer.model_input_names),
        extra_special_tokens=tokenizer.extra_special_tokens,
        **tokenizer.special_tokens_map,
    )
    written.deprecation_warnings.update(tokenizer.deprecation_warnings)
    table = model.get_input_embeddings()
    prompt = Prompt(
        table,
        _ids(tokenizer, names[:1])[0],
        table.weight.detach()[torch.tensor(chosen)],
        encoded=settings.strategy == "p_tuning",
    )
    model.set_input_embeddings(prompt)
    model.config.vocab_size = prompt.num_embeddings
    return written


def pieces_of_labels(tokenizer: Any, labels: Sequence[str], count: int) -> list[int]:
    """The ids of that many pieces of the labels' names, some left out or repeated."""
    words = " ".join(labels).replace("_", " ").replace("-", " ")
    pieces = tokenizer(words, add_special_tokens=False, truncation=False, verbose=False)["input_ids"] or [0]
    return [
        pieces[number * len(pieces) // count if len(pieces) > count else number % len(pieces)]
        for number in range(count)
    ]


def _ids(tokenizer: Any, names: Sequence[str]) -> list[int]:
    found: list[int] = tokenizer.convert_tokens_to_ids(list(names))
    return found


def _written(processor: Any, prompt: dict[str, int]) -> Any:
    """A post-processor that writes the prompt behind what stands in front of a text.

    Args:
        processor: as in `tokenizer.json`.
        prompt: its tokens and their ids, in order.

    Raises:
        TrainingError: it is of an unknown kind.
    """
    kind = (processor or {}).get("type")
    if kind == "TemplateProcessing":
        tokens = [{"SpecialToken": {"id": name, "type_id": 0}} for name in prompt]
        made = {name: {"id": name, "ids": [number], "tokens": [name]} for name, number in prompt.items()}
        templates = {}
        for name in ("single", "pair"):
            text = next(place for place, item in enumerate(processor[name]) if "Sequence" in item)
            templates[name] = [*processor[name][:text], *tokens, *processor[name][text:]]
        return {**processor, **templates, "special_tokens": {**processor["special_tokens"], **made}}
    if kind == "Sequence":
        inner = processor["processors"]
        writes = [place for place, each in enumerate(inner) if each["type"] != "ByteLevel"]
        if len(writes) == 1:
            place = writes[0]
            return {**processor, "processors": [*inner[:place], _written(inner[place], prompt), *inner[place + 1 :]]}
    if kind in ("BertProcessing", "RobertaProcessing"):
        template = _written(_template(processor["cls"], processor["sep"], kind == "RobertaProcessing"), prompt)
        if kind == "BertProcessing" or not processor["trim_offsets"]:
            return template
        trim = {"type": "ByteLevel", "add_prefix_space": processor["add_prefix_space"], "trim_offsets": True,
                "use_regex": True}  # fmt: skip
        return {"type": "Sequence", "processors": [trim, template]}
    raise TrainingError(
        f"the tokenizer writes its own tokens in a way that leaves no place for a prompt ({kind or 'none'})",
        "use another finetune.strategy, such as lora",
    )


def _template(start: Sequence[Any], end: Sequence[Any], twice: bool) -> dict[str, Any]:
    """What BERT's and RoBERTa's post-processors write, as a template."""

    def token(name: str, type_id: int = 0) -> dict[str, Any]:
        return {"SpecialToken": {"id": name, "type_id": type_id}}

    def text(name: str, type_id: int = 0) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": type_id}}

    first = [token(start[0]), text("A"), token(end[0])]
    second = int(not twice)  # RoBERTa has one type, and two ends between the texts
    between = [token(end[0])] if twice else []
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": [*first, *between, text("B", second), token(end[0], second)],
        "special_tokens": {name: {"id": name, "ids": [number], "tokens": [name]} for name, number in (start, end)},
    }
