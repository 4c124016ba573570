"""What a batch costs: cross entropy weighed by class or by difficulty, two dropouts that agree, adversarial embeddings.

Focal loss is that of Lin et al. 2017 (equation 4), R-Drop that of Liang et al. 2021 (algorithm 1), the adversarial
embeddings those of Miyato, Dai and Goodfellow 2017 (section 3), known as FGM.
"""

from __future__ import annotations

__all__ = ["Objective", "asked_loss", "chosen_loss", "class_weights", "objective_from_settings"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import TrainingError
from deploykit.recipe import Finetune
from deploykit.tasks import Task
from deploykit.tasks.base import Loss, Section
from deploykit.train.contrastive import check_pairs, contrastive_loss
from deploykit.train.rows import NO_LABEL, Part, Row, sections_of
from deploykit.train.towers import towers_loss

_OF_LABELS = ("class_weights", "focal_gamma", "label_smoothing", "r_drop", "adversarial")
"""Settings of a loss that compares logits with labels."""


@dataclass(frozen=True)
class Objective:
    """The loss of a batch.

    Attributes:
        output: the name of the logits.
        weights: float32 [classes], what a mistake on each costs; None weighs them alike.
        gamma: of the focal loss: how little an easy message counts; 0 is cross entropy.
        smoothing: probability given to the other labels.
        r_drop: weight of the divergence of two passes under dropout; 0 runs one.
        adversarial: length of the step on a message's embeddings that raises its loss most; 0 takes none.
        several: whether a message may have several labels: each is judged by itself.
        sections: the parts of the logits that are decided on apart, their weighted costs added; none for one part.
        temperature: of the contrastive loss, which then is the whole of it; None for cross entropy.
        towers: whether rows are messages and the texts of their entries, and only these are compared.
    """

    output: str
    weights: NDArray[np.float32] | None = None
    gamma: float = 0.0
    smoothing: float = 0.0
    r_drop: float = 0.0
    adversarial: float = 0.0
    several: bool = False
    sections: tuple[Section, ...] = ()
    temperature: float | None = None
    towers: bool = False

    @property
    def plain(self) -> bool:
        """Whether it is what the model computes itself."""
        smoothed = self.several and self.smoothing
        parts = self.weights is not None or bool(self.sections) or bool(self.temperature)
        return not (parts or self.gamma or self.r_drop or self.adversarial or smoothed)

    def loss(self, model: Any, batch: Mapping[str, Any]) -> tuple[Any, Any]:
        """The loss, a scalar tensor, and the model's outputs.

        Args:
            model: in training, or in evaluation, where only the cross entropy counts.
            batch: what the model takes, with `labels` (-100 where there is none), and `entry` for two towers.
        """
        inputs = {name: value for name, value in batch.items() if name not in ("labels", "entry")}
        labels = batch["labels"]
        if not model.training:
            outputs = model(**inputs)
            return self._cost(outputs[self.output], labels), outputs
        if self.temperature is not None:
            outputs = model(**inputs)
            if self.towers:
                return towers_loss(outputs["embedding"], labels, batch["entry"], self.temperature), outputs
            return contrastive_loss(outputs["embedding"], labels, self.temperature), outputs
        if not self.adversarial:
            return self._agreed(model, inputs, labels)
        import torch

        table = _embeddings(model)
        steps: list[Any] = []

        def watch(_module: Any, _arguments: Any, given: Any) -> Any:
            steps.append(given if given.requires_grad else given.detach().requires_grad_())
            return steps[-1]

        handle = table.register_forward_hook(watch)
        try:
            clean, outputs = self._agreed(model, inputs, labels)
        finally:
            handle.remove()
        slope = torch.autograd.grad(clean, steps[-1], retain_graph=True)[0].detach()
        length = slope.flatten(1).norm(dim=1).clamp_min(1e-12)
        step = self.adversarial * slope / length.view(-1, 1, 1)
        handle = table.register_forward_hook(lambda _module, _arguments, given: given + step)
        try:
            harmed, _ = self._agreed(model, inputs, labels)
        finally:
            handle.remove()
        return (clean + harmed) / 2, outputs

    def _agreed(self, model: Any, inputs: Mapping[str, Any], labels: Any) -> tuple[Any, Any]:
        """The cost of one pass; with R-Drop of two, and of what they disagree on."""
        if not self.r_drop:
            outputs = model(**inputs)
            return self._cost(outputs[self.output], labels), outputs
        import torch
        from torch.nn import functional

        outputs = model(**{name: torch.cat([value, value]) for name, value in inputs.items()})
        both = torch.cat([labels, labels])
        apart: Any = 0.0
        for part in sections_of(outputs[self.output].float(), both, self.sections):
            first, second = (self._log_shares(each) for each in part.logits.chunk(2))
            own = part.labels.chunk(2)[0]
            real = own[:, 0] != NO_LABEL if self.several else own != NO_LABEL
            first, second = first[real], second[real]
            apart += part.weight * sum(
                functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
                for ours, theirs in ((first, second), (second, first))
            )
        return self._cost(outputs[self.output], both) + self.r_drop * apart / 2, outputs

    def _cost(self, logits: Any, labels: Any) -> Any:
        if self.several:
            return self._cost_of_each(logits.float(), labels)
        return sum(
            part.weight * self._cost_of_part(part) for part in sections_of(logits.float(), labels, self.sections)
        )

    def _cost_of_part(self, part: Part) -> Any:
        """The cost of logits of which one is right."""
        import torch
        from torch.nn import functional

        logits, labels = part.logits.flatten(0, -2), part.labels.flatten()
        weights = None if self.weights is None else torch.from_numpy(self.weights[part.columns]).to(logits.device)
        if not self.gamma:
            return functional.cross_entropy(
                logits, labels, weight=weights, ignore_index=NO_LABEL, label_smoothing=self.smoothing
            )
        costs = functional.cross_entropy(
            logits, labels, weight=weights, ignore_index=NO_LABEL, label_smoothing=self.smoothing, reduction="none"
        )
        real = labels != NO_LABEL
        costs, logits, labels = costs[real], logits[real], labels[real]
        sure = functional.softmax(logits, dim=-1).gather(1, labels[:, None])[:, 0].detach()
        share = torch.ones_like(costs) if weights is None else weights[labels]
        return ((1 - sure) ** self.gamma * costs).sum() / share.sum().clamp_min(1e-12)

    def _cost_of_each(self, logits: Any, labels: Any) -> Any:
        """The cost where each label is a question of its own: the mean over messages and labels."""
        import torch
        from torch.nn import functional

        real = labels[:, 0] != NO_LABEL
        logits, labels = logits[real], labels[real]
        weights = None if self.weights is None else torch.from_numpy(self.weights).to(logits.device)
        wanted = labels * (1 - self.smoothing) + self.smoothing / 2
        costs = functional.binary_cross_entropy_with_logits(logits, wanted, weight=weights, reduction="none")
        if self.gamma:
            costs = costs * (labels - logits.sigmoid()).abs().detach() ** self.gamma
        return costs.mean() if costs.numel() else logits.sum() * 0.0

    def _log_shares(self, logits: Any) -> Any:
        """Logarithms of probabilities, those of each choice along the last axis."""
        import torch
        from torch.nn import functional

        if self.several:
            return torch.stack([functional.logsigmoid(logits), functional.logsigmoid(-logits)], dim=-1)
        return functional.log_softmax(logits, dim=-1)


def asked_loss(settings: Finetune, task: Task) -> Loss:
    """The loss that a recipe's `finetune` section names, or the task's own."""
    loss: Loss = task.losses[0] if settings.loss == "auto" else settings.loss
    return loss


def chosen_loss(settings: Finetune, task: Task) -> Loss:
    """The loss of `asked_loss`, which fits the task and the other settings.

    Raises:
        TrainingError: the task can't be trained by it, or it leaves no room for something else that is asked for.
    """
    loss = asked_loss(settings, task)
    if loss not in task.losses:
        raise TrainingError(f"{task.name} can't be trained by the {loss} loss", f"finetune.loss={task.losses[0]}")
    if settings.pooling == "mean" and "contrastive" not in task.losses:
        raise TrainingError(f"the head of {task.name} does not read a mean of tokens", "leave out finetune.pooling")
    if loss != "cross_entropy":
        if settings.pooling == "own":
            raise TrainingError(f"the {loss} loss compares means of tokens", "leave out finetune.pooling")
        strange = [name for name in (*_OF_LABELS, "teacher")
                   if getattr(settings, name) != type(settings).model_fields[name].default]  # fmt: skip
        if strange:
            raise TrainingError(
                f"the {loss} loss leaves no room for finetune.{', finetune.'.join(strange)}",
                "leave out one of both",
            )
        if settings.strategy in ("head", "gradual") and settings.epochs:
            leaves = "leaves it as it is" if settings.strategy == "head" else "begins with the head alone"
            raise TrainingError(
                f"the {loss} loss trains the encoder, and finetune.strategy={settings.strategy} {leaves}",
                "finetune.epochs=0 fits the head alone",
            )
    elif not settings.epochs:
        raise TrainingError(f"nothing is trained in 0 epochs by the {loss} loss", "only finetune.loss=contrastive can")
    return loss


def objective_from_settings(
    settings: Finetune, task: Task, rows: Sequence[Row], names: Sequence[str], loss: Loss = "cross_entropy"
) -> Objective:
    """The objective that a recipe's `finetune` section asks for.

    Args:
        settings: the section.
        task: what the model learns.
        rows: to train on, with `labels`.
        names: what the model's outputs are called.
        loss: what `chosen_loss` says.
    """
    if loss != "cross_entropy":
        if loss == "contrastive" and settings.epochs:
            check_pairs([row["labels"] for row in rows])
        if loss == "two_towers" and settings.batch_size < 4:
            raise TrainingError(
                f"finetune.batch_size={settings.batch_size} leaves a message no other entries to be held against",
                "half of a batch are messages: use 32 or more",
            )
        return Objective(task.output, temperature=settings.temperature, towers=loss == "two_towers")
    sections = task.sections(names)
    if settings.class_weights == "balanced" and any(section.over_tokens for section in sections):
        raise TrainingError(f"{task.name} has no classes to weigh", "leave out finetune.class_weights")
    return Objective(
        task.output,
        class_weights(rows, len(names), sections) if settings.class_weights == "balanced" else None,
        settings.focal_gamma,
        settings.label_smoothing,
        settings.r_drop,
        settings.adversarial,
        task.several,
        sections,
    )


def class_weights(rows: Sequence[Row], classes: int, sections: Sequence[Section] = ()) -> NDArray[np.float32]:
    """What a mistake on each class costs so that all count alike: rows over classes times the class's own rows.

    Args:
        rows: with `labels`: a number, one for each token (-100 where there is none), or 0 or 1 for each class.
        classes: of the model; one without a row weighs 1.
        sections: classes that are decided on apart, and weighed among themselves.

    Returns:
        float32 [classes], of mean 1 over the rows (of each section).
    """
    if isinstance(rows[0]["labels"], tuple):
        counts = np.array([row["labels"] for row in rows]).clip(0).sum(axis=0)
    else:
        labels = np.concatenate([np.atleast_1d(np.asarray(row["labels"])) for row in rows])
        counts = np.bincount(labels[labels != NO_LABEL], minlength=classes)
    weights = np.ones(classes, dtype=np.float32)
    for first, past in [(each.first, each.past) for each in sections] or [(0, classes)]:
        there = first + np.flatnonzero(counts[first:past])
        weights[there] = counts[first:past].sum() / (len(there) * counts[there])
    return weights


def _embeddings(model: Any) -> Any:
    """The table of the pieces' embeddings, whatever wraps the model."""
    while not hasattr(model, "get_input_embeddings"):
        model = model.module
    return model.get_input_embeddings()
