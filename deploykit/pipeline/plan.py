"""What a recipe comes to: the stages, each with the key of what it will make. Changes and loads nothing."""

from __future__ import annotations

__all__ = [
    "STAGES", "Plan", "Stage", "Step", "StepState", "is_kept", "make_plan", "refuse_what_does_not_fit",
    "refuse_where_no_texts", "step_states",
]  # fmt: skip

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal

from pydantic import JsonValue

from deploykit.artifacts.digest import digest_json
from deploykit.artifacts.manifest import Manifest
from deploykit.artifacts.store import Store
from deploykit.data.identity import data_identity
from deploykit.data.readers import local_file
from deploykit.errors import UsageError
from deploykit.export.compatibility import limits_from_target
from deploykit.machine import has_nvidia_gpu, instruction_set, usable_cores
from deploykit.pipeline.order import ALWAYS, STAGES, Stage
from deploykit.recipe import Recipe
from deploykit.recipe.load import DATA_FILES
from deploykit.runners.checkpoint import resolve_model
from deploykit.runners.untrusted import check_checkpoint
from deploykit.tasks import find_medium, find_task, is_of_texts

_VERSION: Final[Mapping[Stage, int]] = {
    "data": 2, "pretrain": 2, "finetune": 4, "index": 1, "teachers": 1, "prune": 4, "export": 2,
    "quantize": 4, "package": 4, "parity": 2, "latency": 1, "publish": 1,
}  # fmt: skip
"""Of each stage's code: raised when it makes something else of the same input, so that older artefacts are not used."""

_PACKAGES: Final[Mapping[Stage, tuple[str, ...]]] = {
    "data": (),
    "pretrain": ("torch", "transformers", "accelerate"),
    "finetune": ("torch", "transformers", "accelerate"),
    "index": ("torch", "transformers"),
    "teachers": ("torch", "transformers", "accelerate"),
    "prune": ("torch", "transformers", "accelerate", "onnx", "onnxscript", "onnxruntime"),
    "export": ("torch", "transformers", "onnx", "onnxscript", "onnxruntime"),
    "quantize": ("onnx", "onnxruntime"),
    "package": ("deploykit", "tokenizers"),
    "parity": ("torch", "transformers", "onnxruntime", "tokenizers"),
    "latency": (),
    "publish": (),
}
"""The packages whose versions matter to what a stage makes."""


@dataclass(frozen=True)
class Step:
    """One stage of a plan.

    Attributes:
        stage: which.
        key: the digest of everything that decides what it makes; None for a stage that is done every time.
        parents: the keys of the artefacts that it reads, by stage.
        settings: the settings that it reads.
        versions: of the packages that matter.
    """

    stage: Stage
    key: str | None
    parents: Mapping[str, str]
    settings: Mapping[str, JsonValue]
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Plan:
    """All steps of a recipe, in order."""

    recipe: Recipe
    steps: tuple[Step, ...]

    def step(self, stage: Stage) -> Step:
        """The step of a stage."""
        return next(step for step in self.steps if step.stage == stage)


@dataclass(frozen=True)
class StepState:
    """What a run would do about a stage now.

    Attributes:
        stage: which.
        state: whether its artefact is there, would be made, or is made every time.
        key: the step's.
        last_s: seconds that the stage took when it was last made in this workspace, for whatever recipe.
    """

    stage: Stage
    state: Literal["cached", "to do", "each time"]
    key: str | None
    last_s: float | None


def make_plan(recipe: Recipe, base: Path, *, download: bool = True) -> Plan:
    """The plan of a recipe.

    Args:
        recipe: the checked recipe.
        base: the folder that its relative paths start from.
        download: fetch a hub model that is not on this machine, whose commit the keys need.

    Raises:
        UsageError: the target is no known Triton release.
        DataError: a data file is not there.
        ModelError: the model is not there, or is unsafe, damaged or incomplete.
    """
    limits_from_target(recipe.export.target)
    dump = recipe.model_dump(mode="json")
    data = dump["data"]
    files = {part: _identity(data[part], base, recipe) for part in DATA_FILES if isinstance(data[part], str)}
    machine: dict[str, JsonValue] = {"instruction_set": instruction_set(), "cores": usable_cores()}
    start = resolve_model(recipe.model, base, download=download)
    medium = find_medium(recipe.task)
    if start.location is not None:
        beside = ("tokenizer.json",) if medium is None else medium.beside
        check_checkpoint(start.location, trust_pickle=recipe.trust_pickle, beside=beside)
    model = start.identity
    others = {key: getattr(recipe.finetune, key) for key in ("teacher", "translator", "translator_back")}
    taught = {
        key: resolve_model(name, base, download=download).identity for key, name in others.items() if name is not None
    }
    task: dict[str, JsonValue] = {"task": recipe.task}
    entries: dict[str, JsonValue] = {
        "entries": files.get("entries"), "columns": [data["text"], data["label"], data["answer"]]
    }  # fmt: skip
    trained = (
        task
        | {"model": model, "seed": recipe.seed, "trust_pickle": recipe.trust_pickle}
        | dump["finetune"]
        | taught
        | (entries if _learns_entries(recipe) else {})
    )
    settings: dict[Stage, dict[str, JsonValue]] = {
        "data": task
        | {
            "columns": [data["text"], data["label"]],
            "strict": data["strict"],
            "files": {part: digest for part, digest in files.items() if part != "entries"},
            "seed": recipe.seed,
        }
        | {part: data[part] for part in ("test", "validation") if part not in files}
        | {key: data[key] for key in ("per_label",) if data[key] is not None},
        "pretrain": {"model": model, "seed": recipe.seed, "trust_pickle": recipe.trust_pickle}
        | {"max_length": recipe.finetune.max_length}
        | dump["pretrain"],
        "finetune": trained,
        "index": task | entries,
        "teachers": trained | entries | {"teachers": recipe.prune.teachers},
        "prune": task
        | {limit: dump["goal"][limit] for limit in ("speedup", "p50_ms", "p99_ms", "size_mb")}
        | {"seed": recipe.seed, "finetune": dump["finetune"], "quantize": dump["quantize"]}
        | {"lengths": dump["goal"]["target"]["lengths"]}
        | {"target": recipe.export.target, "threads": recipe.package.threads, "machine": machine}
        | dump["prune"],
        "export": task | dump["export"],
        "quantize": task | dump["quantize"] | {"max_drop": recipe.goal.max_drop, "machine": machine},
        "package": task | dump["package"] | {"name": recipe.name, "gpu": has_nvidia_gpu()},
        "parity": task
        | {"max_drop": recipe.goal.max_drop, "confidence": recipe.goal.confidence}
        | {"machine": machine, "engine": recipe.serve.engine},
        "latency": dump["latency"],
        "publish": {},
    }
    start_of: tuple[Stage, ...] = (*(("pretrain",) if recipe.pretrains else ()), "data")
    parents: dict[Stage, tuple[Stage, ...]] = {
        "data": (),
        "pretrain": ("data",),
        "finetune": start_of,
        "index": ("finetune", "data"),
        "teachers": start_of,
        "prune": (recipe.whole_stage, *(("teachers",) if recipe.has_teachers else ()), "data"),
        "export": (recipe.model_stage,),
        "quantize": ("export", "data"),
        "package": ("quantize", "data"),
        "parity": ("package", "export", *dict.fromkeys((recipe.model_stage, recipe.whole_stage)), "data"),
        "latency": (),
        "publish": (),
    }
    wanted = {
        "pretrain": recipe.pretrains, "index": recipe.data.entries is not None, "teachers": recipe.has_teachers,
        "prune": recipe.prunes,
    }  # fmt: skip
    keys: dict[str, JsonValue] = {}
    steps = []
    for stage in STAGES:
        if stage not in ALWAYS and not wanted[stage]:
            continue
        versions: dict[str, JsonValue] = {name: _installed(name) for name in _PACKAGES[stage]}
        above: dict[str, JsonValue] = {name: keys[name] for name in parents[stage]}
        key = None
        if stage not in ("latency", "publish"):
            key = keys[stage] = digest_json([stage, _VERSION[stage], settings[stage], above, versions])
        steps.append(Step(stage, key, _texts(above), settings[stage], _texts(versions)))
    return Plan(recipe, tuple(steps))


def refuse_what_does_not_fit(recipe: Recipe) -> None:
    """Refuse the parts of a recipe that its task can't take: label columns, entries, what works on words.

    Raises:
        UsageError: names them.
    """
    task = find_task(recipe.task)
    task.label_form(recipe.data.label)
    if recipe.data.entries is not None and not task.entries:
        raise UsageError(f"{recipe.task} has no entries, and data.entries names some", "leave it out, or use retrieval")
    lengths = ["goal.target.lengths"] if recipe.goal.target.lengths != "data" else []
    pruned = ["a limit on speed or size, or prune.keep"] if recipe.prunes else []
    refuse_where_no_texts(recipe.task, [*recipe.finetune.for_texts(), *lengths, *pruned])


def refuse_where_no_texts(task: str, asked: Sequence[str]) -> None:
    """Refuse what works on words, where the messages of a task are none.

    Args:
        task: its name.
        asked: what was asked for that works on words.

    Raises:
        UsageError: names them.
    """
    if asked and not is_of_texts(task):
        raise UsageError(f"{task} can't take {', '.join(asked)}: made for models of texts", "leave it out")


def _identity(reference: str, base: Path, recipe: Recipe) -> str:
    """What changes when the rows do, or the files that they name."""
    found = data_identity(reference, base)
    if is_of_texts(recipe.task) or local_file(reference) is None:
        return found
    from deploykit.data.dataset import located  # not before: they bring numpy
    from deploykit.data.readers import read_rows
    from deploykit.runners.medium import columns_of

    columns = columns_of(recipe.task, recipe.data.text, None)
    return digest_json([found, list(read_rows(located(reference, base), columns).texts)])


def step_states(plan: Plan, workspace: Path) -> tuple[StepState, ...]:
    """What a run would do about each step. Manifests are read, the artefacts' files are not verified."""
    kept = [artifact.manifest for artifact in Store(workspace / "store").artifacts()]
    there = {found.key for found in kept if is_kept(found)}
    took = {found.stage: found.seconds for found in kept}  # the oldest first, so that the newest stays
    return tuple(
        StepState(
            step.stage,
            "each time" if step.key is None else "cached" if step.key in there else "to do",
            step.key,
            took.get(step.stage),
        )
        for step in plan.steps
    )


def is_kept(found: Manifest) -> bool:
    """Whether an artefact with this manifest is used again: a verdict that is no pass is not."""
    return found.stage != "parity" or found.info.get("verdict") == "pass"


def _learns_entries(recipe: Recipe) -> bool:
    """Whether the texts of the entries are trained on."""
    if recipe.data.entries is None:
        return False
    from deploykit.train.objective import asked_loss

    return asked_loss(recipe.finetune, find_task(recipe.task)) == "two_towers"


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        if package == "onnxruntime":  # the GPU build is another distribution of the same library
            return _installed("onnxruntime-gpu")
        return "absent"


def _texts(values: Mapping[str, JsonValue]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}
