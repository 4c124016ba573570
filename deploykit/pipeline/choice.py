"""Which quantized form of a model is kept: made, judged on the validation split, timed, and mended where needed."""

from __future__ import annotations

__all__ = ["Candidate", "choose", "choose_variant", "sampled"]

import dataclasses
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.compress.quantize import (
    INT8_SCHEMES,
    INT8_VARIANTS,
    QuantizeReport,
    Variant,
    product_places,
    quantize,
    scheme_variants,
    sensitivity,
)
from deploykit.compress.representative import calibration_doubts
from deploykit.data.dataset import LabelledData
from deploykit.events import Listener, Note, Progress, Warn, ignore
from deploykit.export.smallest import smallest_set
from deploykit.latency import measure as timing
from deploykit.parity.intervals import clopper_pearson_upper
from deploykit.parity.noninferiority import score_drop_bounds
from deploykit.recipe import Quantize
from deploykit.runners import Target, infer_all, open_runner
from deploykit.runners.medium import medium_of
from deploykit.runners.tokenize import Encoder
from deploykit.tasks import Answer, Task

_BATCH = 16
_RANKED_ON = 64
"""Messages that products are ranked on by what quantizing does to them."""
_TIMED = 120
"""Messages that forms are timed on."""


@dataclass(frozen=True)
class Candidate:
    """One quantized form, compared with float32 on the validation split.

    Attributes:
        drop: of the metric; where several judge the task, of that which fell furthest.
        drop_lower: what the drop is shown to exceed (one-sided 95 %).
        flips: changed answers, right or not.
        batched_flips: answers that change when the messages come in padded batches and not singly.
        n: messages compared.
        p50_ms: in process, one message at a time; 0 where it was not timed.
        drop_likely: what the drop exceeds more likely than not (one-sided 75 %).
    """

    drop: float
    drop_lower: float
    flips: int
    batched_flips: int
    n: int
    p50_ms: float = 0.0
    drop_likely: float = 0.0

    def keeps_answers(self, max_drop: float) -> bool:
        """Whether it is not shown to lose too much, and answers in batches as it does singly."""
        steady = not self.batched_flips or clopper_pearson_upper(self.batched_flips, self.n, 0.95) <= max_drop
        return steady and self.drop_lower <= max_drop

    def loses_little(self, max_drop: float) -> bool:
        """Whether it does not look as if it lost too much either: what does would hardly be certified."""
        return self.keeps_answers(max_drop) and self.drop_likely <= max_drop

    def is_mended(self, max_drop: float) -> bool:
        """Whether a repair suffices: half of the margin is left to the bound that certifies it."""
        return self.keeps_answers(max_drop) and self.drop <= max_drop / 2


def choose(candidates: Mapping[str, Candidate], max_drop: float) -> str:
    """The form to keep: the fastest that loses little; where none does, that is not shown to lose too much.

    Among those within a quarter of the fastest, which a noisy machine can't tell apart, static scales come first (their
    answers do not depend on the batch), then the fewest changed answers.
    """
    kept = {name: found for name, found in candidates.items() if found.keeps_answers(max_drop)}
    eligible = {name: found for name, found in kept.items() if found.loses_little(max_drop)} or kept
    if not eligible:
        return min(candidates, key=lambda name: (candidates[name].batched_flips > 0, candidates[name].drop))
    fastest = min(found.p50_ms for found in eligible.values())
    near = [name for name, found in eligible.items() if found.p50_ms <= 1.25 * fastest]
    return min(near, key=lambda name: (not name.startswith("int8_static"), eligible[name].flips))


def choose_variant(
    source: Path,
    out: Path,
    settings: Quantize,
    task: Task,
    data: LabelledData,
    *,
    max_drop: float,
    seed: int,
    info: dict[str, Any],
    listener: Listener = ignore,
) -> str:
    """Quantize in every way that the settings leave open and keep the fastest that answers as well on validation.

    A form whose drop on the validation split is shown to exceed `max_drop`, or whose answers change in batches, is
    out (see `choose`). Where all lose more than that, and `settings.mend` says so, the best is mended with the cheapest
    remedy that does: smoothed static scales, other fusions, the fewest products in float, the other int8 scheme. Where
    nothing does, the most accurate is kept, and parity will say what it lost.

    Args:
        source: the exported ONNX folder.
        out: the folder to write.
        settings: the recipe's `quantize` section.
        task: what the model does.
        data: calibration messages come from its training split.
        max_drop: the recipe's goal.
        seed: picks the calibration messages.
        info: is filled with what was measured.
        listener: hears of progress.

    Returns:
        the choice in words.
    """
    if settings.scheme == "none":
        shutil.copytree(source, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("plain.onnx", "manifest.json"))
        info.update({"variant": "fp32", "scheme": "none"})
        return "none: float32 as exported"
    variants = scheme_variants(settings.scheme, settings.fusions, settings.smooth)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        forms = _Forms(source, Path(scratch), settings, task, data, seed, listener)
        total = len(variants) + 1
        for number, variant in enumerate(variants):
            listener(Progress("quantize", number, total, "step", {}))
            found = forms.add(variant)
            listener(Progress("quantize", number + 1, total, "step", {"drop": found.drop}))
        smoothed: dict[str, str] = {}
        if settings.mend and settings.smooth == "auto":
            smoothed = _smooth_what_loses(forms, variants, max_drop)
        if len(forms.found) > 1:
            forms.time(list(forms.found))
        chosen = choose(forms.found, max_drop)
        mended: dict[str, Any] = {}
        if (
            settings.mend
            and forms.variants[chosen].scheme in INT8_SCHEMES
            and not forms.found[chosen].loses_little(max_drop)
        ):
            chosen, mended = _mend(forms, chosen, max_drop, settings.mend_trials)
        elif chosen in smoothed:
            mended = _repair(forms, smoothed[chosen], chosen, list(smoothed))
        if forms.found[chosen].drop_lower > max_drop:
            listener(Warn(f"every way to quantize loses more than {max_drop:.2%} on validation; kept {chosen}"))
        listener(Progress("quantize", total, total, "step"))
        for path in forms.folder(chosen).iterdir():
            shutil.move(path, out / path.name)
    info.update(
        {
            "variant": chosen,
            "scheme": settings.scheme,
            "mended": mended or None,
            "candidates": {
                name: {**dataclasses.asdict(found), **dataclasses.asdict(forms.reports[name])}
                for name, found in forms.found.items()
            },
        }
    )
    report = forms.reports[chosen]
    counted = ", ".join(f"{count} {kind}" for kind, count in report.products.items()) or "fp16"
    return f"{chosen}: {counted}, {report.float_products} products in float, {report.size_bytes / 1e6:.1f} MB"


class _Forms:
    """The quantized forms of one model, made and judged so far."""

    def __init__(
        self,
        source: Path,
        scratch: Path,
        settings: Quantize,
        task: Task,
        data: LabelledData,
        seed: int,
        listener: Listener,
    ) -> None:
        self.source, self.listener = source, listener
        self.calibration = sampled(data.train.texts, settings.calibration_rows, seed)
        classes = [label for label in data.train.labels or () if isinstance(label, str)]
        self.medium = medium_of(task)
        doubts = calibration_doubts(self.calibration, classes, Encoder(source)) if self.medium.textual else []
        for doubt in doubts:
            listener(Warn(doubt))
        self.reports: dict[str, QuantizeReport] = {}
        self.found: dict[str, Candidate] = {}
        self.variants: dict[str, Variant] = {}
        self._scratch, self._task = scratch, task
        self._texts = data.validation.texts
        self._timed_on = sampled(data.validation.texts, _TIMED, seed)
        self._names = data.label_names
        self._right = task.right_answers(data.validation.labels or (), data.label_names)
        self._reference = self._answers(source)

    def folder(self, name: str) -> Path:
        return self._scratch / name

    def add(self, variant: Variant, in_float: Sequence[str] = (), trial: int = 0) -> Candidate:
        """Make a form and judge it on the validation split."""
        name = f"{variant.name}-{len(in_float)}-in-float" if in_float else variant.name
        name = name if name not in self.found else f"{name}-{trial}"
        folder = self.folder(name)
        self.reports[name] = quantize(
            self.source,
            folder,
            variant,
            calibration=self.calibration,
            in_float=in_float,
            medium=self.medium,
            listener=self.listener,
        )
        self.variants[name] = variant
        answers, batched = self._answers(folder), self._answers(folder, _BATCH)
        self.found[name] = _compared(self._reference, answers, batched, self._right, self._task)
        return self.found[name]

    def _answers(self, folder: Path, batch: int = 1) -> list[Answer]:
        return self._task.answers(_outputs(folder, self._texts, batch, task=self._task), self._names)

    def time(self, names: Sequence[str], **others: Path) -> dict[str, float]:
        """The p50 of forms, and of other folders in the same blocks, in milliseconds."""
        folders = {name: self.folder(name) for name in names} | others
        targets = {name: Target("onnxruntime", str(folder), task=self._task.name) for name, folder in folders.items()}
        timed = timing.measure(targets, self._timed_on, blocks=4)
        for name in names:
            self.found[name] = dataclasses.replace(self.found[name], p50_ms=timed[name].p50_ms)
        return {name: samples.p50_ms for name, samples in timed.items()}


def _smooth_what_loses(forms: _Forms, variants: Sequence[Variant], max_drop: float) -> dict[str, str]:
    """Make what loses too much with static scales once more, smoothed; the new names with the old ones."""
    made = {}
    for variant in variants:
        before = forms.found[variant.name]
        if variant.scheme == "int8_static" and not before.loses_little(max_drop):
            smooth = dataclasses.replace(variant, smooth=True)
            made[smooth.name] = variant.name
            drops = f"drop {before.drop:.2%} on validation, smoothed {forms.add(smooth).drop:.2%}"
            forms.listener(Note(f"{variant.name}: {drops}"))
    return made


def _mend(forms: _Forms, worst: str, max_drop: float, budget: int) -> tuple[str, dict[str, Any]]:
    """Try remedies in the order of what they cost until one suffices; what was tried, and what it gave up in speed."""
    begun = len(forms.found)
    variant = forms.variants[worst]

    def left() -> int:
        return budget - (len(forms.found) - begun)

    def tried(variant: Variant, in_float: Sequence[str] = ()) -> bool:
        found = forms.add(variant, in_float, len(forms.found))
        name = list(forms.found)[-1]
        forms.listener(Note(f"mending, {name}: drop {found.drop:.2%} on validation"))
        return found.is_mended(max_drop)

    others = [other for other in INT8_VARIANTS if other.name not in forms.found]
    chosen = None
    for other in [other for other in others if other.scheme == variant.scheme]:
        if chosen is None and left() > 0 and tried(other):
            chosen = other.name
    in_float: tuple[str, ...] = ()
    ranked: list[tuple[str, float]] = []
    if chosen is None and left() > 0:
        variant = forms.variants[choose(forms.found, max_drop)]
        ranked = sensitivity(forms.source, variant, forms.calibration[:_RANKED_ON], forms.medium)
        named = {}

        def suffices(products: tuple[str, ...]) -> bool:
            good = tried(variant, products)
            named[products] = list(forms.found)[-1]
            return good

        fewest = smallest_set([node for node, _ in ranked], suffices, budget=left(), most=len(ranked) // 2)
        in_float = fewest.items
        chosen = named.get(in_float)
    for other in [other for other in others if other.scheme != variant.scheme]:
        if chosen is None and left() > 0 and tried(other):
            chosen = other.name
    suffices_now = chosen is not None
    chosen = chosen or choose(forms.found, max_drop)
    trials = list(forms.found)[begun:]
    places = product_places(forms.source, forms.variants[chosen])
    mended = _repair(forms, worst, chosen, trials) | {
        "suffices": suffices_now,
        "in_float": [places.get(node, node) for node in in_float] if suffices_now else [],
        "sensitivity_db": {places.get(node, node): round(ratio, 1) for node, ratio in ranked},
    }
    return chosen, mended


def _repair(forms: _Forms, worst: str, chosen: str, trials: Sequence[str]) -> dict[str, Any]:
    """A repair as a manifest tells it, with what it gives up in speed."""
    told: dict[str, Any] = {
        "from": worst,
        "to": chosen,
        "suffices": True,
        "trials": len(trials),
        "tried": {name: forms.found[name].drop for name in trials},
        "in_float": [],
        "sensitivity_db": {},
    }
    if chosen != worst:
        p50_ms = forms.time([worst, chosen], float32=forms.source)
        before, after, float_ms = p50_ms[worst], p50_ms[chosen], p50_ms["float32"]
        told |= {"p50_ms": {"float32": float_ms, "before": before, "after": after}, "speedup_kept": before / after}
        forms.listener(Note(f"mended as {chosen}: p50 {after:.2f} ms, {before:.2f} before, {float_ms:.2f} in float32"))
    return told


def _compared(
    reference: Sequence[Answer],
    answers: Sequence[Answer],
    batched: Sequence[Answer],
    right: Sequence[Answer],
    task: Task,
) -> Candidate:
    before, after = (task.scores(each, right).by_metric(task.metric) for each in (reference, answers))
    pairs = [(before[name], after[name]) for name in before]
    return Candidate(
        drop=max(ours.value - theirs.value for ours, theirs in pairs),
        drop_lower=max(score_drop_bounds(*pair)[0] for pair in pairs),
        flips=sum(ours != theirs for ours, theirs in zip(reference, answers, strict=True)),
        batched_flips=sum(ours != theirs for ours, theirs in zip(batched, answers, strict=True)),
        n=len(right),
        drop_likely=max(score_drop_bounds(*pair, 0.75)[0] for pair in pairs),
    )


def _outputs(folder: Path, texts: Sequence[str], batch: int, *, task: Task) -> dict[str, NDArray[Any]]:
    batches = [list(range(start, min(start + batch, len(texts)))) for start in range(0, len(texts), batch)]
    with open_runner(Target("onnxruntime", str(folder), task=task.name)) as runner:
        return infer_all(runner, texts, batches)


def sampled(texts: Sequence[str], count: int, seed: int) -> list[str]:
    """That many of the texts at random, all where there are fewer."""
    if len(texts) <= count:
        return list(texts)
    return [texts[index] for index in np.random.default_rng(seed).choice(len(texts), count, replace=False)]
