"""Training that rounds as static int8 does: what is rounded, what is not, and that the student gains by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deploykit.train.rounding import first_rounded_step, int8_rounding


def linear() -> nn.Linear:
    torch.manual_seed(0)
    module = nn.Linear(6, 4)
    with torch.no_grad():
        module.weight[2] *= 50  # another scale for another output
    return module


def rounded(values: torch.Tensor, step: float) -> torch.Tensor:
    return torch.round(values / step) * step


def test_weights_are_rounded_by_output_and_what_enters_by_its_range() -> None:
    module, values = linear(), torch.randn(5, 6)
    steps = module.weight.detach().abs().amax(dim=1, keepdim=True) / 127
    step = float(values.max() - values.min()) / 255
    expected = rounded(values, step) @ (torch.round(module.weight / steps) * steps).T + module.bias
    with int8_rounding(module, lambda: True):
        found = module(values)
    torch.testing.assert_close(found, expected, atol=2 * step * float(steps.max()) * 6 + 1e-4, rtol=1e-3)
    assert not torch.equal(found, torch.nn.functional.linear(values, module.weight, module.bias))


@pytest.mark.parametrize(("training", "due"), [(False, True), (True, False)])
def test_evaluation_and_the_steps_before_do_not_round(training: bool, due: bool) -> None:
    module, values = linear(), torch.randn(5, 6)
    expected = module(values)
    with int8_rounding(module.train(training), lambda: due):
        assert torch.equal(module(values), expected)


def test_the_module_is_left_as_it_was_found_also_after_an_error() -> None:
    module, values = linear(), torch.randn(5, 6)
    expected = module(values)

    def fail() -> None:
        with int8_rounding(module, lambda: True):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert "forward" not in vars(module)
    assert torch.equal(module(values), expected)


def test_rounding_counts_as_the_identity_when_gradients_are_taken() -> None:
    module, values = linear(), torch.randn(5, 6, requires_grad=True)
    with int8_rounding(module, lambda: True):
        module(values).sum().backward()
    assert module.weight.grad is not None
    assert values.grad is not None
    torch.testing.assert_close(module.weight.grad, values.detach().sum(0).expand(4, 6), atol=0.1, rtol=0.02)
    torch.testing.assert_close(values.grad, module.weight.detach().sum(0).expand(5, 6), atol=0.5, rtol=0.02)


def test_a_range_widens_at_once_and_narrows_slowly() -> None:
    module = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(1.0)
    small = torch.tensor([[0.3], [0.0]])
    with int8_rounding(module, lambda: True):
        sharp = float(module(small)[0, 0].detach())
        module(torch.tensor([[1000.0]]))
        coarse = float(module(small)[0, 0].detach())
        for _ in range(400):
            module(small)
        again = float(module(small)[0, 0].detach())
    assert sharp == pytest.approx(0.3, abs=1e-3)
    assert coarse == 0.0
    assert again == pytest.approx(0.3, abs=1e-2)


@pytest.mark.parametrize(
    ("total", "epochs", "last", "first"),
    [(100, 4.0, 1.0, 75), (100, 4.0, 0.0, 100), (7, 2.0, 2.0, 0), (0, 0.0, 0.0, 0)],
)
def test_the_last_epochs_round(total: int, epochs: float, last: float, first: int) -> None:
    assert first_rounded_step(total, epochs, last) == first


def test_a_student_that_saw_rounding_loses_less_in_static_int8(trained: Path, toy_data: Any, tmp_path: Path) -> None:
    """Planted: channels of the attention's values that take all steps of their product's scale."""
    from deploykit.compress.quantize import Variant, quantize
    from deploykit.export.to_onnx import export_onnx
    from deploykit.recipe import Finetune
    from deploykit.runners import Target, infer_all, open_runner
    from deploykit.tasks import find_task
    from deploykit.train.finetune import finetune
    from deploykit.train.lesson import Lesson

    task = find_task("text-classification")
    model = task.load_model(trained)
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.attention.self.value.weight[3] *= 1000
            layer.attention.self.value.bias[3] *= 1000
            layer.attention.output.dense.weight[:, 3] /= 1000
    hurt = tmp_path / "hurt"
    hurt.mkdir()
    for path in trained.iterdir():
        if path.suffix != ".safetensors":
            (hurt / path.name).write_bytes(path.read_bytes())
    model.save_pretrained(hurt)

    texts = list(toy_data.test.texts)
    errors = {}
    for name, epochs in (("without", 0.0), ("with", 3.0)):
        finetune(
            hurt,
            toy_data,
            Finetune(epochs=3, learning_rate=2e-3, freeze_embeddings=False, dropout=0.0),
            task,
            tmp_path / name,
            workspace=tmp_path / f"{name}-work",
            lesson=Lesson(trained, soft_weight=1.0),
            rounded_epochs=epochs,
        )
        export_onnx(tmp_path / name, tmp_path / f"{name}-onnx", task)
        quantize(
            tmp_path / f"{name}-onnx",
            tmp_path / f"{name}-int8",
            Variant("int8_static"),
            calibration=toy_data.train.texts[:100],
        )
        answers = []
        for folder in (f"{name}-onnx", f"{name}-int8"):
            with open_runner(Target("onnxruntime", str(tmp_path / folder), threads=1)) as runner:
                answers.append(infer_all(runner, texts, [[index] for index in range(len(texts))])["logits"])
        errors[name] = float(np.square(answers[0] - answers[1]).mean() / answers[0].var())
    assert errors["with"] < 0.3 * errors["without"], errors
