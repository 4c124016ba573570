"""Text classification: one message in, one label out."""

from __future__ import annotations

__all__ = ["TextClassification"]

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import DataError, ModelError
from deploykit.tasks.base import Answer, Outputs
from deploykit.tasks.pruned import class_to_load
from deploykit.tasks.quiet import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TextClassification:
    """Intents, topics, sentiment: a sequence-classification head over an encoder."""

    name = "text-classification"
    metric = "accuracy"
    output = "logits"

    def load_model(self, folder: Path, labels: Sequence[str] | None = None, **settings: Any) -> PreTrainedModel:
        """The sequence-classification model of a checkpoint folder.

        Args:
            folder: a Hugging Face checkpoint folder (safetensors).
            labels: the labels of a new head, in index order; without it the checkpoint's own head is kept.
            settings: passed on to `from_pretrained`.

        Raises:
            ModelError: transformers can't load it, or it has no head (and no labels for a new one are given).
        """
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoModelForSequenceClassification

        if settings.get("attn_implementation") == "sdpa":
            del settings["attn_implementation"]  # the default; to ask for it is an error where a model lacks it (MPNet)
        if labels is not None:
            settings |= {
                "num_labels": len(labels),
                "id2label": dict(enumerate(labels)),
                "label2id": {label: index for index, label in enumerate(labels)},
                "problem_type": "single_label_classification",
                # A checkpoint that was tuned for other labels gets a new head.
                "ignore_mismatched_sizes": True,
            }
        model: PreTrainedModel
        try:
            with quiet_transformers():
                model, found = class_to_load(folder, AutoModelForSequenceClassification).from_pretrained(
                    folder, output_loading_info=True, trust_remote_code=False, **settings
                )
        except (OSError, ValueError, RuntimeError, KeyError, StrictDataclassError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"transformers can't load {folder} for {self.name}: {reason}",
                "check that its config.json belongs to its weights, and that transformers knows the model type",
            ) from error
        if labels is None and found["missing_keys"]:
            raise ModelError(
                f"{folder} has no weights for {', '.join(sorted(found['missing_keys'])[:3])}",
                "a pretrained encoder answers nothing yet: `deploykit finetune` gives it a head",
            )
        return model

    def targets(self, labels: Sequence[str], label_names: Sequence[str]) -> NDArray[np.int64]:
        """Label indices, int64 [items].

        Raises:
            DataError: a label that the model does not know.
        """
        index = {name: position for position, name in enumerate(label_names)}
        unknown = sorted(set(labels) - set(index))
        if unknown:
            raise DataError(
                f"{len(unknown)} label(s) that the model does not know: {', '.join(unknown[:5])}",
                "use data with the model's own labels, or leave the labels out to check without the metric",
            )
        return np.array([index[label] for label in labels], dtype=np.int64)

    def metrics(self, outputs: Outputs, targets: NDArray[Any]) -> Mapping[str, float]:
        """Accuracy and macro F1 (over the labels that occur in either), as fractions."""
        from sklearn.metrics import f1_score

        predicted = outputs[self.output].argmax(axis=-1)
        return {
            "accuracy": float(np.mean(predicted == targets)),
            "macro_f1": float(f1_score(targets, predicted, average="macro", zero_division=0.0)),
        }

    def correct(self, outputs: Outputs, targets: NDArray[Any]) -> NDArray[np.bool_]:
        """Which items get their label: bool [items]."""
        return np.asarray(outputs[self.output].argmax(axis=-1) == targets, dtype=np.bool_)

    def answers(self, outputs: Outputs, label_names: Sequence[str], top_k: int = 1) -> list[Answer]:
        """The `top_k` labels of each item with their probabilities, best first; ties go to the lower index."""
        logits = outputs[self.output].astype(np.float64)
        shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
        probabilities = shifted / shifted.sum(axis=-1, keepdims=True)
        order = np.argsort(-logits, axis=-1, kind="stable")[:, :top_k]
        answers = []
        for row, best in enumerate(order):
            ranked = [(label_names[index], float(probabilities[row, index])) for index in best]
            answers.append(Answer(*ranked[0], alternatives=tuple(ranked[1:])))
        return answers

    def entry(self) -> Path:
        """The text entry's source file."""
        return Path(__file__).parents[1] / "triton" / "entries" / "text_classification.py"
