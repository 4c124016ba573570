"""Tiny random models, a small tokenizer and toy data that can be learned in seconds, made once a session."""

from __future__ import annotations

import random
import re
import signal
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_TOPIC_WORDS = {
    "cancel": "cancel stop end terminate abort void revoke drop undo withdraw",
    "delivery": "parcel courier shipping driver tracking depot doorstep van package postman",
    "invoice": "invoice bill receipt tax statement charge fee amount cost price",
    "login": "password account login username locked code browser screen profile email",
}
TOPICS = {label: words.split() for label, words in _TOPIC_WORDS.items()}
"""The labels and the words that give them away."""
_FILLING_WORDS = (
    "please hello can you tell me about the my a is it was not now what how do i need help with this for today again "
    "would like to know since last week still nothing happened and want an answer"
)
FILLING = _FILLING_WORDS.split()


def pytest_configure() -> None:
    """Take Ctrl-C again where the shell that started the tests in its background has them ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def toy_message(label: str, rng: random.Random, longest: int = 12) -> str:
    """A message of 1 to `longest` words, at least one of them of its topic."""
    words = rng.choices(FILLING, k=rng.randrange(longest)) + rng.choices(TOPICS[label], k=rng.randint(1, 2))
    rng.shuffle(words)
    return " ".join(words)


def toy_table(count: int, seed: int) -> Any:
    """`count` labelled messages, every label as often."""
    from deploykit.data.table import Table

    rng = random.Random(seed)
    labels = [sorted(TOPICS)[index % len(TOPICS)] for index in range(count)]
    rng.shuffle(labels)
    texts = tuple(toy_message(label, rng) for label in labels)
    return Table("toy", texts, tuple(labels), tuple(range(2, count + 2)))


@pytest.fixture(scope="session")
def toy_data() -> Any:
    """512 messages to train on, 128 to choose on and 200 to certify on, with 4 labels that can be told apart."""
    from deploykit.data.dataset import LabelledData

    return LabelledData(toy_table(512, 1), toy_table(128, 2), toy_table(200, 3), tuple(sorted(TOPICS)))


@pytest.fixture(scope="session")
def write_csv() -> Callable[[Path, Any], Path]:
    """Writes a table as a CSV file with the columns text and label."""

    def write(path: Path, table: Any) -> Path:
        rows = [f"{text},{label}" for text, label in zip(table.texts, table.labels, strict=True)]
        path.write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
        return path

    return write


_BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_SPECIAL_BERT = {
    "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"
}  # fmt: skip
_SPECIAL_ROBERTA = {
    "cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"
}  # fmt: skip
_KINDS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, str]]] = {
    "bert": ({**_BERT, "max_position_embeddings": 64, "pad_token_id": 0}, _SPECIAL_BERT),
    "electra": ({**_BERT, "embedding_size": 32, "max_position_embeddings": 64, "pad_token_id": 0}, _SPECIAL_BERT),
    "distilbert": (
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 64, "pad_token_id": 0},
        _SPECIAL_BERT,
    ),
    "roberta": (
        {**_BERT, "max_position_embeddings": 66, "type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0},
        _SPECIAL_ROBERTA,
    ),
    "xlm-roberta": (
        {**_BERT, "max_position_embeddings": 66, "type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0},
        _SPECIAL_ROBERTA,
    ),
    "mpnet": ({**_BERT, "max_position_embeddings": 66, "pad_token_id": 1, "bos_token_id": 0}, _SPECIAL_ROBERTA),
}


def _tokenizer(special: Mapping[str, str]) -> Any:
    """A WordPiece tokenizer of the toy messages: some of their words are whole, some in pieces.

    Not a trained one: the library's trainers break ties at random, so nothing would be the same in the next run.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    rng = random.Random(0)
    messages = [toy_message(label, rng) for _ in range(200) for label in TOPICS]
    words = sorted({word for message in messages for word in re.findall(r"\w+|[^\w\s]", message.lower())})
    letters = sorted({letter for word in words for letter in word} | set(string.ascii_lowercase))
    halves = [half for word in words[1::2] if len(word) > 3 for half in (word[:3], f"##{word[3:]}")]
    pieces = [*special.values(), *letters, *(f"##{letter}" for letter in letters), *words[::2], *halves]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token=special["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    ends = [(special[name], tokenizer.token_to_id(special[name])) for name in ("sep_token", "cls_token")]
    tokenizer.post_processor = processors.BertProcessing(*ends)
    return tokenizer


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a checkpoint folder of a tiny random model: `tiny_checkpoint(kind, max_length=64, seed=0, **config)`.

    `head` and `names` are those of another task.

    The same arguments give the same folder: copy it to change it.
    """
    import torch
    import transformers
    from transformers import AutoConfig, PreTrainedTokenizerFast

    from deploykit.tasks.quiet import quiet_transformers

    made: dict[str, Path] = {}

    def make(
        kind: str = "bert",
        *,
        max_length: int | None = 64,
        seed: int = 0,
        names: Sequence[str] = tuple(sorted(TOPICS)),
        head: str = "SequenceClassification",
        **config: Any,
    ) -> Path:
        name = "-".join(str(part) for part in (kind, max_length, seed, names, head, *sorted(config.items())))
        if name in made:
            return made[name]
        settings, special = _KINDS[kind]
        tokenizer = _tokenizer(special)
        labels = dict(enumerate(names))
        settings = {
            "vocab_size": tokenizer.get_vocab_size(),
            # Weights as large as a trained model's: with the usual 0.02 every answer is the same.
            "initializer_range": 0.3,
            "id2label": labels,
            "label2id": {label: index for index, label in labels.items()},
            **settings,
            **config,
        }
        torch.manual_seed(seed)
        model = getattr(transformers, f"AutoModelFor{head}").from_config(AutoConfig.for_model(kind, **settings))
        folder = tmp_path_factory.mktemp(kind)
        with quiet_transformers():
            model.save_pretrained(folder)
        length = {} if max_length is None else {"model_max_length": max_length}
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, **length).save_pretrained(folder)
        made[name] = folder
        return folder

    return make


@pytest.fixture(scope="session")
def trained(tiny_checkpoint: Callable[..., Path], toy_data: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT that has learned the toy data."""
    from deploykit.recipe import Finetune
    from deploykit.tasks import find_task
    from deploykit.train.finetune import finetune

    folder = tmp_path_factory.mktemp("trained")
    settings = Finetune(epochs=6, learning_rate=5e-3, freeze_embeddings=False)
    finetune(
        tiny_checkpoint("bert", initializer_range=0.05),
        toy_data,
        settings,
        find_task("text-classification"),
        folder / "model",
        workspace=folder / "work",
    )
    return folder / "model"


def toy_entities(count: int, seed: int) -> Any:
    """`count` messages in which every word of a topic is marked."""
    from deploykit.data.labels import Span
    from deploykit.data.table import Table

    owners = {word: label for label, words in TOPICS.items() for word in words}
    plain = toy_table(count, seed)
    found = [
        tuple(Span(*word.span(), owners[word[0]]) for word in re.finditer(r"\w+", text) if word[0] in owners)
        for text in plain.texts
    ]
    return Table("toy", plain.texts, tuple(found), plain.rows)


@pytest.fixture(scope="session")
def entity_data() -> Any:
    """512 messages to train on, 128 to choose on and 200 to certify on, with spans of 4 classes."""
    from deploykit.data.dataset import LabelledData
    from deploykit.data.marks import MarkedSpans

    names = MarkedSpans(("entities",)).outputs(sorted(TOPICS))
    return LabelledData(toy_entities(512, 1), toy_entities(128, 2), toy_entities(200, 3), names)


@pytest.fixture(scope="session")
def tagger(tiny_checkpoint: Callable[..., Path], entity_data: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT that has learned to mark the toy entities."""
    from deploykit.recipe import Finetune
    from deploykit.tasks import find_task
    from deploykit.train.finetune import finetune

    folder = tmp_path_factory.mktemp("tagger")
    finetune(
        tiny_checkpoint("bert", initializer_range=0.05, head="TokenClassification", names=entity_data.label_names),
        entity_data,
        Finetune(epochs=6, learning_rate=5e-3, freeze_embeddings=False),
        find_task("token-classification"),
        folder / "model",
        workspace=folder / "work",
    )
    return folder / "model"


@pytest.fixture(scope="session")
def joint_data(entity_data: Any) -> Any:
    """The same messages with their topic, and in them the words of topics marked."""
    from dataclasses import replace

    from deploykit.data.dataset import LabelledData
    from deploykit.data.labels import INTENT, MarkedMessage
    from deploykit.data.marks import ClassAndSpans

    def joined(table: Any, seed: int) -> Any:
        plain = toy_table(len(table), seed)
        assert plain.texts == table.texts
        return replace(table, labels=tuple(map(MarkedMessage, plain.labels, table.labels)))

    names = ClassAndSpans(("topic", "marked")).outputs([*TOPICS, *(INTENT + topic for topic in TOPICS)])
    tables = (entity_data.train, entity_data.validation, entity_data.test)
    return LabelledData(*(joined(table, seed) for seed, table in enumerate(tables, start=1)), names)


@dataclass(frozen=True)
class Exported:
    """An exported checkpoint, with all that the export said; `program` is what PyTorch's exporter returned."""

    checkpoint: Path
    folder: Path
    report: Any
    warnings: tuple[str, ...]
    program: Any


@pytest.fixture(scope="session")
def exported(
    tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Callable[[str], Exported]:
    """Exports a tiny model of two layers once: the trained one for `bert`, else a random one."""
    from deploykit.events import Event, Warn
    from deploykit.export import to_onnx
    from deploykit.tasks import find_task

    made: dict[str, Exported] = {}

    def export(kind: str) -> Exported:
        if kind in made:
            return made[kind]
        checkpoint = request.getfixturevalue("trained") if kind == "bert" else tiny_checkpoint(kind)
        folder, events, programs = tmp_path_factory.mktemp(f"{kind}-onnx"), list[Event](), []
        real = to_onnx._exported

        def kept(*arguments: Any) -> Any:
            programs.append(real(*arguments))
            return programs[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(to_onnx, "_exported", kept)
            report = to_onnx.export_onnx(checkpoint, folder, find_task("text-classification"), listener=events.append)
        warnings = tuple(event.message for event in events if isinstance(event, Warn))
        made[kind] = Exported(checkpoint, folder, report, warnings, programs[0])
        return made[kind]

    return export
