"""The real server, embedded: a tiny package over both protocols, and what can go wrong with a process."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from deploykit.errors import LatencyError, RequestError, ServerError
from deploykit.latency.load import judge_load
from deploykit.latency.scenarios import run_concurrency, run_offline, run_server
from deploykit.pipeline.alone import parity_alone
from deploykit.pipeline.tune import TuneRule, tune_package
from deploykit.runners.base import Target
from deploykit.runners.triton_client import Rejected, TritonClient
from deploykit.runners.triton_runner import TritonRunner
from deploykit.tasks import find_task
from deploykit.triton import embedded, entries
from deploykit.triton.config import DynamicBatching, Tensor, tensor_model_config, text_model_config, write_config
from deploykit.triton.embedded import EmbeddedServer, ensure_installed, unsupported_reason
from deploykit.triton.engines import open_server
from deploykit.triton.settings import apply_settings, read_settings
from deploykit.triton.warden import SHARED_MEMORY

REASON = unsupported_reason()
pytestmark = [pytest.mark.triton, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = [*SPECIAL, "where", "is", "my", "card", "lost", "it", "please", "send", "a", "new", "one", "now", "hello"]
LABELS = ("lost", "größe", "other")
TENSORS = ("input_ids", "attention_mask")
MESSAGES = (
    "where is my card",
    "hello",
    "",
    "I lost it",
    "please send a new card now please now",
    "a\0b",
    "👩‍👩‍👧‍👦 hello",
    "אין לי כרטיס",
    "card " * 40,
)

# Sleeps before it answers, so that requests queue up.
SLOW = """
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        time.sleep(0.3)
        label, score = np.array([[b"late"]], dtype=np.object_), np.ones((1, 1), dtype=np.float32)
        tensors = [pb_utils.Tensor("label", label), pb_utils.Tensor("score", score)]
        return [pb_utils.InferenceResponse(tensors) for _ in requests]
"""


def save_tokenizer(path: Path) -> None:
    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(path))


def save_model(path: Path) -> None:
    """Logits from the mean over the tokens under the mask of random embeddings: what is padded changes nothing."""
    random = np.random.default_rng(0)
    constants = [
        numpy_helper.from_array(random.standard_normal((len(WORDS), 16)).astype(np.float32), "table"),
        numpy_helper.from_array(random.standard_normal((16, len(LABELS))).astype(np.float32), "head"),
        numpy_helper.from_array(np.array([1]), "one"),
        numpy_helper.from_array(np.array([2]), "two"),
    ]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "two"], ["column"]),
        helper.make_node("Mul", ["rows", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["sums"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "one"], ["counts"], keepdims=1),
        helper.make_node("Div", ["sums", "counts"], ["means"]),
        helper.make_node("MatMul", ["means", "head"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"]) for name in TENSORS]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(LABELS)])
    graph = helper.make_graph(nodes, "tiny", inputs, [output], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def write_package(repository: Path) -> None:
    """`intents` (text) and `intents_onnx` (tensors), and `slow` with a queue for one."""
    for name in ("intents", "intents_onnx", "slow"):
        (repository / name / "1").mkdir(parents=True)
    save_model(repository / "intents_onnx" / "1" / "model.onnx")
    (repository / "intents_onnx" / "labels.txt").write_text("\n".join(LABELS), encoding="utf-8")
    logits = Tensor("logits", "FP32", (len(LABELS),))
    write_config(
        repository / "intents_onnx",
        tensor_model_config(
            "intents_onnx",
            inputs=[Tensor(name, "INT64", (-1,)) for name in TENSORS],
            outputs=[logits],
            max_batch_size=8,
            threads=1,
        ),
    )
    folder = repository / "intents" / "1"
    model, *beside = find_task("text-classification").entry()
    shutil.copyfile(model, folder / "model.py")
    for source in beside:
        shutil.copyfile(source, folder / source.name)
    save_tokenizer(folder / "tokenizer.json")
    entries.vendor_tokenizers(folder / "site")
    entry = {
        "model": "intents_onnx",
        "labels": LABELS,
        "inputs": TENSORS,
        "max_length": 16,
        "pad_id": 0,
        "pad_type_id": 0,
    }
    (folder / "entry.json").write_text(json.dumps(entry))
    answer = [Tensor("label", "BYTES", (-1,)), Tensor("score", "FP32", (-1,))]
    write_config(
        repository / "intents",
        text_model_config("intents", outputs=[*answer, logits], max_batch_size=8, batching=DynamicBatching()),
    )
    (repository / "slow" / "1" / "model.py").write_text(SLOW)
    config = text_model_config("slow", outputs=answer, max_batch_size=1, batching=DynamicBatching())
    config.dynamic_batching.default_queue_policy.max_queue_size = 1
    write_config(repository / "slow", config)


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def await_true(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def traces(server: EmbeddedServer) -> Any:
    assert server._traces is not None
    return server._traces


def regions(left: Any) -> list[Path]:
    assert left.shm_prefix.startswith("deploykit_")
    return list(SHARED_MEMORY.glob(f"{left.shm_prefix}*"))


def processes(server: EmbeddedServer) -> list[psutil.Process]:
    warden = server._warden
    assert warden is not None
    return [psutil.Process(warden.pid), *psutil.Process(warden.pid).children(recursive=True)]


def gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ensure_installed()
    folder = tmp_path_factory.mktemp("a folder with blanks & more") / "model repository"
    write_package(folder)
    return folder


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(repository) as running:
        yield running


@pytest.fixture(params=["grpc", "http"])
def url(request: pytest.FixtureRequest, server: EmbeddedServer) -> str:
    return str(getattr(server.urls, request.param))


def in_process(repository: Path, message: str) -> np.ndarray:
    import onnxruntime

    tokenizer = Tokenizer.from_file(str(repository / "intents" / "1" / "tokenizer.json"))
    tokenizer.enable_truncation(16)
    ids = np.array([tokenizer.encode(message).ids], dtype=np.int64)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        repository / "intents_onnx" / "1" / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    logits: np.ndarray = session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
    return logits


def test_answers_sent_singly_are_those_in_process_to_the_bit(url: str, repository: Path) -> None:
    with TritonRunner(Target("triton", f"{url}/intents")) as runner:
        for message in MESSAGES:
            found = runner.infer([message])
            expected = in_process(repository, message)
            np.testing.assert_array_equal(found["logits"], expected)
            answer = found["answer"][0]
            assert answer.label == LABELS[int(expected.argmax())]
            shares = np.exp(expected[0]) / np.exp(expected[0]).sum()
            np.testing.assert_allclose(answer.score, shares.max(), rtol=1e-5)


def test_a_batch_of_unequal_lengths_keeps_its_order(url: str, repository: Path) -> None:
    messages = MESSAGES[:8]
    with TritonRunner(Target("triton", f"{url}/intents")) as runner:
        found = runner.infer(messages)
    expected = np.concatenate([in_process(repository, message) for message in messages])
    np.testing.assert_allclose(found["logits"], expected, rtol=1e-5, atol=1e-6)


def test_top_k_gives_the_alternatives(url: str) -> None:
    with TritonClient(url) as client:
        (answer,) = client.ask("intents", ["where is my card"], top_k=99)
    assert sorted([answer.label, *(label for label, _ in answer.alternatives)]) == sorted(LABELS)
    assert answer.score + sum(score for _, score in answer.alternatives) == pytest.approx(1.0, abs=1e-5)


def test_the_tensor_entry_answers_too(url: str) -> None:
    ids = np.array([[2, 4, 3], [2, 5, 3]], dtype=np.int64)
    with TritonClient(url) as client:
        found = client.infer("intents_onnx", {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        said = client.metadata("intents_onnx")
    assert found["logits"].shape == (2, 3)
    assert [tensor.name for tensor in said.inputs] == list(TENSORS)


def test_many_clients_get_their_own_answers(server: EmbeddedServer, repository: Path) -> None:
    wrong: list[str] = []

    def ask(message: str) -> None:
        expected = LABELS[int(in_process(repository, message).argmax())]
        with TritonClient(str(server.urls.grpc)) as client:
            wrong.extend(message for _ in range(20) if client.ask("intents", [message])[0].label != expected)

    threads = [threading.Thread(target=ask, args=(message,)) for message in MESSAGES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_bad_request_is_refused_with_the_reason(url: str) -> None:
    ids = np.array([[2, 999, 3]], dtype=np.int64)
    with TritonClient(url) as client:
        with pytest.raises(RequestError, match="top_k must be a positive integer"):
            client.ask("intents", ["hello"], top_k=0)
        with pytest.raises(RequestError, match="batch-size must be <= 8"):
            client.ask("intents", ["hello"] * 9)
        with pytest.raises(RequestError, match="onnx runtime error"):
            client.infer("intents_onnx", {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        assert client.ask("intents", ["hello"])


def test_row_50_an_unknown_model_is_named_with_those_there(url: str) -> None:
    with TritonClient(url) as client, pytest.raises(RequestError, match="has no model 'intent'") as caught:
        client.ask("intent", ["hello"])
    assert caught.value.hint == "it serves: intents, intents_onnx, slow"


def test_row_54_what_is_no_text_or_too_much_is_refused(url: str) -> None:
    with TritonClient(url) as client:
        for data, words in ((b"\xed\xa0\x80", "not UTF-8"), (b"x" * 2**20, "1048576 bytes")):
            with pytest.raises(RequestError, match=words):
                client.infer("intents", {"text": np.array([[data]], dtype=np.object_)})
        assert client.ask("intents", ["hello"])


def test_row_57_a_full_queue_is_a_rejection(url: str) -> None:
    found: list[str] = []

    def ask() -> None:
        with TritonClient(url, retries=False) as client:
            try:
                found.append(str(client.ask("slow", ["hello"], task=find_task("text-classification"))[0]))
            except Rejected:
                found.append("rejected")

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {"late", "rejected"}


def test_parity_with_a_url_asks_many_clients_and_the_other_address(
    server: EmbeddedServer, repository: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data.csv"
    data.write_text("text\n" + "".join(f"{message} {number}\n" for message in WORDS[4:] for number in range(30)))
    report = parity_alone(
        str(repository / "intents"), f"{server.urls.grpc}/intents", also=f"{server.urls.http}/intents",
        data=str(data), columns=("text", None), max_drop=0.05, max_flips=None, tolerance=None, confidence=0.95,
        tokenizer=None, task="text-classification",
    )  # fmt: skip
    assert report.verdict == "pass", report.checks
    assert report.served
    checks = {check.check: check for check in report.checks}
    assert checks["answers under 16 clients against given singly"].n == report.n
    assert checks["the same numbers by the other address"].figure <= 1e-5


def test_load_through_the_server_is_timed_and_split(url: str) -> None:
    """Server and Offline, over both protocols: every request answered, time in the server by model and part."""
    target = Target("triton", f"{url}/intents")
    for result in (
        run_server(target, ["where is my card", "hello"], rate_per_s=20, seconds=2),
        run_offline(target, ["where is my card", "hello"] * 20, clients=8),
    ):
        assert (result.rejected, result.errors) == (0, 0), result.first_error
        assert len(result.latencies_ms) == result.due > 10
        assert (result.service_ms <= result.latencies_ms + 1e-6).all()
        assert {"intents.queue", "intents.compute_infer", "intents_onnx.queue"} <= set(result.breakdown_ms)
        assert not any("cache" in flag for flag in result.flags)


def test_row_57_a_full_queue_is_counted_apart_under_load(url: str) -> None:
    result = run_server(Target("triton", f"{url}/slow"), ["x"], rate_per_s=60, seconds=2)
    assert result.rejected > 0
    assert result.errors == 0, result.first_error
    assert judge_load(result).outcome in ("fail", "invalid")


def test_load_on_a_model_that_is_not_there_is_an_error(url: str) -> None:
    with pytest.raises(LatencyError, match="has no model 'absent'"):
        run_offline(Target("triton", f"{url}/absent"), ["x"] * 5)


def test_the_tensor_entry_is_put_under_load_with_the_tokens_of_real_messages(url: str, repository: Path) -> None:
    folder = str(repository / "intents" / "1")
    target = Target("triton", f"{url}/intents_onnx", tokenizer=folder)
    result = run_server(target, list(MESSAGES), rate_per_s=30, seconds=1)
    assert (result.rejected, result.errors) == (0, 0), result.first_error
    assert len(result.latencies_ms) == result.due > 10
    assert set(result.breakdown_ms) >= {"intents_onnx.queue"}
    assert not any(name.startswith("intents.") for name in result.breakdown_ms)
    with pytest.raises(LatencyError, match="how texts become tokens") as caught:
        run_server(replace(target, tokenizer=None), ["x"], rate_per_s=30, seconds=1)
    assert "--tokenizer" in str(caught.value.hint)


def test_clients_at_once_are_counted_and_their_time_is_split(url: str) -> None:
    result = run_concurrency(Target("triton", f"{url}/intents"), list(MESSAGES), clients=4, seconds=1)
    assert (result.errors, result.clients) == (0, 4), result.first_error
    assert len(result.latencies_ms) > len(MESSAGES)  # asked again and again
    assert set(result.split_ms) == {"client", "network", "queue", "batch_wait", "compute"}
    assert sum(result.split_ms.values()) == pytest.approx(result.latencies_ms.mean(), rel=0.2)


def test_a_held_model_answers_to_the_bit_and_survives_bad_requests(repository: Path, tmp_path: Path) -> None:
    copy = tmp_path / "repository"
    for name in ("intents", "intents_onnx"):
        shutil.copytree(repository / name, copy / name)
    apply_settings(copy, "intents", replace(read_settings(copy, "intents"), layout="hold", instances=2))
    with EmbeddedServer(copy) as running:
        target = Target("triton", f"{running.urls.http}/intents")
        with TritonRunner(target) as runner:
            for message in MESSAGES:
                np.testing.assert_array_equal(runner.infer([message])["logits"], in_process(copy, message))
        with TritonClient(str(running.urls.grpc)) as client:
            with pytest.raises(RequestError, match="top_k"):
                client.ask("intents", ["hello"], top_k=0)
            assert client.ask("intents", ["hello"])
        breakdown = run_offline(target, ["hello"] * 8).breakdown_ms
    assert "intents.compute_infer" in breakdown
    assert "intents_onnx.compute_infer" not in breakdown  # it was not called


def test_a_package_is_tuned(repository: Path, tmp_path: Path) -> None:
    copy = tmp_path / "repository"
    for name in ("intents", "intents_onnx"):
        shutil.copytree(repository / name, copy / name)
    before, history = read_settings(copy, "intents"), tmp_path / "tune.jsonl"
    # Whatever holds 500 a second is enough, so that each trial is one short run.
    rule = TuneRule(p99_ms=2000.0, trials=2, seconds=1.0, most_per_s=500.0)
    tuned = tune_package(copy, "intents", list(MESSAGES), rule, history=history)
    assert len(tuned.trials) == len(history.read_text().splitlines()) == 2
    assert tuned.trials[0].settings == before != tuned.trials[1].settings
    assert not any(trial.changed_answers for trial in tuned.trials)
    assert all(point.n > 0 and point.split_ms for trial in tuned.trials for point in trial.points)
    assert read_settings(copy, "intents") == tuned.best.settings


def test_metrics_are_served(server: EmbeddedServer) -> None:
    with urllib.request.urlopen(str(server.urls.metrics), timeout=10) as reply:
        assert b"nv_inference_request_success" in reply.read()


def test_only_loopback_is_listened_on(server: EmbeddedServer) -> None:
    found = [each for process in processes(server) for each in process.net_connections("inet")]
    listening = {each.laddr.ip.removeprefix("::ffff:") for each in found if each.status == "LISTEN"}
    assert listening == {"127.0.0.1"}


def test_the_repository_stays_as_it_is_and_nothing_is_left(repository: Path, tmp_path: Path) -> None:
    before = digests(repository)
    log = tmp_path / "log"
    with open_server("embedded", repository, ["intents", "intents_onnx"], log=log) as running:
        assert isinstance(running, EmbeddedServer)
        family, left = processes(running), traces(running)
        assert len(regions(left)) == 2
        with TritonClient(str(running.urls.grpc)) as client:
            client.ask("intents", ["hello"])
            assert not client.ready("slow")
    assert digests(repository) == before
    assert regions(left) == []
    assert all(gone(process) for process in family)
    assert not left.scratch.exists()
    assert "Started HTTPService" in log.read_text()


def test_a_model_that_fails_to_load_is_named_in_the_servers_words(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "repository"
    shutil.copytree(repository / "intents_onnx", broken / "intents_onnx")
    (broken / "intents_onnx" / "1" / "model.onnx").write_bytes(b"no model")
    left: list[Any] = []
    remove = embedded._Traces.remove
    monkeypatch.setattr(embedded._Traces, "remove", lambda self, **kwargs: left.append(self) or remove(self, **kwargs))
    failing = EmbeddedServer(broken)
    with pytest.raises(ServerError, match=r"failed to load 'intents_onnx' version 1: .*INVALID_PROTOBUF"):
        failing.start()
    assert not failing.running
    assert regions(left[0]) == []
    assert not left[0].scratch.exists()
    assert not left[0].log.exists()


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine may have a GPU")
def test_row_46_a_gpu_instance_without_a_gpu_is_refused_before_it_loads(repository: Path, tmp_path: Path) -> None:
    broken = tmp_path / "repository"
    shutil.copytree(repository / "intents_onnx", broken / "intents_onnx")
    config = broken / "intents_onnx" / "config.pbtxt"
    config.write_text(config.read_text().replace("KIND_CPU", "KIND_GPU"))
    with pytest.raises(ServerError, match="KIND_GPU but no GPUs are available"):
        EmbeddedServer(broken).start()


def test_a_model_that_is_not_there_is_named(repository: Path) -> None:
    with pytest.raises(ServerError, match="'absent': model not found"), EmbeddedServer(repository, ["absent"]):
        pass


def test_a_python_model_that_ends_at_once_is_an_error(repository: Path, tmp_path: Path) -> None:
    broken = tmp_path / "repository"
    shutil.copytree(repository / "slow", broken / "slow")
    (broken / "slow" / "1" / "model.py").write_text("import os\nos._exit(3)\n")
    with pytest.raises(ServerError, match=r"Python stub .* died"):
        EmbeddedServer(broken).start()


def test_row_50_a_port_taken_after_the_look_is_named(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        free = embedded._free_ports(0, 0, 0)
        monkeypatch.setattr(embedded, "_free_ports", lambda *asked: (free[0], port, free[2]))
        with pytest.raises(ServerError, match=f"'127.0.0.1:{port}' already in use"):
            EmbeddedServer(
                repository, ["intents_onnx"], http_port=free[0], grpc_port=port, metrics_port=free[2]
            ).start()


@pytest.mark.parametrize("model", ["intents", "intents_onnx"])
def test_row_56_a_dead_stub_ends_the_server_and_leaves_nothing(repository: Path, model: str) -> None:
    with EmbeddedServer(repository, ["intents", "intents_onnx"]) as running:
        family, left = processes(running), traces(running)
        (stub,) = (each for each in family if f"/{model}/" in " ".join(each.cmdline()) and "stub" in each.cmdline()[0])
        stub.kill()
        await_true(lambda: not running.running)
        with pytest.raises(ServerError, match=r"Python stub .* died"):
            running.raise_if_ended()
        with TritonClient(str(running.urls.grpc)) as client, pytest.raises(ServerError, match="no server listens"):
            client.ready(model)
        await_true(lambda: all(gone(process) for process in family))
        assert regions(left) == []


def test_a_killed_server_is_noticed_and_leaves_nothing(repository: Path) -> None:
    with EmbeddedServer(repository, ["intents_onnx"]) as running:
        running.raise_if_ended()
        family, left = processes(running), traces(running)
        family[1].kill()
        await_true(lambda: not running.running)
        with pytest.raises(ServerError, match="the Triton server ended"):
            running.raise_if_ended()
    assert all(gone(process) for process in family)
    assert regions(left) == []


def test_the_server_does_not_outlive_a_killed_parent(repository: Path, tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, time\n"
        "from deploykit.triton.embedded import EmbeddedServer\n"
        "with EmbeddedServer(pathlib.Path(sys.argv[1]), ['intents_onnx']) as server:\n"
        "    print(server._traces.shm_prefix, flush=True)\n"
        "    time.sleep(300)\n"
    )
    command = [sys.executable, "-c", code, str(repository)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        assert parent.stdout is not None
        prefix = parent.stdout.readline().strip()
        family = psutil.Process(parent.pid).children(recursive=True)
        os.killpg(parent.pid, signal.SIGKILL)
    assert prefix.startswith("deploykit_")
    assert len(family) >= 3
    await_true(lambda: all(gone(process) for process in family) and not list(SHARED_MEMORY.glob(f"{prefix}*")))


def test_two_servers_at_once_do_not_meet(server: EmbeddedServer, repository: Path) -> None:
    with EmbeddedServer(repository, ["intents", "intents_onnx"]) as other:
        assert {other.urls.http, other.urls.grpc} & {server.urls.http, server.urls.grpc} == set()
        with TritonClient(str(other.urls.grpc)) as client:
            assert client.ask("intents", ["hello"])
    with TritonClient(str(server.urls.grpc)) as client:
        assert client.ask("intents", ["hello"])


def test_a_server_that_runs_is_an_engine(server: EmbeddedServer, repository: Path) -> None:
    with open_server(str(server.urls.grpc), repository, ["intents"]) as found:
        assert found.urls.grpc == server.urls.grpc
    assert server.running


def test_stop_may_come_twice_and_a_start_may_follow(repository: Path) -> None:
    running: Any = EmbeddedServer(repository, ["intents_onnx"])
    for _ in range(2):
        running.start()
        running.stop()
        running.stop()
    assert not running.running
