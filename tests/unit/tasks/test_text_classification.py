"""Text classification: loading, targets, metrics and answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deploykit.errors import DataError, UsageError
from deploykit.tasks import find_task, task_names, task_of_outputs
from deploykit.tasks.quiet import quiet_transformers
from deploykit.tasks.text_classification import Classified

TASK = find_task("text-classification")
LABELS = ("cancel", "delivery", "invoice")


def test_a_task_is_found_by_name_and_an_unknown_one_named_with_its_neighbour() -> None:
    assert "text-classification" in task_names()
    assert TASK.name == "text-classification"
    with pytest.raises(UsageError, match="unknown task 'text-clasification'") as caught:
        find_task("text-clasification")
    assert caught.value.hint == "did you mean 'text-classification'?"
    with pytest.raises(UsageError) as caught:
        find_task("qqq")
    assert "text-classification" in str(caught.value.hint)


def test_targets_are_indices_and_unknown_labels_are_named() -> None:
    targets = TASK.targets(["invoice", "cancel", "invoice"], LABELS)
    assert targets == [2, 0, 2]
    with pytest.raises(DataError, match=r"2 label\(s\) that the model does not know: login, refund"):
        TASK.targets(["refund", "cancel", "login"], LABELS)


def test_metrics_and_scores_by_hand() -> None:
    logits = np.array([[2, 1, 0], [0, 3, 1], [0, 3, 1], [1, 0, 5]], dtype=np.float32)
    metrics = TASK.metrics(logits, np.array([0, 1, 2, 2]), LABELS)
    assert metrics["accuracy"] == 0.75
    # F1 by class: 1; precision 1/2 and recall 1: 2/3; precision 1 and recall 1/2: 2/3.
    assert metrics["macro_f1"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    right = TASK.right_answers(["cancel", "delivery", "invoice", "invoice"], LABELS)
    scores = TASK.scores(TASK.answers({"logits": logits}, LABELS), right)
    assert scores.correct.tolist() == [True, True, False, True]
    assert scores.is_share
    assert scores.value == 0.75
    with pytest.raises(DataError, match=r"1 label\(s\) that the model does not know: refund"):
        TASK.right_answers(["refund"], LABELS)


def test_a_task_is_told_by_what_its_text_model_answers() -> None:
    found = task_of_outputs(["label", "score", "logits"])
    assert found is not None
    assert found.name == TASK.name
    assert task_of_outputs(["logits"]) is None


def test_labels_in_parts_are_refused() -> None:
    with pytest.raises(UsageError, match="takes one label column, not 3"):
        TASK.label_form(("type", "start", "end"))


def test_answers_are_ranked_with_their_probabilities_and_ties_go_to_the_lower_index() -> None:
    logits = np.array([[0, np.log(3), 0], [1000, 1000, -1000]], dtype=np.float32)
    first, second = TASK.answers({"logits": logits}, LABELS, top_k=3)
    assert (first.label, first.score) == ("delivery", pytest.approx(0.6))
    assert [label for label, _ in first.alternatives] == ["cancel", "invoice"]
    assert sum((first.score, *(score for _, score in first.alternatives))) == pytest.approx(1)
    assert (second.label, second.score) == ("cancel", pytest.approx(0.5))
    assert TASK.answers({"logits": logits}, LABELS)[0] == Classified("delivery", first.score)
    assert len(TASK.answers({"logits": logits}, LABELS, top_k=99)[0].alternatives) == 2


def test_a_new_head_has_the_labels_and_the_old_encoder(trained: Path) -> None:
    import torch

    model = TASK.load_model(trained, ("yes", "no"))
    assert model.config.id2label == {0: "yes", 1: "no"}
    assert model.classifier.weight.shape == (2, 32)
    before = TASK.load_model(trained)
    assert before.classifier.weight.shape == (4, 32)
    assert torch.equal(model.bert.pooler.dense.weight, before.bert.pooler.dense.weight)


def test_loading_says_nothing_and_leaves_the_librarys_settings_alone(
    trained: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    TASK.load_model(trained)
    TASK.load_model(trained, ("yes", "no"))
    with pytest.raises(RuntimeError), quiet_transformers():
        raise RuntimeError
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_attention_that_a_model_lacks_is_not_asked_for(tiny_checkpoint: Callable[..., Path]) -> None:
    assert TASK.load_model(tiny_checkpoint("bert"), attn_implementation="sdpa").config._attn_implementation == "sdpa"
    mpnet = tiny_checkpoint("mpnet", num_hidden_layers=1)
    assert TASK.load_model(mpnet, attn_implementation="sdpa").config._attn_implementation == "eager"


def test_the_entry_for_the_server_imports_nothing_of_deploykit() -> None:
    for path in TASK.entry():
        source = path.read_text(encoding="utf-8")
        assert "deploykit" not in "".join(line for line in source.splitlines() if "import" in line)
