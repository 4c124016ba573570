"""What a Triton server tells of itself: where requests spent their time, and what flatters a measurement."""

from __future__ import annotations

__all__ = [
    "ModelTimes",
    "breakdown_between",
    "flags_of",
    "queue_delay_ms",
    "read_statistics",
    "server_flags",
    "split_of",
]

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploykit.errors import ServerError
from deploykit.runners import Target
from deploykit.runners.triton_wire import parse_url

_PARTS = ("queue", "compute_input", "compute_infer", "compute_output")
_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class ModelTimes:
    """Since the server started: requests answered by a model, executions, nanoseconds in each part and in all."""

    requests: int
    executions: int
    parts_ns: Mapping[str, int]
    total_ns: int = 0


def read_statistics(target: Target) -> dict[str, ModelTimes]:
    """The counters of every model that has answered; a text entry and the model behind it are two.

    Raises:
        ServerError: the server does not tell.
    """
    found: dict[str, ModelTimes] = {}
    for model in _ask(target, "statistics")["model_stats"]:
        inner = model.get("inference_stats", {})
        parts = {part: int(inner.get(part, {}).get("ns", 0)) for part in _PARTS}
        success = inner.get("success", {})
        executions = int(model.get("execution_count", 0))
        times = ModelTimes(int(success.get("count", 0)), executions, parts, int(success.get("ns", 0)))
        if times.requests:
            found[str(model["name"])] = times
    return found


def breakdown_between(before: Mapping[str, ModelTimes], after: Mapping[str, ModelTimes]) -> dict[str, float]:
    """Mean milliseconds of a request by model and part, and the mean batch, between two readings."""
    found: dict[str, float] = {}
    for name, now in after.items():
        then = before.get(name, ModelTimes(0, 0, dict.fromkeys(_PARTS, 0)))
        if (requests := now.requests - then.requests) <= 0:
            continue
        for part in _PARTS:
            found[f"{name}.{part}"] = (now.parts_ns[part] - then.parts_ns[part]) / requests / 1e6
        found[f"{name}.total"] = (now.total_ns - then.total_ns) / requests / 1e6
        if (executions := now.executions - then.executions) > 0:
            found[f"{name}.requests_per_execution"] = requests / executions
    return found


def split_of(
    breakdown_ms: Mapping[str, float],
    model: str,
    *,
    lag_ms: float,
    service_ms: float,
    client_cpu_ms: float,
    delay_ms: float,
) -> dict[str, float]:
    """Where the mean latency of a request went, in milliseconds; the parts add up to it. Pure.

    `client` is how late it was sent and what the client computed for it; `network` the way there and back, the
    server's reading and writing included; `queue` waiting for an instance; `batch_wait` waiting for company, at most:
    the part of the server's queue that the configured delay can explain, since Triton counts both as one; `compute`
    from the queue to the response.

    Args:
        breakdown_ms: of `breakdown_between`.
        model: that was asked.
        lag_ms: mean, from due to sent.
        service_ms: mean, from sent to answered.
        client_cpu_ms: CPU time of the client for each request.
        delay_ms: how long the configuration lets a request wait for company.
    """
    if f"{model}.total" not in breakdown_ms:
        return {}
    inside, queue = breakdown_ms[f"{model}.total"], breakdown_ms[f"{model}.queue"]
    busy = min(client_cpu_ms, max(0.0, service_ms - inside))
    batch_wait = min(queue, delay_ms)
    return {
        "client": lag_ms + busy,
        "network": max(0.0, service_ms - inside - busy),
        "queue": queue - batch_wait,
        "batch_wait": batch_wait,
        "compute": inside - queue,
    }


def queue_delay_ms(target: Target) -> float:
    """How long the model's configuration lets a request wait for company.

    Raises:
        ServerError: the server does not tell.
    """
    config = _ask(target, "config", parse_url(target.location)[1])
    return int(config.get("dynamic_batching", {}).get("max_queue_delay_microseconds", 0)) / 1e3


def server_flags(target: Target, models: Iterable[str]) -> tuple[str, ...]:
    """What in the configuration of the models that answered makes latency look better or worse than it is, in words.

    Raises:
        ServerError: the server does not tell.
    """
    return flags_of([_ask(target, "config", model) for model in models])


def flags_of(configs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The same from the configurations of a model and of those behind it."""
    flags = []
    if any(config.get("response_cache", {}).get("enable") for config in configs):
        flags.append("the response cache is on: repeated messages are not inferred")
    if not any(config.get("model_warmup") or _warms_itself(config) for config in configs):
        flags.append("no model has a warm-up: the first requests of a fresh server are slower")
    return tuple(flags)


def _warms_itself(config: Mapping[str, Any]) -> bool:
    """A text entry that holds its model runs it before it is ready."""
    layout = config.get("parameters", {}).get("layout", {})
    return str(layout.get("string_value", "")) == "hold"


def _ask(target: Target, what: str, model: str = "") -> dict[str, Any]:
    """A server's statistics, or a model's configuration, in the JSON form that both protocols share."""
    address, _ = parse_url(target.location)
    try:
        if address.protocol == "grpc":
            from tritonclient.grpc import InferenceServerClient as GrpcClient

            with GrpcClient(address.netloc, ssl=address.tls) as client:
                if what == "statistics":
                    said = client.get_inference_statistics(as_json=True, client_timeout=_TIMEOUT_S)
                else:
                    said = client.get_model_config(model, as_json=True, client_timeout=_TIMEOUT_S)["config"]
        else:
            from tritonclient.http import InferenceServerClient as HttpClient

            with HttpClient(address.netloc, ssl=address.tls) as client:
                said = client.get_inference_statistics() if what == "statistics" else client.get_model_config(model)
    except (OSError, _inference_error()) as error:
        raise ServerError(f"{address} does not tell its {what}: {error}", "is it a Triton server?") from error
    found: dict[str, Any] = said
    return found


def _inference_error() -> type[Exception]:
    from tritonclient.utils import InferenceServerException

    failure: type[Exception] = InferenceServerException
    return failure
