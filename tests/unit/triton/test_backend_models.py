"""What runs inside the server, with a stand-in for Triton's own module: the onnxruntime backend and the text entry."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from deploykit.tasks import find_task
from deploykit.triton import entries

ENTRY = Path(entries.__file__).with_name("text_classification.py")
BACKEND = Path(entries.__file__).parents[1] / "backends" / "onnxruntime" / "model.py"
Asked = tuple[dict[str, np.ndarray], Sequence[str], dict[str, Any]]
"""A request: tensors by name, the outputs that are wanted, parameters."""


# The onnxruntime backend


def save_model(path: Path, batch: str | int = "batch") -> None:
    """`logits` [batch, 2]: the sum over the sequence of the embeddings (4 rows) of the tokens under the mask."""
    table = np.arange(8, dtype=np.float32).reshape(4, 2)
    constants = [onnx.numpy_helper.from_array(table, "table"), onnx.numpy_helper.from_array(np.array([1]), "axis")]
    constants.append(onnx.numpy_helper.from_array(np.array([2]), "last"))
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["rows", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "axis"], ["logits"], keepdims=0),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, [batch, "length"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 2])
    graph = helper.make_graph(nodes, "tiny", inputs, [output], constants)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def config(**changes: Any) -> dict[str, Any]:
    dims = {"data_type": "TYPE_INT64", "dims": [-1]}
    return {
        "max_batch_size": 8,
        "input": [{"name": "input_ids", **dims}, {"name": "attention_mask", **dims}],
        "output": [{"name": "logits", "data_type": "TYPE_FP32", "dims": [2]}],
        "parameters": {},
        "default_model_filename": "",
        **changes,
    }


@pytest.fixture
def backend(triton: Any, tmp_path: Path) -> Callable[..., Any]:
    """An initialized backend model for a configuration."""
    save_model(tmp_path / "tiny" / "1" / "model.onnx")

    def initialized(kind: str = "CPU", **changes: Any) -> Any:
        return triton.start(
            BACKEND,
            model_config=json.dumps(config(**changes)),
            model_repository=str(tmp_path / "tiny"),
            model_version="1",
            model_instance_kind=kind,
            model_instance_device_id="0",
        )

    return initialized


def tokens(*rows: Sequence[int], outputs: Sequence[str] = ("logits",)) -> Asked:
    ids = np.array(rows, dtype=np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}, outputs, {}


def test_a_single_request_gets_the_models_own_output(backend: Callable[..., Any]) -> None:
    (response,) = backend().execute([tokens([1, 2], [3, 0])])
    np.testing.assert_array_equal(response["logits"], np.array([[6, 8], [6, 8]], dtype=np.float32))


def test_requests_of_equal_shape_run_as_one_batch(backend: Callable[..., Any]) -> None:
    model = backend()
    sizes = []
    run = model._session.run

    class Session:
        def run(self, names: Any, feeds: Any, options: Any) -> Any:
            sizes.append(feeds["input_ids"].shape)
            return run(names, feeds, options)

    model._session = Session()
    responses = model.execute([tokens([1, 1]), tokens([1, 2, 3]), tokens([2, 2], [3, 3])])
    assert sorted(sizes) == [(1, 3), (3, 2)]
    assert [response["logits"].tolist() for response in responses] == [[[4, 6]], [[12, 15]], [[8, 10], [12, 14]]]


def test_a_request_that_fails_harms_no_other(backend: Callable[..., Any]) -> None:
    responses = backend().execute([tokens([1, 1]), tokens([1, 99]), tokens([2, 2])])
    assert responses[0]["logits"].tolist() == [[4, 6]]
    assert responses[1].error.message.startswith("onnx runtime error")
    assert responses[2]["logits"].tolist() == [[8, 10]]


def test_without_batching_each_request_runs_alone(backend: Callable[..., Any]) -> None:
    model = backend(
        max_batch_size=0,
        input=[{"name": name, "data_type": "TYPE_INT64", "dims": [-1, -1]} for name in ("input_ids", "attention_mask")],
        output=[{"name": "logits", "data_type": "TYPE_FP32", "dims": [-1, 2]}],
    )
    responses = model.execute([tokens([1, 1]), tokens([2, 2])])
    assert [response["logits"].tolist() for response in responses] == [[[4, 6]], [[8, 10]]]


def test_the_configurations_parameters_reach_onnxruntime(backend: Callable[..., Any]) -> None:
    parameters = {
        "intra_op_thread_count": "3",
        "inter_op_thread_count": "2",
        "execution_mode": "1",
        "enable_mem_arena": "0",
    }
    parameters["enable_mem_pattern"] = "false"
    model = backend(
        parameters={key: {"string_value": value} for key, value in parameters.items()},
        optimization={"graph": {"level": -1}},
    )
    options = model._session.get_session_options()
    assert options.intra_op_num_threads == 3
    assert options.inter_op_num_threads == 2
    assert options.execution_mode.name == "ORT_PARALLEL"
    assert options.graph_optimization_level.name == "ORT_ENABLE_BASIC"
    assert not options.enable_cpu_mem_arena
    assert not options.enable_mem_pattern


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parameters": {"execution_mode": {"string_value": "2"}}}, "execution_mode must be 0 or 1"),
        ({"parameters": {"enable_mem_arena": {"string_value": "maybe"}}}, "boolean"),
        ({"input": config()["input"][:1]}, "expects 1 inputs, model provides 2"),
        (
            {"input": [config()["input"][0], {"name": "mask", "data_type": "TYPE_INT64", "dims": [-1]}]},
            "unexpected input 'mask'",
        ),
        ({"output": [{"name": "scores", "data_type": "TYPE_FP32", "dims": [2]}]}, "unexpected output 'scores'"),
        ({"output": [{"name": "logits", "data_type": "TYPE_FP16", "dims": [2]}]}, "expects datatype TYPE_FP16"),
        ({"output": [{"name": "logits", "data_type": "TYPE_FP32", "dims": [3]}]}, "shape"),
        ({"output": [{"name": "logits", "data_type": "TYPE_FP32", "dims": [-1]}]}, "shape"),
        (
            {"optimization": {"execution_accelerators": {"cpu_execution_accelerator": [{"name": "openvino"}]}}},
            "openvino",
        ),
        (
            {"optimization": {"execution_accelerators": {"gpu_execution_accelerator": [{"name": "tensorrt"}]}}},
            "tensorrt",
        ),
    ],
)
def test_what_the_native_backend_refuses_is_refused(
    backend: Callable[..., Any], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        backend(**changes)


def test_a_fixed_batch_is_refused_where_the_server_may_batch(backend: Callable[..., Any], tmp_path: Path) -> None:
    save_model(tmp_path / "tiny" / "1" / "model.onnx", batch=1)
    with pytest.raises(ValueError, match="first dimension must be free"):
        backend()


def test_row_46_a_gpu_instance_without_a_gpu_provider_is_refused(backend: Callable[..., Any]) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has the CUDA provider")
    with pytest.raises(RuntimeError, match="onnxruntime-gpu"):
        backend(kind="GPU")


def test_another_file_name_is_followed(backend: Callable[..., Any], tmp_path: Path) -> None:
    version = tmp_path / "tiny" / "1"
    (version / "model.onnx").rename(version / "small.onnx")
    assert backend(default_model_filename="small.onnx").execute([tokens([1])])[0]["logits"].tolist() == [[2, 3]]


# The text entry

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "where", "is", "my", "card", "hello"]


@pytest.fixture
def entry(triton: Any, tmp_path: Path) -> Callable[..., Any]:
    """An initialized text entry; what it asks for logits is answered by `triton.answer`."""
    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_padding(length=64)
    tokenizer.enable_truncation(5)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    triton.place(tmp_path, *find_task("text-classification").entry()[1:])
    triton.answer = by_length

    def initialized(parameters: dict[str, str] | None = None, model: Path = ENTRY, **changes: Any) -> Any:
        shutil.copy(model, tmp_path / "model.py")
        said = {
            "model": "intents_onnx",
            "labels": ["card", "größe", "other"],
            "inputs": ["input_ids", "attention_mask"],
            "max_length": 8,
            "pad_id": 0,
            "pad_type_id": 0,
            **changes,
        }
        (tmp_path / "entry.json").write_text(json.dumps(said))
        given = {"parameters": {key: {"string_value": value} for key, value in (parameters or {}).items()}}
        return triton.start(
            tmp_path / "model.py",
            model_version="7",
            model_repository=str(tmp_path / "repository" / "intents"),
            model_config=json.dumps(given),
        )

    return initialized


def by_length(inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Logits that tell a message's tokens: how many, the first word, 0."""
    lengths = inputs["attention_mask"].sum(axis=1)
    return np.stack([lengths, inputs["input_ids"][:, 1], np.zeros_like(lengths)], axis=1).astype(np.float32)


def text(*messages: str | bytes, outputs: Sequence[str] = ("label", "score"), **asked: Any) -> Asked:
    encoded = [message.encode() if isinstance(message, str) else message for message in messages]
    return {"text": np.array(encoded, dtype=np.object_).reshape(-1, 1)}, outputs, asked


def test_the_entry_answers_with_label_and_score(entry: Callable[..., Any], triton: Any) -> None:
    (response,) = entry().execute([text("where is my card")])
    assert response["label"].tolist() == [[b"card"]]
    logits = np.array([6.0, 4.0, 0.0])
    np.testing.assert_allclose(response["score"], [[np.exp(6) / np.exp(logits).sum()]], rtol=1e-6)
    assert response["score"].dtype == np.float32
    assert triton.calls[0].target == ("intents_onnx", 7)
    assert triton.calls[0].inputs["input_ids"].tolist() == [[2, 4, 5, 6, 7, 3]]
    assert triton.calls[0].inputs["input_ids"].dtype == np.int64


def test_logits_come_only_where_they_are_wanted(entry: Callable[..., Any]) -> None:
    model = entry()
    (response,) = model.execute([text("hello", outputs=["logits"])])
    assert list(response) == ["logits"]
    assert response["logits"].tolist() == [[3, 8, 0]]
    (response,) = model.execute([text("hello")])
    assert list(response) == ["label", "score"]


def test_top_k_ranks_and_is_each_requests_own(entry: Callable[..., Any]) -> None:
    responses = entry().execute([text("hello", top_k=2), text("hello"), text("hello", top_k=99)])
    assert responses[0]["label"].tolist() == [["größe".encode(), b"card"]]
    assert responses[1]["label"].tolist() == [["größe".encode()]]
    assert responses[2]["label"].shape == (1, 3)
    assert responses[2]["score"].shape == (1, 3)
    np.testing.assert_allclose(responses[2]["score"].sum(), 1.0, rtol=1e-6)


def test_entries_are_answered_with_their_text_and_cosine(entry: Callable[..., Any]) -> None:
    model = entry(model=ENTRY.with_name("retrieval.py"), scale=20.0, depth=1, answers={"größe": "Im Konto: Maße."})
    wanted = ("entry", "answer", "score", "logits")
    two, one = model.execute([text("hello", "is", outputs=wanted, top_k=2), text("where is my card", outputs=wanted)])
    assert two["entry"].tolist() == [["größe".encode(), b"card"]] * 2
    assert two["answer"].tolist() == [["Im Konto: Maße.".encode(), b""]] * 2
    np.testing.assert_allclose(two["score"], [[8 / 20, 3 / 20], [5 / 20, 3 / 20]], rtol=1e-6)
    assert two["score"].dtype == np.float32
    assert one["entry"].tolist() == [[b"card"]]
    assert one["logits"].tolist() == [[6, 4, 0]]
    (refused,) = model.execute([text("hello", outputs=wanted, top_k=0)])
    assert "top_k" in refused.error.message


def test_items_are_ranked_with_their_text_as_deep_as_they_are_judged(
    entry: Callable[..., Any], triton: Any, tmp_path: Path
) -> None:
    triton.place(tmp_path, ENTRY.with_name("retrieval.py"))
    model = entry(model=ENTRY.with_name("recommendation.py"), depth=2, answers={"größe": "Im Konto: Maße."})
    wanted = ("item", "answer", "score", "logits")
    one, unasked = model.execute([text("hello", outputs=wanted, top_k=1), text("where is my card", outputs=wanted)])
    assert one["item"].tolist() == [["größe".encode()]]
    assert one["answer"].tolist() == [["Im Konto: Maße.".encode()]]
    assert unasked["item"].tolist() == [[b"card", "größe".encode()]]
    logits = np.array([6.0, 4.0, 0.0])
    np.testing.assert_allclose(unasked["score"], [(np.exp(logits) / np.exp(logits).sum())[:2]], rtol=1e-6)
    assert unasked["logits"].tolist() == [[6, 4, 0]]


@pytest.mark.parametrize("top_k", [0, -1, 1.5, "two", True, None])
def test_an_impossible_top_k_is_refused(entry: Callable[..., Any], top_k: Any) -> None:
    refused, answered = entry().execute([text("hello", top_k=top_k), text("hello")])
    assert refused.error.code == "INVALID_ARG"
    assert "top_k" in refused.error.message
    assert answered.error is None


def test_messages_of_several_requests_are_computed_together(entry: Callable[..., Any], triton: Any) -> None:
    responses = entry().execute([text("hello", "where"), text("is"), text("where is my card")])
    assert [list(call.inputs["input_ids"].shape) for call in triton.calls] == [[4, 6]]
    labels = [response["label"].ravel().tolist() for response in responses]
    assert labels == [["größe".encode(), "größe".encode()], ["größe".encode()], [b"card"]]
    assert triton.calls[0].inputs["attention_mask"].sum(axis=1).tolist() == [3, 3, 3, 6]


def test_the_order_of_the_answers_is_that_of_the_requests(entry: Callable[..., Any]) -> None:
    messages = ["where is my card", "", "hello hello hello", "is", "where " * 20]
    model = entry()
    together = [row for response in model.execute([text(*messages, outputs=["logits"])]) for row in response["logits"]]
    alone = [model.execute([text(message, outputs=["logits"])])[0]["logits"][0] for message in messages]
    np.testing.assert_array_equal(together, alone)


def test_messages_are_cut_to_the_models_length_not_the_tokenizers(entry: Callable[..., Any], triton: Any) -> None:
    entry().execute([text("where " * 20)])
    assert triton.calls[0].inputs["input_ids"].shape == (1, 8)


def test_token_types_are_sent_to_a_model_that_takes_them(entry: Callable[..., Any], triton: Any) -> None:
    entry(inputs=["input_ids", "attention_mask", "token_type_ids"], pad_id=9, pad_type_id=4).execute(
        [text("hello", "")]
    )
    assert list(triton.calls[0].inputs) == ["input_ids", "attention_mask", "token_type_ids"]
    assert triton.calls[0].inputs["input_ids"].tolist() == [[2, 3, 9], [2, 8, 3]]
    assert triton.calls[0].inputs["token_type_ids"].tolist() == [[0, 0, 4], [0, 0, 0]]


def test_words_that_were_seen_and_others_are_cut_alike(entry: Callable[..., Any]) -> None:
    """The table of words and the library, in one batch: each message has the tokens that the library gives it."""
    model = entry()
    messages = ["where is my card", "größe", "where where hello?", "hello\u00a0is", "", "is [SEP] my", "Where IS"]
    for _ in range(2):
        assert [each.ids for each in model._encodings(messages)] == [
            model._tokenizer.encode(message).ids for message in messages
        ]
    assert model._words is not None


@pytest.mark.parametrize("message", ["", "\0", "a\0b", "👩‍👩‍👧‍👦", "אין לי כרטיס", "\u202e", " " * 1000])
def test_row_54_every_text_has_an_answer(entry: Callable[..., Any], message: str) -> None:
    (response,) = entry().execute([text(message)])
    assert response.error is None
    assert response["label"].shape == (1, 1)


@pytest.mark.parametrize("data", [b"\xff", b"ok \xed\xa0\x80", b"\xc3", "x".encode("utf-16")])
def test_row_54_bytes_that_are_no_text_are_refused_alone(entry: Callable[..., Any], data: bytes) -> None:
    refused, answered = entry().execute([text("fine", data), text("hello")])
    assert refused.error.code == "INVALID_ARG"
    assert "text 1 is not UTF-8" in refused.error.message
    assert answered["label"].tolist() == [["größe".encode()]]


def test_row_54_a_megabyte_of_text_is_refused(entry: Callable[..., Any]) -> None:
    refused, answered = entry().execute([text("x" * 2**20), text("x" * 2**16)])
    assert "1048576 bytes" in refused.error.message
    assert answered.error is None


def test_a_failed_call_is_the_error_of_its_requests_only(entry: Callable[..., Any], triton: Any) -> None:
    failure = triton.error("Exceeds maximum queue size", "UNAVAILABLE")
    triton.answer = lambda inputs: failure if inputs["input_ids"].shape[1] > 5 else by_length(inputs)
    model = entry(max_length=64)
    first, second, third = model.execute([text("hello"), text("hello", "where is my " * 9), text("is")])
    assert first.error is None
    assert second.error is failure
    assert third.error is None


def test_a_request_without_messages_is_refused_alone(entry: Callable[..., Any]) -> None:
    """With a row of logits for each token its longest message has no length, and the whole batch failed with it."""
    empty, answered = entry().execute([text(), text("hello")])
    assert (empty.error.code, answered.error) == ("INVALID_ARG", None)
    assert "one message" in empty.error.message


def test_nothing_is_called_where_nothing_can_be_read(entry: Callable[..., Any], triton: Any) -> None:
    (refused,) = entry().execute([text(b"\xff")])
    assert refused.error is not None
    assert triton.calls == []


@pytest.mark.parametrize(
    ("lengths", "waste", "groups"),
    [
        ([], 12, []),
        ([5], 12, [[0]]),
        ([5, 5, 5], 0, [[0, 1, 2]]),
        ([9, 5, 9], 0, [[1], [0, 2]]),
        ([9, 5, 9], 4, [[1, 0, 2]]),
        ([10, 11, 12, 30, 31], 8, [[0, 1, 2], [3, 4]]),
        ([1, 2, 3, 4, 5], 3, [[0, 1, 2], [3, 4]]),
    ],
)
def test_groups_are_of_like_length(
    triton: Any, entry: Callable[..., Any], tmp_path: Path, lengths: list[int], waste: int, groups: Any
) -> None:
    entry()
    assert triton.load(tmp_path / "text_model.py").groups_by_length(lengths, waste) == groups


def test_groups_hold_every_message_once_and_waste_no_more_than_allowed(
    triton: Any, entry: Callable[..., Any], tmp_path: Path
) -> None:
    entry()
    module = triton.load(tmp_path / "text_model.py")
    generator = np.random.default_rng(0)
    for _ in range(50):
        lengths = generator.integers(2, 80, size=generator.integers(1, 64)).tolist()
        groups = module.groups_by_length(lengths, 12)
        assert sorted(number for group in groups for number in group) == list(range(len(lengths)))
        for group in groups:
            longest = max(lengths[number] for number in group)
            assert sum(longest - lengths[number] for number in group) <= 12


HOLD = {"layout": "hold", "intra_op_thread_count": "1"}


@pytest.fixture
def held(entry: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """A text entry that holds its model: version 7 of the one that lies beside it."""
    save_model(tmp_path / "repository" / "intents_onnx" / "7" / "model.onnx")
    return lambda **changes: entry(HOLD, labels=["card", "other"], **changes)


def test_a_held_model_answers_as_the_called_one(
    held: Callable[..., Any], triton: Any, entry: Callable[..., Any]
) -> None:
    messages = ["where [SEP]", "", "[SEP] [CLS] where"]  # the table has 4 rows: other words would fail
    model = held()
    found = [model.execute([text(each, outputs=["logits"])])[0]["logits"].tolist() for each in messages[1:2]]
    together = model.execute([text(each, outputs=["logits"]) for each in ("", "")])
    assert triton.calls == []
    assert [each["logits"].tolist() for each in together] == [found[0], found[0]]
    ids = [2, 3]
    assert found[0] == [[sum(2 * token for token in ids), sum(2 * token + 1 for token in ids)]]


def test_a_held_model_that_fails_says_so_to_that_request_only(held: Callable[..., Any]) -> None:
    # Tokens above 3 are outside of the table; the long message goes in a call of its own.
    failed, answered = held(max_length=64).execute([text("where " * 40), text("")])
    assert failed.error.message.startswith("onnx runtime error")
    assert answered.error is None


def test_without_onnxruntime_a_model_is_called_and_the_log_says_so(
    held: Callable[..., Any], triton: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (response,) = entry_labels(held()).execute([text("hello", outputs=["logits"])])
    assert len(triton.calls) == 1
    assert response.error is None
    assert triton.warned == ["onnxruntime is not in the server's Python: intents_onnx is called instead of held"]


def test_a_file_that_is_not_there_is_called(entry: Callable[..., Any], triton: Any) -> None:
    (response,) = entry(HOLD).execute([text("hello")])
    assert response.error is None
    assert len(triton.calls) == 1
    assert triton.warned == ["its file is not beside this model: intents_onnx is called instead of held"]


def entry_labels(model: Any) -> Any:
    """The stand-in that is called answers with three logits."""
    model.labels.append("third")
    return model


# The tokenizer's library


def test_the_vendored_tokenizers_import_alone(tmp_path: Path) -> None:
    import subprocess

    entries.vendor_tokenizers(tmp_path / "site")
    assert len(list((tmp_path / "site" / "tokenizers").glob("*.abi3.so"))) == 1
    assert not list((tmp_path / "site").rglob("*.pyc"))
    code = "import sys; sys.path.insert(0, sys.argv[1]); import tokenizers; print(tokenizers.__file__)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(tmp_path / "site")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(tmp_path / "site" / "tokenizers" / "__init__.py")


def test_elsewhere_the_servers_tokenizers_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import platform
    import subprocess

    from deploykit.errors import RepositoryError

    commands: list[list[str]] = []

    def run(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no network\n")

    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(RepositoryError, match="no network"):
        entries.vendor_tokenizers(tmp_path / "site")
    assert commands[0][commands[0].index("--platform") + 1] == "manylinux2014_x86_64"
