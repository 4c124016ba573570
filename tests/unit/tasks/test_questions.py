"""Question answering: which words are read, which span is chosen, how it is judged, and what is served."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.data.labels import Quote, classes_of, label_from_json, shown_label
from deploykit.errors import DataError, ModelError, UsageError
from deploykit.runners import Target, open_runner
from deploykit.runners.tokenize import Encoder
from deploykit.tasks import find_task, task_of_outputs
from deploykit.tasks.questions import Answered, token_f1
from deploykit.tasks.spans import best_span, pair_words, split_pair

TASK = find_task("question-answering")
NAMES = ("start", "end")
TEXTS = [
    "where is it?\nThe Päckchen 📦 is at Café Zoë, since 3 pm.",
    "🙂 how long\n👨‍👩‍👧 two working days\nand no more",
    "no context here",
    "",
    "\nonly a context",
    "a question\n",
]


def logits(words: np.ndarray, start: Sequence[float], end: Sequence[float]) -> np.ndarray:
    """Of words' first and last tokens in their order, others low."""
    found = np.full((len(words), 2), -9.0, dtype=np.float32)
    tokens = [place for place in range(len(words)) if words[place, 1]]
    firsts = [place for place in tokens if place == tokens[0] or (words[place] != words[place - 1]).any()]
    lasts = [place for place in tokens if place == tokens[-1] or (words[place] != words[place + 1]).any()]
    found[firsts[: len(start)], 0], found[lasts[: len(end)], 1] = start, end
    return found


@pytest.fixture(scope="module")
def reader(tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of pairs."""
    from transformers import AutoTokenizer

    folder, source = tmp_path_factory.mktemp("reader"), tiny_checkpoint("bert", head="TokenClassification", names=NAMES)
    TASK.load_model(source, NAMES).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def test_each_token_of_the_context_has_its_word_in_the_text_that_was_sent(reader: Path) -> None:
    tensors = Encoder(reader).encode(TEXTS, words=True)
    for text, words in zip(TEXTS, tensors["words"], strict=True):
        question, context = split_pair(text)
        spans = list(dict.fromkeys((start, end) for start, end in words.tolist() if end))
        assert all(len(question) < start < end <= len(text) for start, end in spans)
        assert spans == sorted(spans)
        assert "".join(text[start:end] for start, end in spans) == "".join(context.split())
    assert not tensors["token_type_ids"].any()
    first = tensors["words"][0]
    assert "Päckchen" in {TEXTS[0][start:end] for start, end in first.tolist()}


def test_the_context_is_cut_and_never_the_question(reader: Path) -> None:
    encoder = Encoder(reader)
    question = "where is my parcel " * 3
    whole = encoder.encode([question])["input_ids"][0].tolist()
    cut = encoder.encode([f"{question}\n{'it is on the way ' * 100}"], words=True)
    assert cut["input_ids"].shape == (1, encoder.max_length)
    assert cut["input_ids"][0, : len(whole) - 2].tolist() == whole[:-2]
    assert cut["words"][0, -2, 1] > len(question)


def test_runners_give_the_same_words_texts_and_numbers_singly_and_in_company(reader: Path, tmp_path: Path) -> None:
    with open_runner(Target("torch", str(reader), threads=1, task=TASK.name)) as runner:
        together = runner.infer(TEXTS)
        for place, text in enumerate(TEXTS):
            alone = runner.infer([text])
            length = alone["logits"].shape[1]
            np.testing.assert_allclose(together["logits"][place, :length], alone["logits"][0], atol=1e-4)
            np.testing.assert_array_equal(together["words"][place, :length], alone["words"][0])
    assert together["texts"].tolist() == TEXTS
    np.testing.assert_array_equal(together["words"], Encoder(reader).encode(TEXTS, words=True)["words"])
    assert len(TASK.answers(together, NAMES)) == len(TEXTS)
    assert all(str(answer) == "no answer" for answer in TASK.answers(together, NAMES)[2:4])


def test_the_served_entry_answers_as_the_runner_does(reader: Path, served_entry: Callable[..., Any]) -> None:
    import torch

    model = TASK.load_model(reader).eval()

    def logits_of(feeds: dict[str, Any]) -> Any:
        with torch.inference_mode():
            return model(**{name: torch.from_numpy(values) for name, values in feeds.items()})["logits"].numpy()

    said = {"labels": NAMES, "inputs": ["input_ids", "attention_mask"], "max_length": 64, "pad_id": 0, "pad_type_id": 0}
    ask = served_entry(TASK, {**said, **TASK.served_settings(reader)}, logits_of, reader / "tokenizer.json")
    texts = [*TEXTS, f"{TEXTS[0]} {'and so on ' * 90}"]
    together, none, *singly = ask(
        ([text.encode() for text in texts], {}), ((), {}), *(((text.encode(),), {}) for text in texts)
    )
    assert "one message" in str(none.error)
    with open_runner(Target("torch", str(reader), threads=1, task=TASK.name)) as runner:
        expected = [TASK.answers(runner.infer([text]), NAMES)[0] for text in texts]
    for found in (TASK.served_answers(together), [TASK.served_answers(each)[0] for each in singly]):
        for text, ours, wanted in zip(texts, found, expected, strict=True):
            said_of, known = ours.as_json(text), wanted.as_json(text)
            assert said_of.pop("score") == pytest.approx(known.pop("score"), abs=1e-4)
            assert said_of == known
    assert expected[-1].as_json(texts[-1])["cut"]


def test_a_checkpoint_that_was_not_trained_on_pairs_is_refused(tiny_checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match="does not say"):
        TASK.load_model(tiny_checkpoint("bert", head="TokenClassification", names=NAMES))


def test_the_likeliest_span_is_chosen_or_none_where_nothing_is_above_0() -> None:
    text = "how long?\nit takes two days now"
    offsets = [(0, 0), (0, 3), (4, 8), (8, 9), (0, 0), (0, 2), (3, 8), (9, 12), (13, 15), (15, 17), (18, 21), (0, 0)]
    words = pair_words(text, offsets, [None, 0, 0, 0, None, 1, 1, 1, 1, 1, 1, None])
    assert [text[start:end] for start, end in words.tolist()] == [
        "", "", "", "", "", "it", "takes", "two", "days", "days", "now", ""
    ]  # fmt: skip
    found = best_span(words, logits(words, [0, 0, 4, 1, 0], [3, 0, 1, 4, 0]))
    assert (text[found.start : found.end], found.read) == ("two days", len(text))
    # By hand: tokens within a word have -9, none has 0.
    starts = np.exp([0, 0, 4, 1, -9, 0]).sum() + 1
    ends = np.exp([3, 0, 1, -9, 4, 0]).sum() + 1
    assert found.score == pytest.approx(np.exp(8) / starts / ends)
    none = best_span(words, logits(words, [-1, -1, -1, -1, -1], [0.5] * 5))
    assert (none.start, none.end) == (0, 0)
    assert none.score == pytest.approx(1 / (1 + 5 * np.exp(-1) + np.exp(-9)) / (1 + 5 * np.exp(0.5) + np.exp(-9)))


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_the_span_is_the_best_of_all_that_are_short_enough(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    words = np.zeros((count + 3, 2), dtype=np.int64)
    words[2:-1] = [(2 * place + 1, 2 * place + 2) for place in range(count)]
    values = random.normal(size=(count + 3, 2)).astype(np.float32)
    found = best_span(words, values)
    tries = {
        (first, last): float(values[2 + first, 0]) + float(values[2 + last, 1])
        for first in range(count)
        for last in range(first, min(first + 30, count))
    }
    (first, last), best = max(tries.items(), key=lambda item: item[1])
    expected = (2 * first + 1, 2 * last + 2) if best > 0 else (0, 0)
    assert (found.start, found.end) == expected
    assert 0 < found.score <= 1


def test_targets_mark_the_tokens_of_the_answer_and_what_is_cut_off_is_none() -> None:
    words = np.array([(0, 0), (0, 0), (10, 12), (13, 18), (13, 18), (19, 22), (0, 0)])
    label = Quote(13, 22, "takes two")
    assert TASK.targets([label], NAMES, [words]) == [[0, -100, 0, 1, 4, 2, -100]]
    assert TASK.targets([Quote(10, 12, "it")], NAMES, [words]) == [[0, -100, 3, 0, 4, 0, -100]]
    assert TASK.targets([Quote(0, 0, ""), Quote(19, 30, "two or so"), Quote(40, 43, "now")], NAMES, [words] * 3) == [
        [0, -100, 0, 0, 4, 0, -100], [8, -100, 0, 0, 4, 0, -100], [8, -100, 0, 0, 4, 0, -100]
    ]  # fmt: skip
    with pytest.raises(UsageError, match="no answer in a context"):
        TASK.targets(["a class"], NAMES, [words])
    with pytest.raises(ModelError, match="special token"):
        TASK.targets([label], NAMES, [words[2:]])


def test_the_threshold_is_where_most_is_earned_and_is_folded_into_both_ends() -> None:
    targets = np.array([[0, 1, 2, 0], [0, 0, 0, 0], [0, 0, 3, 0], [0, 0, 0, 0]])
    predictions = np.full((4, 4, 2), -9.0)
    for row, (first, last, score) in enumerate([(1, 2, 10.0), (1, 1, 6.0), (2, 2, 8.0), (3, 3, 5.0)]):
        predictions[row, first, 0] = predictions[row, last, 1] = score / 2
    before = TASK.metrics(predictions, targets, NAMES)
    assert before == {"F1": 0.5, "exact_match": 0.5, "answerable_accuracy": 0.5}
    shift = TASK.shift(predictions, targets)
    assert 6 < 2 * shift < 8
    after = TASK.metrics(predictions - shift, targets, NAMES)
    assert after == {"F1": 1.0, "exact_match": 1.0, "answerable_accuracy": 1.0}
    assert TASK.shift(predictions[:0], targets[:0]) == 0.0


def test_who_says_none_where_the_answer_is_cut_off_is_wrong_and_the_threshold_does_not_care() -> None:
    words = np.array([(0, 0), (10, 12), (13, 18), (19, 22)])
    asked = [Quote(13, 18, "takes"), Quote(19, 30, "two or so"), Quote(40, 43, "now"), Quote(0, 0, "")]
    targets = np.array(TASK.targets(asked, NAMES, [words] * 4))
    none = np.full((4, 4, 2), -9.0)
    assert TASK.metrics(none, targets, NAMES) == {"F1": 0.25, "exact_match": 0.25, "answerable_accuracy": 0.25}
    predictions = none.copy()
    for row, score in enumerate([8.0, 10.0, 10.0, 6.0]):
        predictions[row, 2] = score / 2
    assert TASK.metrics(predictions, targets, NAMES) == {
        "F1": 0.25, "exact_match": 0.25, "answerable_accuracy": 0.75
    }  # fmt: skip
    assert 6 < 2 * TASK.shift(predictions, targets) < 8


@given(st.integers(1, 45), st.integers(0, 2**32 - 1))
def test_the_training_judges_the_spans_that_are_served(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    pieces = random.integers(1, 3, count)
    words = np.zeros((int(pieces.sum()) + 3, 2), dtype=np.int64)
    words[2:-1] = np.repeat([(2 * place + 5, 2 * place + 6) for place in range(count)], pieces, axis=0)
    values = random.normal(size=(len(words), 2)).astype(np.float32)
    served = best_span(words, values)
    told = {"exact_match": 1.0, "F1": 1.0, "answerable_accuracy": 1.0}
    for padding in (0, 3):
        targets = np.array(TASK.targets([Quote(served.start, served.end, "said")], NAMES, [words]))
        targets = np.pad(targets, ((0, 0), (0, padding)), constant_values=-100)
        predictions = np.pad(values, ((0, padding), (0, 0)))[np.newaxis]
        assert TASK.metrics(predictions, targets, NAMES) == told
        shifted = best_span(words, values - TASK.shift(predictions, targets))
        assert (shifted.start, shifted.end) == (served.start, served.end)


@pytest.mark.parametrize(
    ("ours", "wanted", "f1"),
    [
        ("two days", "two working days", 0.8),
        ("The Café!", "café", 1.0),
        ("", "", 1.0),
        ("", "two", 0.0),
        ("two", "", 0.0),
        ("two two", "two", 2 / 3),
        ("", "A", 0.0),
        ("a", "A", 1.0),
        ("the", "A", 0.0),
        ("?", "", 0.0),
    ],
)
def test_f1_counts_words_as_squad_does(ours: str, wanted: str, f1: float) -> None:
    assert token_f1(ours, wanted) == pytest.approx(f1)


def test_exact_match_stands_beside_f1() -> None:
    answers = [Answered(3, 6, "two"), Answered(0, 0), Answered(3, 11, "two days")]
    right = TASK.right_answers([Quote(3, 6, "two"), Quote(0, 0, ""), Quote(3, 6, "two")], NAMES)
    scores = TASK.scores(answers, right)
    assert scores.value == pytest.approx((1 + 1 + 2 / 3) / 3)
    assert scores.beside["exact match"].value == pytest.approx(2 / 3)
    assert TASK.by_class(answers, right) == (["answer", "no answer", "answer"], ["answer", "no answer", "answer"])


def test_a_label_is_read_from_one_column_or_two() -> None:
    text = "who?\nÉmile 🙂 did"
    marked = '[{"start": 5, "end": 12, "label": "answer"}]'
    expected = Quote(5, 10, "Émile")
    assert TASK.label_form("answer").read(text, [marked.replace("12", "10")], "row 1") == expected
    two = TASK.label_form(["start", "end"])
    assert two.read(text, ["5", "10"], "row 1") == expected
    for nothing in ("", None, float("nan")):  # the last is what a Parquet file may have for a missing number
        assert two.read(text, [nothing, nothing], "row 1") == Quote(0, 0, "")
    assert two.outputs(["answer"]) == NAMES
    for values, message in (([0, 3], "begins before the context"), ([5, 99], "beyond the text")):
        with pytest.raises(DataError, match=message):
            two.read(text, values, "row 1")
    with pytest.raises(DataError, match="no line break"):
        two.read("who?", ["", ""], "row 1")
    with pytest.raises(DataError, match="2 answers"):
        TASK.label_form("answer").read(
            text, [f"{marked[:-1]}, {marked[1:].replace('5', '13').replace('12', '16')}"], "row"
        )
    with pytest.raises(UsageError, match="one label column or two"):
        TASK.label_form(["a", "b", "c"])
    assert label_from_json(json.loads(json.dumps(expected))) == expected
    assert (classes_of(expected), classes_of(Quote(0, 0, ""))) == (("answer",), ())
    assert (shown_label(expected), shown_label(Quote(0, 0, ""))) == ("'Émile'", "no answer")


def test_what_is_served_is_read_and_says_what_was_cut() -> None:
    assert task_of_outputs(["quote", "logits"]).name == "question-answering"  # type: ignore[union-attr]
    text = "who?\nÉmile 🙂 did"
    said = {"start": 5, "end": 10, "score": 0.5, "read": len(text), "text": "Émile"}
    none = {"start": 0, "end": 0, "score": 0.9, "read": 10, "text": ""}
    values = np.array([[json.dumps(each).encode()] for each in (said, none)], dtype=np.object_)
    first, second = TASK.served_answers({"quote": values})
    assert first.as_json(text) == {"answer": {"start": 5, "end": 10, "text": "Émile"}, "score": 0.5, "cut": False}
    assert second.as_json(text) == {"answer": None, "score": 0.9, "cut": True}
    assert first.line(text) == "'Émile' (50.0%)  who?"
    assert second.line(text) == "no answer (90.0%, the end of the context was not read)  who?"
    assert first == Answered(5, 10)
    for nothing_read, cut in (("who?\nsomebody", True), ("who?\n\u200b", False), ("who?\n", False), ("who?", False)):
        assert Answered(0, 0, read=0).as_json(nothing_read)["cut"] is cut
    for wrong in (np.array([[b"{}"]], dtype=np.object_), np.zeros((1, 1))):
        with pytest.raises(ValueError, match=r"answer|quote"):
            TASK.served_answers({"quote": wrong})


def test_the_cost_is_that_of_choosing_the_right_token_at_both_ends_or_none() -> None:
    import torch
    from torch.nn import functional

    from deploykit.errors import TrainingError
    from deploykit.recipe import Finetune
    from deploykit.train.objective import objective_from_settings

    values = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, -100, 1, 2, -100], [0, -100, 0, 0, 0], [-100] * 5])  # the last has no label
    rows = [{"labels": each.tolist()} for each in labels]
    objective = objective_from_settings(Finetune(), TASK, rows, NAMES)
    assert not objective.plain

    def cost(row: int, column: int, inside: list[int], right: int) -> Any:
        choices = torch.cat([torch.zeros(1), values[row, inside, column]])  # none, then the tokens of the context
        return functional.cross_entropy(choices[None], torch.tensor([right]))

    begins = cost(0, 0, [2, 3], 1) + cost(1, 0, [2, 3, 4], 0)
    ends = cost(0, 1, [2, 3], 2) + cost(1, 1, [2, 3, 4], 0)
    assert float(objective._cost(values, labels)) == pytest.approx(float((begins + ends) / 4), rel=1e-5)
    with pytest.raises(TrainingError, match="no classes to weigh"):
        objective_from_settings(Finetune(class_weights="balanced"), TASK, rows, NAMES)


def test_a_student_is_taught_the_choice_among_the_tokens_of_the_context() -> None:
    import torch

    from deploykit.train.distill import Distillation, distillation_loss

    generator = torch.Generator().manual_seed(0)
    teacher, labels = torch.randn(2, 4, 2, generator=generator), torch.tensor([[0, -100, 1, 2], [0, -100, 0, -100]])
    batch = {"teacher_logits": teacher, "labels": labels, "attention_mask": (labels != -100).long()}
    settings = Distillation(None, 2.0, 1.0, 0.0)  # type: ignore[arg-type]

    def loss(student: torch.Tensor) -> float:
        return float(distillation_loss({"logits": student}, batch, "logits", settings, TASK.sections(NAMES)))

    other = teacher.clone()
    other[0, 1] += 3.0  # of the question: nobody reads it
    other[:, 0] -= 2.0  # in its place stands none
    assert loss(teacher) == pytest.approx(0.0, abs=1e-6)
    assert loss(other) == pytest.approx(0.0, abs=1e-6)
    other[0, 2, 0] += 1.0
    assert loss(other) > 0.01
