"""Gives a retrieval model its entries: embeds their texts and writes the checkpoint that answers with them."""

from __future__ import annotations

__all__ = ["index_checkpoint"]

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.data.entries import Entries
from deploykit.errors import ModelError, UsageError
from deploykit.runners.tokenize import max_length_from_folder
from deploykit.runners.untrusted import check_checkpoint
from deploykit.tasks import Task
from deploykit.tasks.pooling import ANSWERS_KEY, ENTRIES_KEY, is_sentence_model
from deploykit.tasks.quiet import quiet_transformers
from deploykit.train.heads import embeddings_of, entry_rows
from deploykit.train.rows import padding_collator

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def index_checkpoint(checkpoint: Path, out: Path, task: Task, entries: Entries) -> int:
    """Write `checkpoint` with these entries in place of its own to `out`; nothing is trained.

    Args:
        checkpoint: the folder of a retrieval model, pruned or not.
        out: the folder to write; made if it is not there.
        task: retrieval, or another task that has entries.
        entries: what the model is to answer with.

    Returns:
        how many texts stand for each entry at most.

    Raises:
        UsageError: the task has no entries.
        ModelError: the checkpoint is of another kind, or damaged.
    """
    import torch
    from transformers import AutoTokenizer

    if not task.entries:
        raise UsageError(f"{task.name} has no entries", "use a model of the task retrieval")
    check_checkpoint(checkpoint)
    if not is_sentence_model(checkpoint):
        raise ModelError(f"{checkpoint} is no {task.name} model", f"make one: deploykit finetune --task {task.name}")
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, use_fast=True, trust_remote_code=False)
        tokenizer.model_max_length = max_length_from_folder(checkpoint)
        network = task.load_model(checkpoint, dtype=torch.float32).eval()
        encoded = tokenizer(list(entries.texts), truncation=True, padding=False)
        names = ("input_ids", "attention_mask")
        rows = [{name: encoded[name][row] for name in names} for row in range(len(entries.texts))]
        number = {name: place for place, name in enumerate(entries.names)}
        labels = np.array([number[name] for name in entries.labels], dtype=np.int64)
        weight = entry_rows(embeddings_of(network, rows, padding_collator(tokenizer)), labels, seed=0)
        bias = _kept_bias(network, entries.names) if "two_towers" in task.losses else None
        network.set_head(torch.from_numpy(weight), bias)
        network.config.id2label = dict(enumerate(entries.names))
        network.config.label2id = number
        setattr(network.config, ANSWERS_KEY, dict(entries.answers))
        network.save_pretrained(out)
    for name in _TOKENIZER:
        if (checkpoint / name).is_file():
            shutil.copy2(checkpoint / name, out / name)
    return int(getattr(network.config, ENTRIES_KEY))


def _kept_bias(network: Any, names: Sequence[str]) -> Any:
    """The bias that each of these entries has in the model; that of the least wanted for one that it does not know."""
    import torch

    config = network.config
    own = network.classifier.bias.detach()[:: getattr(config, ENTRIES_KEY)].tolist()
    known = {config.id2label[place]: value for place, value in enumerate(own)}
    return torch.tensor([known.get(name, min(own)) for name in names])
