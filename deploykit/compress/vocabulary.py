"""Vocabulary trimming: the tokenizer and the embedding shrink together to the pieces that messages use.

What a text is cut into does not change as long as its pieces are kept: WordPiece takes the longest piece, and a longer
one that is not there was not taken before either; BPE keeps every merge that makes a kept piece, in its order; the
best path of a unigram model stays the best of fewer. A word with a piece that went is cut finer, down to characters,
which all stay: nothing becomes unknown.
"""

from __future__ import annotations

__all__ = ["Trimmed", "is_trimmed", "trim_tokenizer", "trim_vocabulary"]

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from deploykit.errors import ModelError
from deploykit.tasks import Task
from deploykit.tasks.quiet import quiet_transformers

TRIMMED_KEY = "deploykit_vocabulary"
"""In config.json: how many pieces there were before."""
_BATCH = 1000


@dataclass(frozen=True)
class Trimmed:
    """What stayed of a vocabulary.

    Attributes:
        pieces: how many there were.
        kept: the ids that stay, ascending; a piece's new id is its place here.
    """

    pieces: int
    kept: tuple[int, ...]


def trim_vocabulary(checkpoint: Path, out: Path, task: Task, texts: Sequence[str], *, commonest: int) -> Trimmed | None:
    """Write a checkpoint whose tokenizer and embedding have the pieces of these texts, and some more.

    Args:
        checkpoint: a checkpoint folder with `tokenizer.json`.
        out: the folder to write; made if it is not there.
        task: what the model does.
        texts: messages like those to be served; they are cut into the same pieces as before.
        commonest: how many pieces stay at least that other texts are likely to need: the first in the vocabulary, as
            training ranks them.

    Returns:
        what stayed; None, and nothing written, where nothing would go or the tokenizer is of a kind without pieces.

    Raises:
        ModelError: a text is cut differently afterwards.
    """
    import torch

    spec = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    whole = _untruncated(spec)
    used = {piece for ids in _encoded(whole, texts) for piece in ids}
    found = trim_tokenizer(spec, used, commonest)
    model = task.load_model(checkpoint, dtype=torch.float32)
    table: Any = model.get_input_embeddings()
    if found is None or len(found[1].kept) >= table.num_embeddings:
        return None
    small, trimmed = found
    new_id = {old: new for new, old in enumerate(trimmed.kept)}
    for before, after in zip(_encoded(whole, texts), _encoded(_untruncated(small), texts), strict=True):
        if [new_id[piece] for piece in before] != after:
            raise ModelError(
                "the trimmed tokenizer cuts a message of the data differently", "use prune.vocabulary: all"
            )
    rows = torch.tensor(trimmed.kept)
    padding = table.padding_idx
    shorter = torch.nn.Embedding(
        len(rows), table.embedding_dim, padding_idx=None if padding is None else new_id.get(padding)
    )
    shorter.weight.data = table.weight.data[rows].clone()
    model.set_input_embeddings(shorter)
    model.config.vocab_size = len(rows)
    setattr(model.config, TRIMMED_KEY, trimmed.pieces)
    for name, value in model.config.to_dict().items():
        if name.endswith("_token_id") and isinstance(value, int):
            setattr(model.config, name, new_id.get(value))
    with quiet_transformers():
        model.save_pretrained(out)
    # In the form of the library, which saves it again: it counts for the size on disk.
    (out / "tokenizer.json").write_text(json.dumps(small, ensure_ascii=False, indent=2), encoding="utf-8")
    settings = json.loads((checkpoint / "tokenizer_config.json").read_text(encoding="utf-8"))
    if "added_tokens_decoder" in settings:
        settings["added_tokens_decoder"] = {
            str(new_id[int(old)]): token for old, token in settings["added_tokens_decoder"].items()
        }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False, indent=1), encoding="utf-8")
    return trimmed


def is_trimmed(folder: Path) -> bool:
    """Whether the vocabulary of a model folder has been trimmed."""
    path = folder / "config.json"
    return path.is_file() and TRIMMED_KEY in json.loads(path.read_text(encoding="utf-8"))


def trim_tokenizer(
    spec: Mapping[str, Any], used: Iterable[int], commonest: int
) -> tuple[dict[str, Any], Trimmed] | None:
    """The content of a `tokenizer.json` with fewer pieces; None for a kind that is not cut into pieces.

    Args:
        spec: the whole one's: WordPiece, BPE or Unigram.
        used: ids that must stay.
        commonest: how many pieces of several characters stay at least, from the front of the vocabulary. Special
            tokens and single characters stay in any case.
    """
    small = copy.deepcopy(dict(spec))
    model = small["model"]
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind not in ("WordPiece", "BPE", "Unigram"):
        return None
    ids = _ids(model)
    pieces = {number: piece for piece, number in ids.items()}
    added = {int(token["id"]): token for token in small.get("added_tokens", ())}
    special = set(added) | {int(number) for number in _template_ids(small.get("post_processor"))}
    unknown = model.get("unk_token")
    special |= {ids[unknown]} if unknown in ids else set()
    prefix = model.get("continuing_subword_prefix") or ""
    keep = {number for number in used if number in pieces} | (special & set(pieces))
    # Models whose positions count from the padding's id need it where it is.
    keep |= set(range(min((number for number, token in added.items() if "pad" in token["content"].lower()), default=0)))
    characters = {number for piece, number in ids.items() if len(_bare(piece, prefix)) <= 1}
    keep |= characters
    if kind == "Unigram":
        keep |= {int(model["unk_id"])} if model.get("unk_id") is not None else set()
        # An unknown character costs a little more than the rarest piece: it stays, for the same cost.
        keep.add(min(range(len(model["vocab"])), key=lambda number: model["vocab"][number][1]))
    ranked = (number for number in sorted(set(pieces) - special - characters) if "[unused" not in pieces[number])
    keep |= {number for number, _ in zip(ranked, range(commonest), strict=False)}
    if kind == "BPE":
        keep |= _keep_merges(model, ids, keep)
    kept = sorted(keep)
    outside = sorted(number for number in added if number not in pieces)  # added behind the vocabulary
    new_id = {old: new for new, old in enumerate([*kept, *outside])}
    if kind == "Unigram":
        model["vocab"] = [model["vocab"][number] for number in kept]
        if model.get("unk_id") is not None:
            model["unk_id"] = new_id[int(model["unk_id"])]
    else:
        model["vocab"] = {pieces[number]: new_id[number] for number in kept}
    for token in small.get("added_tokens", ()):
        token["id"] = new_id[int(token["id"])]
    _renumber(small.get("post_processor"), new_id)
    if isinstance(small.get("padding"), dict):
        small["padding"]["pad_id"] = new_id.get(small["padding"]["pad_id"], 0)
    return small, Trimmed(len(pieces) + len(outside), (*kept, *outside))


def _ids(model: Mapping[str, Any]) -> dict[str, int]:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        return {piece: int(number) for piece, number in vocabulary.items()}
    return {piece: number for number, (piece, _) in enumerate(vocabulary)}


def _bare(piece: str, prefix: str) -> str:
    """A piece without what marks its place in a word."""
    bare = piece.removeprefix(prefix) if prefix else piece
    return bare[1:] if bare[:1] in ("▁", "Ġ") else bare


def _keep_merges(model: dict[str, Any], ids: Mapping[str, int], keep: set[int]) -> set[int]:
    """What the kept pieces are merged from, down to characters; the other merges are taken out of the model."""
    pairs = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    prefix = model.get("continuing_subword_prefix") or ""
    made: dict[str, list[tuple[str, str]]] = {}
    for first, second in pairs:
        made.setdefault(first + second.removeprefix(prefix), []).append((first, second))
    pieces = {number: piece for piece, number in ids.items()}
    reached = {pieces[number] for number in keep}
    waiting = list(reached)
    while waiting:
        for pair in made.get(waiting.pop(), ()):
            for part in pair:
                if part in ids and part not in reached:
                    reached.add(part)
                    waiting.append(part)
    model["merges"] = [
        merge
        for merge, (first, second) in zip(model["merges"], pairs, strict=True)
        if first in reached and second in reached and first + second.removeprefix(prefix) in reached
    ]
    return {ids[piece] for piece in reached}


def _template_ids(processor: Any) -> Iterable[int]:
    """The ids that a post-processor writes."""
    if not isinstance(processor, dict):
        return
    for token in (processor.get("special_tokens") or {}).values():
        yield from token["ids"]
    for name in ("sep", "cls"):
        if name in processor:
            yield processor[name][1]
    for inner in processor.get("processors", ()):
        yield from _template_ids(inner)


def _renumber(processor: Any, new_id: Mapping[int, int]) -> None:
    if not isinstance(processor, dict):
        return
    for token in (processor.get("special_tokens") or {}).values():
        token["ids"] = [new_id[number] for number in token["ids"]]
    for name in ("sep", "cls"):
        if name in processor:
            processor[name][1] = new_id[processor[name][1]]
    for inner in processor.get("processors", ()):
        _renumber(inner, new_id)


def _untruncated(spec: Mapping[str, Any]) -> Tokenizer:
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _encoded(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterable[list[int]]:
    for start in range(0, len(texts), _BATCH):
        for encoding in tokenizer.encode_batch(list(texts[start : start + _BATCH])):
            yield encoding.ids
