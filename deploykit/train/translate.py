"""Back-translation: messages said in other words, by way of another language and back.

That of Sennrich et al. 2016 (section 3), as used to augment a classifier's data by Xie et al. 2020 (UDA, section 3.2):
the words are drawn, not searched for, so that each copy says it differently.
"""

from __future__ import annotations

__all__ = ["back_translated", "with_located_translators"]

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from deploykit.artifacts.digest import digest_json, digest_tree
from deploykit.data.spill import gathered_texts
from deploykit.errors import ModelError
from deploykit.events import Listener, Progress
from deploykit.recipe import Finetune
from deploykit.runners.checkpoint import resolve_or_error
from deploykit.runners.untrusted import check_checkpoint
from deploykit.tasks.quiet import quiet_transformers
from deploykit.train.processes import on_cpu, processes

_BATCH = 32
_LIKELIEST = 0.9
"""The share of the probability that words are drawn from (nucleus sampling, Holtzman et al. 2020)."""


def with_located_translators(settings: Finetune, base: Path) -> Finetune:
    """The settings with the folders of their translators, where they have any.

    Raises:
        ModelError: one is not on this machine.
    """
    names = {"translator": settings.translator, "translator_back": settings.translator_back}
    return settings.model_copy(
        update={key: str(resolve_or_error(name, base)) for key, name in names.items() if name is not None}
    )


def back_translated(
    texts: Sequence[str], settings: Finetune, copy: int, *, seed: int, workspace: Path, listener: Listener
) -> Sequence[str]:
    """Each text in other words; one that came back empty as it was.

    What is done is kept in `workspace`, and an interrupted call goes on from there. Of several processes that train
    together one translates.

    Args:
        texts: the messages.
        settings: with folders as `translator` and `translator_back`; without the latter, the first one's words count.
        copy: which of several.
        seed: of the words that are drawn.
        workspace: the folder for what is done.
        listener: hears of progress.

    Raises:
        ModelError: a model is not one that turns text into text, is unsafe, or has to be told the languages.
    """
    folders = [Path(name) for name in (settings.translator, settings.translator_back) if name is not None]
    models: list[JsonValue] = [dict(digest_tree(folder)) for folder in folders]
    identity = digest_json([*models, seed, copy, _LIKELIEST, len(texts)])
    path = workspace / f"translated-{copy}.jsonl"
    with processes().main_process_first():
        done = _kept(path, identity, len(texts))
        if done < len(texts):
            with path.open("a", encoding="utf-8", newline="\n") as file:
                if not path.stat().st_size:
                    file.write(json.dumps(identity) + "\n")
                for first, found in _translations(texts, folders, done, [seed, copy]):
                    file.write("".join(json.dumps(text) + "\n" for text in found))
                    file.flush()
                    listener(Progress("finetune", first + len(found), len(texts), "translated message"))
        gathered = gathered_texts()
        with path.open("rb") as kept:
            next(kept)
            gathered.extend(json.loads(line) for line in kept)
    return gathered.done()


def _kept(path: Path, identity: str, count: int) -> int:
    """How many of so many texts were translated before; what is of another call, or torn, is taken away."""
    if not path.is_file():
        return 0
    with path.open("rb+") as file:
        head = file.readline()
        if head != (json.dumps(identity) + "\n").encode():
            file.truncate(0)
            return 0
        ends = [file.tell()]
        for line in file:
            if line.endswith(b"\n"):
                ends.append(ends[-1] + len(line))
        done = len(ends) - 1
        if done < count:
            done -= done % _BATCH  # a batch is drawn as one
        file.truncate(ends[done])
    return done


def _translations(
    texts: Sequence[str], folders: Sequence[Path], done: int, seed: Sequence[int]
) -> Iterator[tuple[int, list[str]]]:
    """The first text of each batch that is left, and the batch in other words."""
    import numpy as np
    import torch

    translators = [_translator(folder) for folder in folders]
    for first in range(done, len(texts), _BATCH):
        batch = found = list(texts[first : first + _BATCH])
        drawn = int(np.random.default_rng([*seed, first]).integers(2**62))  # a batch's own: so it can be resumed
        with torch.random.fork_rng():
            torch.manual_seed(drawn)
            for translate in translators:
                found = translate(found)
        yield first, [new.strip() or old for new, old in zip(found, batch, strict=True)]


def _translator(folder: Path) -> Callable[[list[str]], list[str]]:
    """What says texts in the model's words."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    check_checkpoint(folder)
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=False, use_safetensors=True)
    except (OSError, ValueError, ImportError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{folder} can't translate: {reason}", "name a sequence-to-sequence model, such as one of OPUS-MT"
        ) from error
    if getattr(tokenizer, "src_lang", None) is not None:
        raise ModelError(
            f"{folder} has to be told its languages", "name a model of one pair of languages, such as one of OPUS-MT"
        )
    model = model.eval().to("cpu" if on_cpu() else processes().device)
    room = int(getattr(model.config, "max_position_embeddings", 0) or getattr(model.config, "n_positions", 0) or 512)

    def translate(texts: list[str]) -> list[str]:
        given = tokenizer(texts, padding=True, truncation=True, max_length=room, return_tensors="pt")
        inputs: dict[str, Any] = {name: given[name].to(model.device) for name in ("input_ids", "attention_mask")}
        longest = min(room, 2 * inputs["input_ids"].shape[1] + 8) - 1
        with torch.inference_mode(), quiet_transformers():
            ids = model.generate(
                **inputs, do_sample=True, num_beams=1, top_k=0, top_p=_LIKELIEST, max_new_tokens=max(longest, 1)
            )
        return [str(text) for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]

    return translate
