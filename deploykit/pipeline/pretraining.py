"""Continued pretraining on text files of the user's own."""

from __future__ import annotations

__all__ = ["pretrain_alone"]

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from deploykit.artifacts.atomic import new_folder
from deploykit.artifacts.digest import digest_json
from deploykit.data.readers import read_rows
from deploykit.events import Listener, ignore
from deploykit.recipe import Pretrain
from deploykit.runners.checkpoint import resolve_model, resolve_or_error
from deploykit.runners.medium import columns_of, medium_of

if TYPE_CHECKING:
    from deploykit.train.pretrain import PretrainResult


def pretrain_alone(
    model: str,
    out: Path,
    settings: Pretrain,
    *,
    data: Sequence[str],
    text: str = "text",
    task: str = "text-classification",
    validation: float = 0.05,
    max_length: int = 128,
    seed: int = 0,
    trust_pickle: bool = False,
    listener: Listener = ignore,
) -> PretrainResult:
    """Go on with the pretraining of an encoder on data files, and write the checkpoint folder `out`.

    Args:
        model: a model reference.
        out: the folder to write; not there yet.
        settings: how to train.
        data: data references, of which only the text is read; a message that comes again counts once.
        text: its column.
        task: what the model is for, which says what messages are.
        validation: the fraction of the messages that the loss is measured on.
        max_length: tokens that a message is truncated to.
        seed: of every random choice.
        trust_pickle: load pickled weights.
        listener: hears of progress.

    Raises:
        DataError: a file can't be used.
        As `deploykit.train.pretrain.pretrain`.
    """
    from deploykit.train.pretrain import pretrain
    from deploykit.train.processes import is_main_process

    reference, location = resolve_model(model, Path()), resolve_or_error(model, Path())
    columns = columns_of(task, text, None)
    texts = list(dict.fromkeys(each for source in data for each in read_rows(source, columns).texts))
    held_out = set(Random(seed).sample(range(len(texts)), max(1, round(validation * len(texts)))))
    key = digest_json([reference.identity, settings.model_dump(mode="json"), max_length, seed, validation, list(texts)])
    workspace = out.absolute().with_name(f"{out.name}.work") / key[:16]
    main = is_main_process()
    with new_folder(out) if main else contextlib.nullcontext(workspace) as folder:
        result = pretrain(
            location,
            [each for number, each in enumerate(texts) if number not in held_out],
            [texts[number] for number in sorted(held_out)],
            settings,
            folder,
            workspace=workspace,
            medium=medium_of(task),
            max_length=max_length,
            seed=seed,
            trust_pickle=trust_pickle,
            listener=listener,
        )
    if main:
        shutil.rmtree(workspace.parent, ignore_errors=True)
    return result
