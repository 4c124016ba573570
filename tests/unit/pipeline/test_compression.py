"""Pruning to a goal: the table from the clock, the choice under it, the recovery, and going on after an interruption.

The clock here is a formula of the shape, so that nothing depends on the machine; what it times are real cut models.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit.compress.search import name_of
from deploykit.errors import ModelError
from deploykit.events import Progress, Warn, ignore
from deploykit.latency.measure import Samples
from deploykit.pipeline.clock import Bench
from deploykit.pipeline.compression import join_pruning, prune_to_goal
from deploykit.pipeline.recovery import Recovery
from deploykit.recipe import Finetune, Goal, Prune, Quantize
from deploykit.report.result import model_size_mb
from deploykit.runners import Target
from deploykit.tasks import find_task
from deploykit.tasks.pooling import is_sentence_model
from deploykit.tasks.pruned import encoder_layers
from deploykit.train.finetune import finetune

TASK = find_task("text-classification")


def clock(shapes: list[tuple[int, int]]) -> float:
    """0.2 ms, and for each layer 0.05 for a head and 0.002 for an FFN column."""
    return 0.2 + sum(0.05 * heads + 0.002 * columns for heads, columns in shapes)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Times the shape of a checkpoint; PyTorch takes 10 ms. Returns the names of what was timed."""
    names: list[str] = []

    def build(self: Any, checkpoint: Path, name: str) -> Target:
        return Target("onnxruntime", str(checkpoint), task=self.task.name)

    def time(self: Any, targets: Mapping[str, Target]) -> dict[str, Samples]:
        found = {}
        for name, target in targets.items():
            names.append(name)
            shapes = [layer.shape for layer in encoder_layers(find_task(target.task).load_model(Path(target.location)))]
            ms = 10.0 if target.kind == "torch" else clock(shapes)
            found[name] = Samples(name, (np.array([ms]),))
        return found

    monkeypatch.setattr(Bench, "build", build)
    monkeypatch.setattr(Bench, "time", time)
    return names


@pytest.fixture
def prune(trained: Path, toy_data: Any, tmp_path: Path, timed: list[str]) -> Callable[..., Any]:
    def call(
        goal: Goal,
        out: str = "out",
        listener: Any = lambda event: None,
        teacher: Path = trained,
        data: Any = toy_data,
        task: Any = TASK,
        study: Any = None,
        others: Any = (),
        work: str = "work",
        **settings: Any,
    ) -> Any:
        info: dict[str, Any] = {}
        (tmp_path / out).mkdir()
        outcome = prune_to_goal(
            teacher,
            tmp_path / out,
            task=task,
            data=data,
            settings=Prune(**{"epochs": 3, "learning_rate": 5e-3, "calibration_rows": 64, "tries": 8, **settings}),
            finetune=Finetune(freeze_embeddings=False),
            goal=goal,
            quantize=Quantize(),
            target="triton-25.08",
            threads=1,
            seed=0,
            workspace=tmp_path / work,
            info=info,
            others=others,
            study=study,
            listener=listener,
        )
        return outcome, info, tmp_path / out

    return call


def test_a_model_is_pruned_to_the_goal_and_recovers(prune: Any, trained: Path, toy_data: Any) -> None:
    whole = clock([(4, 64)] * 2)
    goal = Goal(p50_ms=0.7 * whole)
    outcome, info, out = prune(goal)
    shapes = [layer.shape for layer in encoder_layers(TASK.load_model(out))]
    assert clock(shapes) <= goal.p50_ms
    chosen = next(point for point in info["points"] if point["choice"] == info["choice"])
    assert chosen["fits"]
    assert chosen["predicted_ms"] == pytest.approx(clock(shapes), rel=0.1)
    assert "% on validation" in outcome
    plan = json.loads((out / "pruning.json").read_text())
    assert [(len(layer["heads"]), len(layer["columns"])) for layer in plan["layers"]] == shapes
    assert info["recovery"]["metrics"]["accuracy"] > 0.9
    assert json.loads(json.dumps(info)) == info, "a manifest takes it"
    assert (out / "tokenizer.json").is_file()


def test_a_model_that_reads_means_is_pruned_as_well(
    prune: Any, tiny_checkpoint: Callable[..., Path], toy_data: Any, tmp_path: Path
) -> None:
    settings = Finetune(pooling="mean", epochs=6, learning_rate=5e-3, freeze_embeddings=False)
    encoder = tiny_checkpoint("bert", initializer_range=0.05)
    whole = finetune(encoder, toy_data, settings, TASK, tmp_path / "whole", workspace=tmp_path / "training")
    goal = Goal(p50_ms=0.7 * clock([(4, 64)] * 2))
    _, info, out = prune(goal, teacher=tmp_path / "whole")
    assert is_sentence_model(out)
    assert clock([layer.shape for layer in encoder_layers(TASK.load_model(out))]) <= goal.p50_ms
    assert info["recovery"]["metrics"]["accuracy"] > whole.metrics["accuracy"] - 0.2 > 0.4


def test_a_tagger_is_pruned_likewise(prune: Any, tagger: Path, entity_data: Any) -> None:
    task = find_task("token-classification")
    goal = Goal(p50_ms=0.7 * clock([(4, 64)] * 2))
    outcome, info, out = prune(goal, teacher=tagger, data=entity_data, task=task)
    assert clock([layer.shape for layer in encoder_layers(task.load_model(out))]) <= goal.p50_ms
    assert info["recovery"]["metrics"]["entity F1"] > 0.95
    assert all(point["metric"] is None or point["metric"] > 0.5 for point in info["points"])
    assert "entity F1 9" in outcome or "entity F1 100" in outcome


def test_a_goal_that_is_met_already_prunes_nothing(prune: Any, trained: Path) -> None:
    outcome, info, out = prune(Goal(speedup=2.0))
    assert "no layer pruned" in outcome
    assert (out / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    assert info["points"] == []


def test_a_goal_beyond_the_smallest_model_is_said_and_that_one_made(prune: Any) -> None:
    events: list[Any] = []
    outcome, _, out = prune(Goal(p50_ms=0.21), listener=events.append, epochs=0.1)
    assert any(isinstance(event, Warn) and "it is made all the same" in event.message for event in events)
    layers = encoder_layers(TASK.load_model(out))
    assert [layer.shape for layer in layers] == [(1, 32)]
    assert "1 heads, 32 columns" in outcome


def test_a_goal_of_size_is_met_by_what_is_written(prune: Any, trained: Path) -> None:
    limit = 0.6 * model_size_mb(trained)
    _, info, out = prune(Goal(size_mb=limit), vocabulary=0)
    assert model_size_mb(out) <= limit
    assert info["vocabulary"]["kept"] < info["vocabulary"]["pieces"]
    assert next(point for point in info["points"] if point["choice"] == info["choice"])["size_mb"] <= limit
    assert info["recovery"]["metrics"]["accuracy"] > 0.8


def test_a_size_that_no_layer_can_make_up_for_is_said(prune: Any) -> None:
    events: list[Any] = []
    prune(Goal(size_mb=0.001), listener=events.append, epochs=0)
    assert any(isinstance(event, Warn) and "lower prune.vocabulary" in event.message for event in events)


def test_without_retraining_the_model_is_fitted_only(prune: Any, trained: Path, toy_data: Any) -> None:
    outcome, info, out = prune(Goal(p50_ms=0.7 * clock([(4, 64)] * 2)), epochs=0)
    assert "not retrained" in outcome
    assert "recovery" not in info
    assert "vocabulary" not in info, "words that are cut finer would have to be learned"
    assert all(point["loss"] is None for point in info["points"])
    assert clock([layer.shape for layer in encoder_layers(TASK.load_model(out))]) <= 0.7 * clock([(4, 64)] * 2)
    assert not (out / "trial.json").exists()


def test_what_the_recipe_names_is_kept_without_a_search(
    prune: Any, trained: Path, timed: list[str], tmp_path: Path
) -> None:
    outcome, info, out = prune(Goal(), keep=("1/3/40",), epochs=1.0)
    assert [layer.shape for layer in encoder_layers(TASK.load_model(out))] == [(3, 40)]
    assert json.loads((out / "pruning.json").read_text())["layers"][0]["layer"] == 1
    assert timed == []
    assert "points" not in info
    assert outcome.startswith("layer 1: 3 heads, 40 columns; accuracy")


@pytest.mark.parametrize(
    ("keep", "said"),
    [("2/1/8", "the model's last is 1"), ("0/5/8", "0/4/64"), ("1/4/65", "more than layer 1 has")],
)
def test_what_the_model_has_not_can_not_be_kept(prune: Any, keep: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        prune(Goal(), keep=(keep,))


def test_the_best_of_several_seeds_stays(prune: Any, tmp_path: Path) -> None:
    _, info, out = prune(Goal(), keep=("0/4/16",), seeds=3, copies=1, epochs=1.0)
    seeds = info["recovery"]["seeds"]
    losses = {seed: found["metrics"]["loss"] for seed, found in seeds.items()}
    assert sorted(losses) == ["0", "1", "2"]
    assert len(set(losses.values())) == 3
    assert str(info["recovery"]["seed"]) == min(losses, key=losses.__getitem__)
    assert all(found["curve"] for found in seeds.values())
    assert json.loads(json.dumps(info)) == info
    weights = {seed: (tmp_path / "work" / f"recovered-{seed}" / "model.safetensors").read_bytes() for seed in seeds}
    assert len(set(weights.values())) == 3
    assert (out / "model.safetensors").read_bytes() == weights[str(info["recovery"]["seed"])]
    assert len(list((tmp_path / "work").glob("teacher-*/teacher-logits.npy"))) == 1, (
        "all seeds learn from the same answers"
    )


def test_other_fine_tunings_teach_too_with_the_same_pieces(
    prune: Any, trained: Path, tiny_checkpoint: Callable[..., Path], toy_data: Any, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    settings = Finetune(epochs=1, learning_rate=5e-3, freeze_embeddings=False)
    finetune(tiny_checkpoint("bert"), toy_data, settings, TASK, other, workspace=tmp_path / "other-work", seed=1)
    alone, together = (
        prune(
            Goal(), out=f"out-{len(others)}", work=f"work-{len(others)}", keep=("0/4/16",), others=others, vocabulary=0
        )
        for others in ((), (other,))
    )
    assert together[1]["vocabulary"] == alone[1]["vocabulary"]
    assert together[1]["recovery"]["metrics"] != alone[1]["recovery"]["metrics"]
    trimmed = tmp_path / "work-1" / "trimmed"
    assert (trimmed / "1" / "tokenizer.json").read_bytes() == (trimmed / "0" / "tokenizer.json").read_bytes()
    answered = [np.load(path) for path in (tmp_path / "work-1").glob("teacher-*/**/teacher-logits.npy")]
    assert len(answered) == 2
    assert np.abs(answered[0] - answered[1]).max() > 0.1, "each was asked by itself"


def test_the_whole_vocabulary_stays_where_it_is_asked_for(prune: Any, trained: Path) -> None:
    _, info, out = prune(Goal(p50_ms=0.7 * clock([(4, 64)] * 2)), vocabulary="all", epochs=0)
    assert "vocabulary" not in info
    assert (out / "tokenizer.json").read_bytes() == (trained / "tokenizer.json").read_bytes()


def test_an_interrupted_call_goes_on_and_times_nothing_again(prune: Any, timed: list[str]) -> None:
    goal = Goal(p50_ms=0.7 * clock([(4, 64)] * 2))

    def interrupt(event: Any) -> None:
        if isinstance(event, Progress) and event.unit == "step" and (event.done, event.total) == (5, 64):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(goal, listener=interrupt, epochs=4)
    before = len(timed)
    assert before
    _, info, _ = prune(goal, out="second", epochs=4)
    assert len(timed) == before
    assert info["recovery"]["metrics"]["accuracy"] > 0.9


def test_finalists_are_tried_through_a_study_as_they_are_without(
    prune: Any, trained: Path, toy_data: Any, tmp_path: Path, timed: list[str]
) -> None:
    """What another process would train: the same finalists from their names, and nothing timed."""
    done: dict[str, Any] = {}

    class Recorded:
        def share(self, names: Any, do: Any) -> Any:
            done.update({name: do(name) for name in names})
            return done

        def work(self, do: Any) -> int:
            assert {name: do(name) for name in done} == done
            return len(done)

    goal = Goal(p50_ms=0.7 * clock([(4, 64)] * 2))
    _, info, _ = prune(goal, study=Recorded(), epochs=1)
    assert len(done) > 1
    losses = {name_of(point["choice"]): point["loss"] for point in info["points"] if point["loss"] is not None}
    assert losses == {name: found["loss"] for name, found in done.items()}
    before = len(timed)
    count = join_pruning(
        trained,
        task=TASK,
        data=toy_data,
        settings=Prune(epochs=1, learning_rate=5e-3, calibration_rows=64, tries=8),
        study=Recorded(),  # type: ignore[arg-type]
        finetune=Finetune(freeze_embeddings=False),
        goal=goal,
        quantize=Quantize(),
        target="triton-25.08",
        threads=1,
        seed=0,
        workspace=tmp_path / "elsewhere",
        listener=lambda event: None,
    )
    assert count == len(done)
    assert len(timed) == before


def test_a_cut_model_learns_from_the_whole_one_and_no_other_teacher(
    trained: Path, toy_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def finetune(model: Path, data: Any, settings: Finetune, *_: Any, **rest: Any) -> None:
        given.update(rest, settings=settings)

    monkeypatch.setattr("deploykit.train.finetune.finetune", finetune)
    asked = Finetune(teacher="a larger one", quantized_base="nf4", strategy="lora")
    whole = tmp_path / "whole"
    Recovery(whole, TASK, toy_data, Prune(), asked, 0, ignore, True).run(trained, tmp_path / "out", tmp_path / "work")
    assert given["lesson"].teacher == whole
    assert (given["settings"].teacher, given["settings"].quantized_base) == (None, "none")


@pytest.mark.parametrize(
    ("layers", "settings", "epochs", "hidden"),
    [
        (1, Prune(), 40.0, 0.0),
        (2, Prune(), 16.0, 5.0),
        (1, Prune(epochs=3, hidden_weight=2), 3.0, 2.0),
        (2, Prune(epochs=3, hidden_weight=0), 3.0, 0.0),
    ],
)
def test_a_single_layer_learns_longer_and_from_answers_alone_unless_told(
    layers: int, settings: Prune, epochs: float, hidden: float, trained: Path, toy_data: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    given: dict[str, Any] = {}

    def finetune(model: Path, data: Any, settings: Finetune, *_: Any, **rest: Any) -> None:
        given.update(rest, settings=settings)

    monkeypatch.setattr("deploykit.train.finetune.finetune", finetune)
    config = json.loads((trained / "config.json").read_text(encoding="utf-8")) | {"num_hidden_layers": layers}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    Recovery(trained, TASK, toy_data, settings, Finetune(), 0, ignore, True).run(tmp_path, tmp_path, tmp_path)
    assert (given["settings"].epochs, given["lesson"].hidden_weight) == (epochs, hidden)
