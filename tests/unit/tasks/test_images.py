"""Images as messages, and their task: files to pixels, pixels to labels, in PyTorch, in the graph and in its entry."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deploykit.data.dataset import load_data
from deploykit.data.png import data_url, png_of
from deploykit.data.readers import read_rows
from deploykit.data.suspects import find_suspects
from deploykit.errors import DataError, ModelError, RequestError, UsageError
from deploykit.events import Warn
from deploykit.pipeline.plan import make_plan, refuse_what_does_not_fit
from deploykit.pipeline.probes import ask_in_company, make_probes
from deploykit.recipe import Recipe
from deploykit.runners import Target, infer_all, open_runner
from deploykit.runners.checkpoint import resolve_or_error
from deploykit.runners.medium import columns_of, medium_of, medium_of_input, medium_of_tensors
from deploykit.runners.untrusted import check_checkpoint
from deploykit.tasks import find_task, task_names, task_of_outputs
from deploykit.tasks.images import IMAGES, Preprocessing

NAME = "image-classification"
TASK = find_task(NAME)
LABELS = ("dark", "light", "mixed")
SIZES = [(8, 8), (8, 8), (1, 1), (30, 17), (8, 8), (5, 40)]


def noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(list(shape)).integers(0, 256, shape, dtype=np.uint8)


MESSAGES = [data_url(png_of(noise(*size, 3 + number)[:, :, :3].copy())) for number, size in enumerate(SIZES)]


@pytest.fixture(scope="module", params=["vit", "resnet"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model of images with three labels."""
    import torch
    import transformers

    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {label: index for index, label in enumerate(LABELS)}}
    if request.param == "vit":
        config: Any = transformers.ViTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16,
            patch_size=4, initializer_range=0.2, **names,
        )  # fmt: skip
        model: Any = transformers.ViTForImageClassification(config)
    else:
        config = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **names
        )
        model = transformers.ResNetForImageClassification(config)
    folder = tmp_path_factory.mktemp(str(request.param))
    model.save_pretrained(folder)
    Preprocessing(16, 16, (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from deploykit.export.to_onnx import export_onnx

    folder = tmp_path_factory.mktemp("exported")
    heard: list[Any] = []
    report = export_onnx(checkpoint, folder, TASK, messages=MESSAGES, listener=heard.append)
    if checkpoint.name.startswith("vit"):  # no fusion had to be left out
        assert report.fused
        assert not [event for event in heard if isinstance(event, Warn)]
    assert all(difference < 1e-4 for difference in report.max_difference.values())
    return folder


def logits_of(kind: Any, folder: Path, batches: list[list[int]]) -> NDArray[np.float32]:
    with open_runner(Target(kind, str(folder), device="cpu", task=NAME)) as runner:
        found: NDArray[np.float32] = infer_all(runner, MESSAGES, batches)["logits"]
        return found


def test_a_batch_of_unlike_sizes_gets_what_each_image_gets_alone(checkpoint: Path, exported: Path) -> None:
    alone = logits_of("torch", checkpoint, [[number] for number in range(len(MESSAGES))])
    assert np.abs(alone).max() > 0.01
    for kind, folder in (("torch", checkpoint), ("onnxruntime", exported)):
        together = logits_of(kind, folder, [list(range(len(MESSAGES)))])
        assert np.abs(together - alone).max() < 1e-4


def test_the_graph_resizes_as_pillow_does(exported: Path) -> None:
    """Independent of PyTorch: Pillow's bilinear filter widens where it shrinks, too; it rounds to 8 bits."""
    image = pytest.importorskip("PIL.Image")
    pixels = np.add.outer(np.arange(40) * 4, np.arange(31) * 2).astype(np.uint8)
    small = np.asarray(image.fromarray(pixels).resize((16, 16), image.Resampling.BILINEAR))
    with open_runner(Target("onnxruntime", str(exported), device="cpu", task=NAME)) as runner:
        large, resized = (runner.infer([data_url(png_of(each.copy()))])["logits"] for each in (pixels, small))
    assert np.abs(large - resized).max() < 0.05 * np.abs(large).max() + 0.01


def test_every_way_to_ask_is_answered_alike(exported: Path) -> None:
    from deploykit.pipeline.measuring import Steps, try_target

    target = Target("onnxruntime", str(exported), device="cpu", task=NAME)
    probes = make_probes(IMAGES.encoder(exported), IMAGES)
    with open_runner(target) as runner:
        like = logits_of("onnxruntime", exported, [[number] for number in range(len(MESSAGES))])
        each = [[number] for number in range(len(probes.texts))]
        hard = try_target(runner, probes.texts, TASK, LABELS, each, like=like)
        company = ask_in_company(
            runner, MESSAGES, TASK, LABELS, probes, hard, max_batch=9, scales_by_batch=False, like=like,
            steps=Steps("parity", 1, lambda event: None),
        )  # fmt: skip
    assert company.shapes.outcome == "pass", company.shapes.details
    assert len(probes.sized) > 5
    assert company.others


@pytest.mark.parametrize("scheme", ["int8_static", "int8_dynamic"])
def test_int8_answers_much_alike(exported: Path, scheme: Any, tmp_path: Path) -> None:
    from deploykit.compress.quantize import Variant, quantize

    report = quantize(exported, tmp_path, Variant(scheme, "plain"), calibration=MESSAGES, medium=IMAGES)
    assert sum(report.products.values()) > 0
    batches = [[number] for number in range(len(MESSAGES))]
    before, after = logits_of("onnxruntime", exported, batches), logits_of("onnxruntime", tmp_path, batches)
    assert np.abs(before - after).max() < 0.2 * np.abs(before).max()
    if scheme == "int8_static":
        assert np.abs(logits_of("onnxruntime", tmp_path, [list(range(len(MESSAGES)))]) - after).max() < 1e-5


def test_the_served_entry_answers_as_the_runner_does(exported: Path, served_entry: Callable[..., Any]) -> None:
    """Row 54 of images: broken bytes get an error of their own and harm no other request."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(exported / "model.onnx"))
    said = {"labels": LABELS, "inputs": ["pixels"], **IMAGES.served_settings(exported)}
    ask = served_entry(TASK, said, lambda feeds: session.run(["logits"], feeds)[0])
    expected = logits_of("onnxruntime", exported, [[number] for number in range(len(MESSAGES))])
    files = IMAGES.sent(MESSAGES)
    broken = IMAGES.sent([IMAGES.refused])[0]
    together, refused, wrong, single, none = ask(
        (files, {"top_k": 2}), ((files[0], broken), {}), (files[:1], {"top_k": 0}), (files[3:4], {}), ((), {})
    )
    assert np.abs(together["logits"] - expected).max() < 1e-5
    assert TASK.served_answers(together) == TASK.answers({"logits": expected}, LABELS, 2)
    assert np.abs(single["logits"] - expected[3:4]).max() < 1e-5
    assert "image 1" in str(refused.error)
    assert "PNG" in str(refused.error)
    assert "top_k" in str(wrong.error)
    assert "one message" in str(none.error)


def test_a_table_names_files_or_holds_them(tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "a.png").write_bytes(png_of(noise(4, 4, 3)))
    table = tmp_path / "table.csv"
    table.write_text(f'file,label\ndigits/a.png,x\n"{MESSAGES[0]}",y\n', encoding="utf-8")
    columns = columns_of(TASK, "file", TASK.label_form("label"))
    assert read_rows(str(table), columns).texts == (data_url(png_of(noise(4, 4, 3))), MESSAGES[0])
    table.write_text("file,label\ndigits/b.png,x\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"line 2: 'digits/b.png' can't be read: No such file"):
        read_rows(str(table), columns)
    (tmp_path / "digits" / "b.png").write_bytes(b"GIF89a")
    with pytest.raises(DataError, match=r"line 2.*no PNG"):
        read_rows(str(table), columns)


def test_a_changed_image_makes_the_data_anew(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("text,label\na.png,x\nb.png,y\n", encoding="utf-8")
    section = {"train": "table.csv", "test": "table.csv"}
    recipe = Recipe.model_validate({"task": NAME, "model": "sample:digits_vit", "data": section})
    keys = []
    for shape in ((4, 4, 3), (5, 4, 3), (4, 4, 3)):
        for name, channel in (("a", 0), ("b", 1)):
            (tmp_path / f"{name}.png").write_bytes(png_of(np.roll(noise(*shape), channel)))
        keys.append(make_plan(recipe, tmp_path).step("data").key)
    assert keys[0] == keys[2] != keys[1]


def test_texts_are_looked_through_and_images_are_not() -> None:
    columns = columns_of(TASK, "text", TASK.label_form("label"))
    section = Recipe.model_validate(
        {"task": NAME, "model": "m", "data": {"train": "sample:digits/train", "test": "sample:digits/test"}}
    ).data
    data, report = load_data(section, 0, form=columns.form, read=columns.read)
    assert (len(data.train) + len(data.validation), len(data.test)) == (1438, 359)
    assert data.label_names == tuple("0123456789")
    assert report.leakage.count == 0
    found = find_suspects(data.test, textual=False)
    assert (found.languages, found.personal, found.wrong_labels) == (None, (), None)
    assert "texts only" in found.not_checked[0]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"finetune": {"augment": ["typos"]}}, "finetune.augment"),
        ({"finetune": {"teacher": "m"}}, "finetune.teacher"),
        ({"finetune": {"strategy": "prompt"}}, "finetune.strategy"),
        ({"finetune": {"strategy": "prefix"}}, "finetune.strategy"),
        ({"goal": {"target": {"lengths": [16]}}}, "goal.target.lengths"),
        ({"goal": {"speedup": 2}}, "a limit on speed"),
    ],
)
def test_what_works_on_words_is_refused(settings: dict[str, Any], named: str) -> None:
    recipe = {"model": "m", "data": {"train": "a.csv", "test": "b.csv"}, **settings}
    with pytest.raises(UsageError, match=named):
        refuse_what_does_not_fit(Recipe.model_validate({"task": NAME, **recipe}))
    refuse_what_does_not_fit(Recipe.model_validate({"task": "text-classification", **recipe}))


def test_a_model_can_be_trained_from_nothing_where_its_configuration_says_so(tmp_path: Path) -> None:
    import torch

    folder = resolve_or_error("sample:digits_vit", tmp_path)
    check_checkpoint(folder, beside=IMAGES.beside)
    with pytest.raises(ModelError, match="no weights yet"):
        TASK.load_model(folder)
    torch.manual_seed(3)
    first = TASK.load_model(folder, ["a", "b"], attn_implementation="sdpa", dtype=torch.float32)
    torch.manual_seed(3)
    again = TASK.load_model(folder, ["a", "b"])
    assert all((ours == theirs).all() for ours, theirs in zip(first.parameters(), again.parameters(), strict=True))
    first.save_pretrained(tmp_path)
    assert "deploykit_new_weights" not in (tmp_path / "config.json").read_text()
    with pytest.raises(ModelError, match="preprocessor_config"):
        check_checkpoint(tmp_path, beside=IMAGES.beside)
    config = json.loads((folder / "config.json").read_text())
    del config["deploykit_new_weights"]
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        check_checkpoint(tmp_path / "plain", beside=())
    with pytest.raises(ModelError, match="no such sample"):
        resolve_or_error("sample:digit", tmp_path)


def test_what_a_preprocessor_says_is_read(tmp_path: Path) -> None:
    def of(settings: Any) -> Preprocessing:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
        return Preprocessing.of(tmp_path)

    with pytest.raises(ModelError, match="has no preprocessor_config"):
        Preprocessing.of(tmp_path)
    third = (0.5, 0.5, 0.5)
    assert of({"size": {"height": 6, "width": 8}}) == Preprocessing(6, 8, third, third)
    assert of({"size": {"shortest_edge": 7}, "image_std": [1, 2, 4]}) == Preprocessing(7, 7, third, (1.0, 2.0, 4.0))
    assert of({"size": 5, "do_normalize": False}) == Preprocessing(5, 5, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    again = of({"size": 9, "image_mean": [0.1, 0.2, 0.3]})
    again.save_pretrained(tmp_path)
    assert Preprocessing.of(tmp_path) == again
    for wrong in ({}, {"size": {"height": 3}}, {"size": 0}, {"size": 3, "image_std": [0, 1, 1]}, [], {"size": "x"}):
        with pytest.raises(ModelError, match="size"):
            of(wrong)


def test_a_model_of_other_images_is_refused_before_it_is_trained(tmp_path: Path) -> None:
    Preprocessing(6, 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).save_pretrained(tmp_path)

    def with_config(**config: Any) -> Preprocessing:
        (tmp_path / "config.json").write_text(json.dumps(config))
        return Preprocessing.of(tmp_path)

    for fitting in ({"image_size": [6, 8]}, {"num_channels": 3}, {}):
        assert with_config(model_type="vit", **fitting).width == 8
    assert with_config(model_type="swin", image_size=224).width == 8  # it pads
    for size in (6, 8, [8, 6]):
        with pytest.raises(ModelError, match="6 x 8"):
            with_config(model_type="vit", image_size=size)
    with pytest.raises(ModelError, match="1 channel"):
        with_config(model_type="resnet", num_channels=1)


def test_training_rows_are_what_the_model_takes(checkpoint: Path) -> None:
    import torch

    processor = IMAGES.processor(checkpoint, 128)
    rows = IMAGES.rows(processor, MESSAGES, offsets=False)["pixel_values"]
    assert {row.shape for row in rows} == {(3, 16, 16)}
    model = TASK.load_model(checkpoint).eval()
    with torch.inference_mode():
        logits = model(pixel_values=torch.from_numpy(np.stack(rows))).logits.numpy()
    alone = logits_of("torch", checkpoint, [[number] for number in range(len(MESSAGES))])
    assert np.abs(logits - alone).max() < 1e-4


def test_a_message_is_what_it_says_it_is() -> None:
    assert medium_of(NAME) is medium_of_input("image") is medium_of_tensors(["pixels"]) is IMAGES
    texts = medium_of("text-classification")
    assert medium_of_input("text") is medium_of_tensors(["input_ids", "attention_mask"]) is texts
    assert medium_of_tensors(["pixels", "input_ids"]) is medium_of_tensors([]) is medium_of_input("x") is None
    assert all(medium_of(name).name in ("text", "image") for name in task_names())
    assert task_of_outputs(["label", "score", "logits"], "image").name == NAME  # type: ignore[union-attr]
    assert IMAGES.groups(MESSAGES) == [[0, 1, 4], [2], [3], [5]]
    with pytest.raises(RequestError, match="message 1: no image"):
        IMAGES.sent([MESSAGES[0], "hello"])
    with pytest.raises(DataError, match="message 2"):
        IMAGES.groups([MESSAGES[0], IMAGES.refused[:40]])
    with pytest.raises(DataError, match="more than one size"):
        IMAGES.encoder(Path()).encode(MESSAGES)


def test_a_tensor_entry_of_pixels_gets_them_under_load(tmp_path: Path) -> None:
    from deploykit.latency.load_requests import grpc_request, http_request, tensors_of, wanted_of
    from deploykit.runners.triton_wire import ModelMetadata, TensorMetadata, parse_url

    def served(name: str, kind: str) -> ModelMetadata:
        out = tuple(TensorMetadata(each, "FP32", (-1, 3)) for each in ("label", "logits"))
        return ModelMetadata("digits", ("1",), "", (TensorMetadata(name, kind, (-1, 1)),), out)

    entry, inner = wanted_of(served("image", "BYTES")), wanted_of(served("pixels", "UINT8"))
    assert (entry.tensors, entry.outputs, inner.tensors) == (False, ("label",), True)
    assert tensors_of(entry, MESSAGES, None)[0]["image"][0, 0] == IMAGES.sent(MESSAGES)[0]
    (first, *_) = tensors_of(inner, MESSAGES, None)
    assert first["pixels"].shape == (1, 8, 8, 3)
    raw = first["pixels"].tobytes()
    assert raw in http_request(parse_url("http://h:1")[0], "digits_onnx", first, ["logits"])
    assert raw in grpc_request("digits_onnx", first, ["logits"])


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_fine_tuning_learns_to_tell_images_apart(
    tmp_path: Path, make_images: Callable[[int, int], Any], kind: str
) -> None:
    from deploykit.data.dataset import LabelledData
    from deploykit.recipe import Finetune
    from deploykit.train.finetune import finetune

    data = LabelledData(make_images(96, 1), make_images(32, 2), make_images(32, 3), LABELS)
    settings = Finetune(epochs=16, learning_rate=2e-3, batch_size=16)
    folder = resolve_or_error(f"sample:digits_{kind}", tmp_path)
    result = finetune(folder, data, settings, TASK, tmp_path / "out", workspace=tmp_path / "work")
    assert result.metrics["accuracy"] > 0.9
    assert result.trainable == result.parameters  # no table of words to freeze
    check_checkpoint(tmp_path / "out", beside=IMAGES.beside)
    with open_runner(Target("torch", str(tmp_path / "out"), device="cpu", task=NAME)) as runner:
        answers = TASK.answers(runner.infer(data.test.texts), LABELS)
    right = TASK.right_answers(data.test.labels or (), LABELS)
    assert TASK.scores(answers, right).value > 0.9


@pytest.fixture(scope="module")
def make_images() -> Callable[[int, int], Any]:
    """Tables of dark, light and mixed images."""
    from deploykit.data.table import Table

    def make(count: int, seed: int) -> Any:
        rng = np.random.default_rng(seed)
        labels = tuple(LABELS[number % 3] for number in range(count))
        ranges = {"dark": (0, 90), "light": (160, 256), "mixed": (0, 256)}
        pixels = [rng.integers(*ranges[label], (6, 6), dtype=np.uint8) for label in labels]
        return Table("toy", tuple(data_url(png_of(each)) for each in pixels), labels, tuple(range(count)))

    return make
