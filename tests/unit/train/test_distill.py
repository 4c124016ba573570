"""Distillation: the teacher is asked once, padding does not count, and the student comes nearer to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from deploykit.events import Progress, ignore
from deploykit.recipe import Finetune
from deploykit.runners import Target, infer_all, open_runner
from deploykit.tasks import find_task
from deploykit.tasks.base import Section
from deploykit.train.distill import Distillation, Teacher, distillation_loss
from deploykit.train.finetune import finetune
from deploykit.train.lesson import Lesson, taught

TASK = find_task("text-classification")


class Output(dict[str, Any]):
    """As transformers gives it: keys and attributes."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


def loss_of(
    logits: torch.Tensor, hidden: torch.Tensor, batch: dict[str, Any], sections: Any = (), **settings: float
) -> float:
    empty = Teacher(np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float16), np.zeros(2, np.int64))
    chosen = {"temperature": 2.0, "soft_weight": 0.9, "hidden_weight": 5.0, **settings}
    outputs = Output(logits=logits, hidden_states=(None, hidden))
    return float(distillation_loss(outputs, batch, "logits", Distillation(empty, **chosen), sections))


def batch_of(logits: torch.Tensor, hidden: torch.Tensor) -> dict[str, Any]:
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    labels = torch.tensor([3, -100])  # the second has none
    return {"teacher_logits": logits, "teacher_hidden": hidden, "attention_mask": mask, "labels": labels}


def hard_loss(logits: torch.Tensor) -> float:
    return float(-logits.log_softmax(-1)[0, 3]) / 2


def test_the_loss_of_the_teacher_itself_is_that_of_the_labels() -> None:
    logits, hidden = torch.randn(2, 5), torch.randn(2, 3, 4)
    assert loss_of(logits, hidden, batch_of(logits, hidden)) == pytest.approx(0.1 * hard_loss(logits), abs=1e-5)


def test_the_loss_is_as_defined_and_padding_does_not_count() -> None:
    logits, other = torch.randn(2, 5), torch.randn(2, 5)
    hidden = torch.randn(2, 3, 4)
    moved = hidden.clone()
    moved[0, 2] += 100  # padding
    moved[1, 0, 0] += 2
    soft = (other / 3).softmax(-1)
    divergence = (soft * (soft.log() - (logits / 3).log_softmax(-1))).sum(-1).mean()
    expected = 0.4 * 9 * float(divergence) + 0.6 * hard_loss(logits) + 2 * (4 / (5 * 4))
    found = loss_of(logits, moved, batch_of(other, hidden), temperature=3.0, soft_weight=0.4, hidden_weight=2.0)
    assert found == pytest.approx(expected, rel=1e-4)


def test_with_logits_for_each_token_padding_does_not_count_and_the_mean_is_over_tokens() -> None:
    logits, other, hidden = torch.randn(2, 3, 5), torch.randn(2, 3, 5), torch.randn(2, 3, 4)
    batch = batch_of(other, hidden) | {"labels": torch.tensor([[-100, 3, -100], [2, -100, 1]])}
    soft = (other / 2).softmax(-1)
    divergence = (soft * (soft.log() - (logits / 2).log_softmax(-1))).sum(-1)
    real = batch["attention_mask"].bool()
    chosen = logits.log_softmax(-1)
    hard = -(chosen[0, 1, 3] + chosen[1, 0, 2] + chosen[1, 2, 1]) / 5
    expected = 0.9 * 4 * float(divergence[real].mean()) + 0.1 * float(hard)
    assert loss_of(logits, hidden, batch) == pytest.approx(expected, rel=1e-4)
    moved = logits.clone()
    moved[0, 2] += 50 * torch.randn(5)
    assert loss_of(moved, hidden, batch) == pytest.approx(expected, rel=1e-4)


def test_of_sections_the_losses_are_added_one_by_token_one_by_message() -> None:
    logits, other, hidden = torch.randn(2, 3, 5), torch.randn(2, 3, 5), torch.randn(2, 3, 4)
    batch = batch_of(other, hidden) | {"labels": torch.tensor([[4, 0, -100], [-100, -100, -100]])}
    tags = loss_of(logits[..., :3], hidden, batch_of(other[..., :3], hidden) | {
        "labels": torch.tensor([[-100, 0, -100], [-100, -100, -100]])
    })  # fmt: skip
    classes = loss_of(logits[:, 0, 3:], hidden, batch_of(other[:, 0, 3:], hidden) | {"labels": torch.tensor([1, -100])})
    sections = (Section(0, 3, True, 0.25), Section(3, 5, False))
    assert loss_of(logits, hidden, batch, sections) == pytest.approx(0.25 * tags + classes, rel=1e-5)


def test_a_teachers_rows_of_tokens_become_a_padded_batch() -> None:
    starts, states = np.array([0, 2, 5], np.int64), np.zeros((5, 1), np.float16)
    teacher = Teacher(np.arange(10, dtype=np.float32).reshape(5, 2), states, starts)
    assert teacher.logits_of([1, 0], 3).tolist() == [[[4, 5], [6, 7], [8, 9]], [[0, 1], [2, 3], [0, 0]]]
    classifier = Teacher(np.arange(4, dtype=np.float32).reshape(2, 2), states, starts)
    assert classifier.logits_of([1], 3).tolist() == [[2, 3]]


def logits_of(folder: Path, texts: Any) -> np.ndarray:
    with open_runner(Target("torch", str(folder), threads=1)) as runner:
        return infer_all(runner, list(texts), [[index] for index in range(len(texts))])["logits"]


def test_a_student_comes_nearer_to_its_teacher_and_the_teacher_is_asked_once(
    trained: Path, tiny_checkpoint: Callable[..., Path], toy_data: Any, tmp_path: Path
) -> None:
    student = tiny_checkpoint("bert", num_hidden_layers=1, initializer_range=0.05, seed=5)
    events: list[Any] = []

    def learn(out: str, epochs: float) -> Path:
        finetune(
            student,
            toy_data,
            Finetune(epochs=epochs, learning_rate=5e-3, freeze_embeddings=False, dropout=0.0),
            TASK,
            tmp_path / out,
            workspace=tmp_path / "work",
            lesson=Lesson(trained, soft_weight=1.0),
            stage="prune",
            listener=events.append,
        )
        return tmp_path / out

    texts = toy_data.validation.texts
    wanted = logits_of(trained, texts)
    near = logits_of(learn("out", 12), texts)
    far = logits_of(student, texts)
    assert np.abs(near - wanted).mean() < 0.3 * np.abs(far - wanted).mean()
    assert (near.argmax(-1) == wanted.argmax(-1)).mean() > 0.9

    def taught() -> int:
        return sum(isinstance(event, Progress) and event.unit == "taught message" for event in events)

    asked = taught()
    assert asked
    learn("again", 12)
    assert taught() == asked, "its answers were kept"


def test_the_last_answers_of_another_teacher_are_not_used(
    trained: Path, tiny_checkpoint: Callable[..., Path], toy_data: Any, tmp_path: Path
) -> None:
    from deploykit.train.distill import teach

    model = SimpleNamespace()
    rows = [{"input_ids": [1, 2, 3]}]
    calls: list[int] = []

    def answer(**batch: Any) -> Any:
        calls.append(1)
        return Output(logits=torch.zeros(1, 2), hidden_states=(torch.zeros(1, 3, 4),))

    class Model:
        config = SimpleNamespace(hidden_size=4)

        def eval(self) -> None:
            model.evaluated = True

        def parameters(self) -> Any:
            return iter([torch.zeros(1)])

        def __call__(self, **batch: Any) -> Any:
            return answer(**batch)

    def pad(rows: Any) -> Any:
        return {"input_ids": torch.tensor([row["input_ids"] for row in rows])}

    for identity in ("a", "a", "b"):
        teach(Model(), rows, "logits", pad, tmp_path, identity=identity)
    assert len(calls) == 2
    others = [{"input_ids": [1, 2, 4]}]
    teach(Model(), others, "logits", pad, tmp_path, identity="b")
    assert len(calls) == 3
    kept = teach(Model(), others, "logits", pad, tmp_path, identity="b", hidden=False)
    assert len(calls) == 3, "what has the hidden states has the logits too"
    assert kept.hidden is None
    teach(Model(), others, "logits", pad, tmp_path, identity="c", hidden=False)
    teach(Model(), others, "logits", pad, tmp_path, identity="c")
    assert len(calls) == 5


def test_of_several_teachers_the_mean_logits_are_learned_and_the_first_ones_states(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoints = [tiny_checkpoint("bert", seed=seed, initializer_range=0.5) for seed in (1, 2, 3)]
    tokenizer = AutoTokenizer.from_pretrained(checkpoints[0])
    rows = [dict(tokenizer(text)) for text in ("please cancel my parcel", "password")]

    def answers(name: str, first: Path, *others: Path) -> Distillation:
        lesson = Lesson(first, others=others, cache=tmp_path / name)
        return taught(lesson, rows, TASK, tokenizer.pad_with_tensors, tmp_path, stage="prune", listener=ignore)

    tokenizer.pad_with_tensors = lambda batch: tokenizer.pad(batch, return_tensors="pt")
    alone = [answers(f"alone-{number}", each).teacher for number, each in enumerate(checkpoints)]
    together = answers("together", *checkpoints).teacher
    assert np.abs(alone[0].logits - alone[1].logits).max() > 0.01
    np.testing.assert_allclose(together.logits, np.mean([each.logits for each in alone], axis=0), atol=1e-5)
    assert together.hidden is not None
    assert alone[0].hidden is not None
    np.testing.assert_array_equal(together.hidden, alone[0].hidden)
    assert not list(tmp_path.glob("together/other-*/teacher-hidden.npy")), "nothing learns from them"


def test_messages_without_labels_and_altered_copies_are_learned_from_in_as_many_steps(
    trained: Path, tiny_checkpoint: Callable[..., Path], toy_data: Any, tmp_path: Path
) -> None:
    student = tiny_checkpoint("bert", num_hidden_layers=1, initializer_range=0.05, seed=5)
    asked: list[int] = []

    def count(event: Any) -> None:
        if isinstance(event, Progress) and event.unit == "taught message":
            asked.append(event.total)

    def learn(out: str, **more: Any) -> Any:
        return finetune(
            student,
            toy_data,
            Finetune(epochs=8, learning_rate=5e-3, freeze_embeddings=False, dropout=0.0),
            TASK,
            tmp_path / out,
            workspace=tmp_path / f"{out}-work",
            lesson=Lesson(trained, **more),
            listener=count,
        )

    plain = learn("plain")
    rows = len(toy_data.train)
    assert set(asked) == {rows}
    asked.clear()
    more = learn("more", unlabelled=["please cancel my parcel", "password"], copies=2)
    assert set(asked) == {3 * (rows + 2)}
    assert abs(more.steps - plain.steps) <= 8, "an epoch is as many rows as have labels"
    assert more.metrics["accuracy"] > 0.7
