"""Fine-tuning on toy data: what is learned, what every setting does, and failures that name the step."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from deploykit.errors import MissingDependencyError, ModelError, TrainingError
from deploykit.events import Note, Progress, Warn
from deploykit.recipe import Finetune
from deploykit.runners import Target, infer_all, open_runner
from deploykit.tasks import find_task
from deploykit.train.finetune import FinetuneResult, finetune
from deploykit.train.tracking import Tracking, mlflow_uri, tracked

TASK = find_task("text-classification")


@pytest.fixture
def train(
    tiny_checkpoint: Callable[..., Path], small_data: Any, tmp_path: Path
) -> Callable[..., tuple[FinetuneResult, Path, list[Any]]]:
    """Trains briefly; settings are the recipe's, and `model`, `data`, `workspace` and `out` are the call's."""

    def call(
        model: Path | None = None,
        data: Any = None,
        workspace: str = "work",
        out: str = "out",
        update: dict[str, Any] | None = None,
        **settings: Any,
    ) -> tuple[FinetuneResult, Path, list[Any]]:
        events: list[Any] = []
        chosen = Finetune(**{"epochs": 1, "batch_size": 16, "learning_rate": 1e-3, **settings})
        result = finetune(
            model or tiny_checkpoint("bert", num_hidden_layers=1, initializer_range=0.05),
            data or small_data,
            chosen.model_copy(update=update),
            TASK,
            tmp_path / out,
            workspace=tmp_path / workspace,
            listener=events.append,
        )
        return result, tmp_path / out, events

    return call


@pytest.fixture
def small_data(toy_data: Any) -> Any:
    """96 messages to train on and 32 to watch."""
    train, validation = toy_data.train.take(range(96)), toy_data.validation.take(range(32))
    return replace(toy_data, train=train, validation=validation, test=validation)


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def changed(before: Path, after: Path) -> set[str]:
    old, new = weights(before), weights(after)
    assert set(old) == set(new)
    return {name for name in old if not np.array_equal(old[name], new[name])}


def test_a_toy_task_is_learned_and_the_checkpoint_answers_it(trained: Path, toy_data: Any) -> None:
    texts = list(toy_data.test.texts)
    with open_runner(Target("torch", str(trained), threads=1)) as runner:
        outputs = infer_all(runner, texts, [list(range(len(texts)))])
    right = TASK.right_answers(toy_data.test.labels, toy_data.label_names)
    assert TASK.scores(TASK.answers(outputs, toy_data.label_names), right).value >= 0.97
    config = json.loads((trained / "config.json").read_text())
    assert config["id2label"] == {str(index): label for index, label in enumerate(toy_data.label_names)}
    assert {path.name for path in trained.iterdir()} >= {"model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_the_result_says_what_was_done(train: Any, capfd: pytest.CaptureFixture[str]) -> None:
    result, out, events = train(epochs=2)
    assert result.steps == 12  # 96 rows, 16 a batch, twice
    assert result.resumed_from == 0
    assert set(result.metrics) == {"loss", "accuracy", "macro_f1"}
    assert result.curve == ((10, pytest.approx(1.4, abs=0.2)),)
    assert result.trainable < result.parameters == sum(value.size for value in weights(out).values())
    assert (result.device, result.precision) == ("cpu", "fp32")
    progress = [event for event in events if isinstance(event, Progress)]
    assert [event.done for event in progress] == list(range(1, 13))
    assert {event.total for event in progress} == {12}
    assert set(progress[-1].figures) == {"loss", "val_loss", "val_accuracy"}
    said = [event.message for event in events if isinstance(event, Warn | Note)]
    assert said == ([result.warning] if result.warning else [])  # two epochs may be too few to learn anything
    captured = capfd.readouterr()  # neither bars nor load reports
    assert captured.out == captured.err == ""


def test_a_model_that_gives_one_answer_to_all_is_told(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from deploykit.train import finetune as module

    monkeypatch.setattr(module, "no_better_than_one_answer", lambda table, metric, value: f"{metric}: nothing learned")
    result, _, events = train()
    assert result.warning == "accuracy: nothing learned"
    assert [event.message for event in events if isinstance(event, Warn)] == ["accuracy: nothing learned"]


def test_the_same_seed_gives_the_same_weights(train: Any) -> None:
    _, first, _ = train(out="first", workspace="a")
    _, second, _ = train(out="second", workspace="b")
    assert changed(first, second) == set()


def test_messages_are_truncated_when_served_as_they_were_in_training(train: Any) -> None:
    _, out, _ = train(max_length=8)
    assert json.loads((out / "tokenizer_config.json").read_text())["model_max_length"] == 8
    _, out, _ = train(max_length=10_000, out="long", workspace="other")  # the model has 64 positions
    assert json.loads((out / "tokenizer_config.json").read_text())["model_max_length"] == 64


def test_embeddings_stay_frozen_unless_told(train: Any, tiny_checkpoint: Any) -> None:
    model = tiny_checkpoint("bert", num_hidden_layers=1, initializer_range=0.05)
    result, out, _ = train(freeze_embeddings=True)
    assert not any("embeddings" in name for name in changed(model, out))
    assert any("encoder" in name for name in changed(model, out))
    frozen = sum(value.size for name, value in weights(out).items() if "embeddings" in name)
    assert result.trainable == result.parameters - frozen
    result, out, _ = train(freeze_embeddings=False, out="free", workspace="other")
    assert "bert.embeddings.word_embeddings.weight" in changed(model, out)
    assert result.trainable == result.parameters


def test_strategy_head_trains_nothing_but_the_head(train: Any, tiny_checkpoint: Any) -> None:
    model = tiny_checkpoint("bert", num_hidden_layers=1, initializer_range=0.05)
    result, out, _ = train(strategy="head", freeze_embeddings=False)
    assert changed(model, out) == {"classifier.weight", "classifier.bias"}
    assert result.trainable == 4 * 32 + 4


@pytest.mark.parametrize("kind", ["distilbert", "mpnet"])
def test_other_architectures_train_with_the_same_settings(kind: str, train: Any, tiny_checkpoint: Any) -> None:
    model = tiny_checkpoint(kind, **({"n_layers": 1} if kind == "distilbert" else {"num_hidden_layers": 1}))
    result, out, _ = train(model=model, dropout=0.0)
    moved = changed(model, out)
    assert moved
    assert not any("embeddings" in name for name in moved)
    assert result.trainable < result.parameters
    config = json.loads((out / "config.json").read_text())
    assert {value for key, value in config.items() if "dropout" in key and key != "qa_dropout"} == {0.0}


def test_dropout_is_set_in_encoder_and_head_and_else_left(train: Any, tiny_checkpoint: Any) -> None:
    def dropouts(folder: Path) -> dict[str, Any]:
        config = json.loads((folder / "config.json").read_text())
        return {key: value for key, value in config.items() if "dropout" in key}

    model = tiny_checkpoint("bert", num_hidden_layers=1, classifier_dropout=0.4)
    _, out, _ = train(model=model)
    assert dropouts(out) == dropouts(model)
    _, out, _ = train(model=model, dropout=0.25, out="set", workspace="other")
    assert dropouts(out) == dict.fromkeys(dropouts(model), 0.25)
    assert len(dropouts(out)) == 3


def test_gradient_accumulation_joins_batches_to_one_step(train: Any) -> None:
    whole, _, _ = train(batch_size=16, dropout=0.0, learning_rate=2e-3, out="first", workspace="a")
    parts, _, _ = train(
        batch_size=4, gradient_accumulation=4, dropout=0.0, learning_rate=2e-3, out="second", workspace="b"
    )
    small, _, _ = train(batch_size=4, dropout=0.0, learning_rate=2e-3, out="third", workspace="c")
    assert (whole.steps, parts.steps, small.steps) == (6, 6, 24)
    assert parts.metrics["loss"] == pytest.approx(whole.metrics["loss"], abs=1e-4)
    assert small.metrics["loss"] != pytest.approx(whole.metrics["loss"], abs=1e-3)


def test_label_smoothing_raises_the_loss_of_a_sure_model(train: Any, trained: Path) -> None:
    plain, _, _ = train(model=trained, learning_rate=1e-9, out="a", workspace="a")
    smooth, _, _ = train(model=trained, learning_rate=1e-9, label_smoothing=0.3, out="b", workspace="b")
    assert smooth.metrics["accuracy"] == plain.metrics["accuracy"]
    assert smooth.metrics["loss"] > plain.metrics["loss"] + 0.3


def test_early_stopping_ends_training_and_keeps_the_best_epoch(train: Any, trained: Path) -> None:
    # A rate that spoils a model that knows all: the first epoch is the best.
    result, out, _ = train(
        model=trained, epochs=8, learning_rate=0.3, warmup=0.0, scheduler="constant", early_stopping=2,
        freeze_embeddings=False,
    )  # fmt: skip
    assert result.steps % 6 == 0
    assert result.steps < 8 * 6
    measured = [json.loads(path.read_text()) for path in (out.parent / "work").glob("checkpoint-*/trainer_state.json")]
    history = max(measured, key=lambda state: state["global_step"])["log_history"]
    by_epoch = [entry["eval_accuracy"] for entry in history if "eval_accuracy" in entry]
    assert result.metrics["accuracy"] == pytest.approx(max(by_epoch))
    assert max(by_epoch[-2:]) <= max(by_epoch[:-2])


def test_gradient_checkpointing_gives_the_same_result(train: Any) -> None:
    _, plain, _ = train(dropout=0.0, out="a", workspace="a")
    _, saving, _ = train(dropout=0.0, gradient_checkpointing=True, out="b", workspace="b")
    old, new = weights(plain), weights(saving)
    assert all(np.allclose(old[name], new[name], atol=1e-5) for name in old)


def test_fp16_without_a_gpu_is_refused(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainingError, match="fp16 needs a GPU"):
        train(precision="fp16")


def test_bf16_trains(train: Any) -> None:
    result, out, _ = train(precision="bf16")
    assert result.precision == "bf16"
    assert np.isfinite(result.metrics["loss"])
    assert {value.dtype for value in weights(out).values()} == {np.dtype(np.float32)}


def test_the_8_bit_optimizer_needs_its_package(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else find(name, *rest)
    )
    with pytest.raises(MissingDependencyError, match="bitsandbytes"):
        train(optimizer="adamw_8bit")


def test_row_31_a_loss_that_is_not_a_number_names_the_step(train: Any, trained: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(trained, broken)
    values = weights(broken)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    values[name] = values[name].copy()
    values[name][0, 0] = np.nan
    save_file(values, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError) as caught:
        train(model=broken)
    assert caught.value.message == "the loss is not a number at step 1"
    assert "learning_rate" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()


def test_row_31_a_rate_that_explodes_names_the_step(train: Any, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"the loss is not a number at step [2-6]\n"):
        train(update={"learning_rate": 1e30}, warmup=0.0)
    assert not (tmp_path / "out").exists()


def test_row_31_a_metric_that_is_not_a_number_names_the_step(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = TASK.metrics
    monkeypatch.setattr(type(TASK), "metrics", lambda self, *given: dict(metrics(*given)) | {"macro_f1": float("nan")})
    with pytest.raises(TrainingError, match="macro_f1 is not a number after step 6"):
        train()


def test_pickled_weights_are_refused_unless_trusted(train: Any, trained: Path, tmp_path: Path) -> None:
    import torch

    pickled = tmp_path / "pickled"
    shutil.copytree(trained, pickled)
    values = {name: torch.from_numpy(value.copy()) for name, value in weights(pickled).items()}
    torch.save(values, pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(ModelError):
        train(model=pickled)


def test_curves_go_to_tensorboard_where_the_recipe_says(
    tiny_checkpoint: Callable[..., Path], small_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    tracking = Tracking(("tensorboard",), tmp_path / "tracking", "intents")
    result = finetune(
        tiny_checkpoint("bert", num_hidden_layers=1), small_data, Finetune(epochs=2, batch_size=8), TASK,
        tmp_path / "out", workspace=tmp_path / "work", tracking=tracking,
    )  # fmt: skip
    files = list((tmp_path / "tracking" / "tensorboard" / "intents").rglob("*tfevents*"))
    assert files
    assert any(b"eval/accuracy" in file.read_bytes() for file in files)
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ
    assert [step for step, _ in result.watched] == [12, 24]
    assert result.watched[-1][1] == pytest.approx(result.metrics["accuracy"])


def test_curves_go_to_mlflow_in_the_folder(
    tiny_checkpoint: Callable[..., Path], small_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    finetune(
        tiny_checkpoint("bert", num_hidden_layers=1), small_data, Finetune(epochs=2, batch_size=8), TASK,
        tmp_path / "out", workspace=tmp_path / "work", tracking=Tracking(("mlflow",), tmp_path / "tracking", "intents"),
    )  # fmt: skip
    client = mlflow.MlflowClient(mlflow_uri(tmp_path / "tracking"))
    (experiment,) = (each for each in client.search_experiments() if each.name == "deploykit")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("intents", "FINISHED")
    assert [each.step for each in client.get_metric_history(run.info.run_id, "eval_accuracy")] == [12, 24]
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_curves_go_to_weights_and_biases_offline(
    tiny_checkpoint: Callable[..., Path], small_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    finetune(
        tiny_checkpoint("bert", num_hidden_layers=1), small_data, Finetune(epochs=2, batch_size=8), TASK,
        tmp_path / "out", workspace=tmp_path / "work", tracking=Tracking(("wandb",), tmp_path / "tracking", "intents"),
    )  # fmt: skip
    (log,) = (tmp_path / "tracking" / "wandb").glob("offline-run-*/*.wandb")
    assert b"eval/accuracy" in log.read_bytes()
    assert "WANDB_MODE" not in os.environ


def test_a_tracker_that_is_not_installed_is_named(train: Any) -> None:
    with (
        pytest.raises(MissingDependencyError, match="nothing_tracks is not installed"),
        tracked(Tracking(("nothing_tracks",), Path("unused"), "run")),
    ):
        pytest.fail("the block must not run")
    assert not Path("unused").exists()
