"""Whether the onnxruntime inside a Triton release can load an ONNX file: a file newer than it fails there."""

from __future__ import annotations

__all__ = [
    "SECURITY_FLOOR",
    "Compatibility",
    "Limits",
    "known_targets",
    "limits_from_target",
    "preflight",
    "security_warning",
]

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import ExportError, UsageError
from deploykit.runners.untrusted import check_onnx, nodes_of_model

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

SECURITY_FLOOR = "25.07"
"""A request can run code in releases before this one (CVE-2025-23317, -23319: "all versions prior to 25.07"). It is the
least that can be asked for: NVIDIA's bulletins of 2026 (product-security 5865, 5875) ask for 26.07 or later."""

_PREFIX = "triton-"

# Sources: 24.04 to 26.08, the table "ONNX Runtime Versions" in docs/introduction/compatibility.md of
# triton-inference-server/server; 26.09, its pull request 8966; 24.01, its build.py as quoted in issue 8126; 23.12, its
# build.py at 2.41.0dev; 23.04, the README of onnxruntime_backend and issue 5730. Releases without a source are out.
_ONNXRUNTIME_OF_RELEASE = {
    "23.04": "1.14.1",
    "23.12": "1.16.3", "24.01": "1.16.3",
    "24.04": "1.17.3",
    "24.05": "1.18.0", "24.06": "1.18.0", "24.07": "1.18.1", "24.08": "1.18.1",
    "24.09": "1.19.2", "24.10": "1.19.2", "24.11": "1.19.2",
    "24.12": "1.20.1", "25.01": "1.20.1", "25.02": "1.20.1",
    "25.03": "1.21.0", "25.04": "1.21.0",
    "25.05": "1.22.0", "25.06": "1.22.0", "25.07": "1.22.0",
    "25.08": "1.23.0+1d1712fdaf",
    "25.09": "1.23.0", "25.10": "1.23.1", "25.11": "1.23.2", "25.12": "1.23.2", "26.01": "1.23.2",
    "26.02": "1.24.1", "26.03": "1.24.2", "26.04": "1.24.4", "26.05": "1.24.4", "26.06": "1.24.4",
    "26.07": "1.27.0",
    "26.08": "1.28.0",
    "26.09": "1.30.0",
}  # fmt: skip

# The newest opset of ai.onnx and of ai.onnx.ml, and the newest IR version. Measured by loading one-node models into the
# wheels 1.16.3, 1.17.3, 1.18.1, 1.19.2, 1.20.1, 1.21.0, 1.22.0, 1.23.0, 1.23.2, 1.24.4, 1.27.0, 1.28.0 and 1.30.0 from
# PyPI; 1.14 from onnxruntime's docs/reference/compatibility.md. (1.28 has schemas of opset 27 and refuses it: see pull
# request 8918 of triton-inference-server/server.)
_LIMITS_OF_ONNXRUNTIME = {
    "1.14": (18, 3, 8),
    "1.16": (19, 3, 9),
    "1.17": (20, 4, 9),
    "1.18": (21, 5, 10),
    "1.19": (21, 5, 10),
    "1.20": (21, 5, 10),
    "1.21": (22, 5, 10),
    "1.22": (22, 5, 10),
    "1.23": (23, 5, 11),
    "1.24": (25, 5, 13),
    "1.27": (26, 5, 13),
    "1.28": (26, 5, 13),
    "1.30": (26, 5, 13),
}

# com.microsoft operators by the first of those wheels that has their schema. 1.16.3 has what is not here; 1.14 was not
# looked at.
_OPERATORS_SINCE = {
    "1.17": ("DynamicTimeWarping", "EPContext", "GemmFloat8", "MoE", "UnfoldTensor", "WhisperBeamSearch"),
    "1.18": ("GemmaRotaryEmbedding", "QMoE", "SparseAttention"),
    "1.20": ("GatherBlockQuantized",),
    "1.23": ("PagedAttention",),
    "1.27": ("CausalConvWithState", "LinearAttention", "MatMulNBitsMlp", "MatMulNBitsQkv"),
    "1.30": (
        "EngramGate", "GatedAdd", "GatedDeltaNet", "GatedRMSNorm", "LinearAttentionGate", "MRotaryEmbedding",
        "MatMulBlockQuantizedFp4Weight", "MatMulBlockQuantizedFp8Weight", "NGramHashMapping",
        "VarlenCausalConvWithState",
    ),
}  # fmt: skip
# The first of those wheels that runs them with 8 bits.
_EIGHT_BITS_SINCE = {"MatMulNBits": "1.22", "GatherBlockQuantized": "1.23"}
_SINCE_OF_OPERATOR = {name: since for since, names in _OPERATORS_SINCE.items() for name in names}


@dataclass(frozen=True)
class Limits:
    """The newest of each that a release loads.

    Attributes:
        release: the Triton release, as YY.MM.
        onnxruntime: the version in its image.
        opset: of ai.onnx, the default domain.
        ml_opset: of ai.onnx.ml.
        ir_version: of the file format.
        operators_of: the onnxruntime release (MAJOR.MINOR) whose com.microsoft operators it has.
    """

    release: str
    onnxruntime: str
    opset: int
    ml_opset: int
    ir_version: int
    operators_of: str


@dataclass(frozen=True)
class Compatibility:
    """A file that the target loads: what the file needs beside what the target has.

    Attributes:
        target: the Triton release, as `triton-YY.MM`.
        limits: what it loads.
        opset: the file's, of the default domain.
        ir_version: the file's.
        warning: why this release should not be reachable from a network, where there is a reason.
    """

    target: str
    limits: Limits
    opset: int
    ir_version: int
    warning: str | None


def known_targets() -> tuple[str, ...]:
    """The targets whose onnxruntime is known, oldest first."""
    return tuple(_PREFIX + release for release in _ONNXRUNTIME_OF_RELEASE)


def limits_from_target(target: str) -> Limits:
    """What a target loads.

    Args:
        target: `triton-YY.MM`.

    Raises:
        UsageError: the target is not known; the hint names the nearest ones.
        ExportError: the release has no onnxruntime backend.
    """
    release = target.removeprefix(_PREFIX)
    if target == "triton-24.02":  # issues 6991 and 7027 of triton-inference-server/server
        raise ExportError("Triton 24.02's image has no onnxruntime backend", "take triton-24.04 or later")
    if not target.startswith(_PREFIX) or release not in _ONNXRUNTIME_OF_RELEASE:
        raise UsageError(f"{target} is not a known target", _nearest_targets(release))
    onnxruntime = _ONNXRUNTIME_OF_RELEASE[release]
    minor = onnxruntime.rpartition(".")[0]
    if "+" in onnxruntime:  # built from a commit before that version: only what the version before has is sure
        versions = list(_LIMITS_OF_ONNXRUNTIME)
        minor = versions[versions.index(minor) - 1]
    opset, ml_opset, ir_version = _LIMITS_OF_ONNXRUNTIME[minor]
    return Limits(release, onnxruntime, opset, ml_opset, ir_version, operators_of=minor)


def preflight(onnx_path: Path, target: str) -> Compatibility:
    """Refuse an ONNX file that is newer than what `target` loads.

    Args:
        onnx_path: the file; its external data is not read.
        target: `triton-YY.MM`, the oldest Triton release that must load it.

    Raises:
        ExportError: an opset, the IR version or a com.microsoft operator is newer than the target's; the hint says
            which release suffices, or what to export with.
        UsageError: the target is not known.
        ModelError: the file is damaged or unsafe.
    """
    import onnx

    limits = limits_from_target(target)
    check_onnx(onnx_path)
    model = onnx.load(onnx_path, load_external_data=False)
    excesses = _excesses(model, limits)
    if excesses:
        server = f"Triton {limits.release} (onnxruntime {limits.onnxruntime})"
        raise ExportError(f"{onnx_path} is too new for {server}: {'; '.join(excesses)}", _remedy(model, limits))
    return Compatibility(
        target=target,
        limits=limits,
        opset=_newest_opset(model, ("", "ai.onnx")),
        ir_version=model.ir_version,
        warning=security_warning(limits.release),
    )


def security_warning(release: str) -> str | None:
    """What to say of a Triton release (YY.MM) below the security floor; None where there is nothing to say."""
    if _month(release) >= _month(SECURITY_FLOOR):
        return None
    return (
        f"Triton {release} has holes through which a request can run code (CVE-2025-23317, CVE-2025-23319; fixed in"
        f" {SECURITY_FLOOR}): don't let it be reached from a network"
    )


def _excesses(model: ModelProto, limits: Limits) -> list[str]:
    """In words, everything of the model that is newer than the limits."""
    opset, ml_opset = _newest_opset(model, ("", "ai.onnx")), _newest_opset(model, ("ai.onnx.ml",))
    words = []
    if opset > limits.opset:
        words.append(f"opset {opset}, at most {limits.opset}")
    if ml_opset > limits.ml_opset:
        words.append(f"ai.onnx.ml opset {ml_opset}, at most {limits.ml_opset}")
    if model.ir_version > limits.ir_version:
        words.append(f"IR version {model.ir_version}, at most {limits.ir_version}")
    used = {node.op_type for node in nodes_of_model(model) if node.domain == "com.microsoft"}
    for name in sorted(used & _SINCE_OF_OPERATOR.keys()):
        since = _SINCE_OF_OPERATOR[name]
        if _version(since) > _version(limits.operators_of):
            words.append(f"com.microsoft {name} needs onnxruntime {since}")
    for name in sorted({node.op_type for node in nodes_of_model(model) if _bits(node) == 8} & _EIGHT_BITS_SINCE.keys()):
        since = _EIGHT_BITS_SINCE[name]
        if _version(since) > _version(limits.operators_of):
            words.append(f"com.microsoft {name} with 8 bits needs onnxruntime {since}")
    return words


def _bits(node: NodeProto) -> int:
    return next((int(each.i) for each in node.attribute if each.name == "bits"), 0)


def _remedy(model: ModelProto, limits: Limits) -> str:
    remedies = []
    enough = next((target for target in known_targets() if not _excesses(model, limits_from_target(target))), None)
    if enough is not None:
        remedies.append(f"serve with {enough} or later (-s export.target={enough})")
    if _newest_opset(model, ("", "ai.onnx")) > limits.opset:
        remedies.append(f"export with opset {limits.opset} (-s export.opset={limits.opset})")
    elif model.ir_version > limits.ir_version:
        remedies.append(f"save the file with ir_version {limits.ir_version}")
    return ", or ".join(remedies) or "export without what is too new"


def _newest_opset(model: ModelProto, domains: tuple[str, ...]) -> int:
    """onnxruntime checks every import, whether or not an operator of it is used; 0 without one."""
    imports = [*model.opset_import, *(entry for function in model.functions for entry in function.opset_import)]
    return max((entry.version for entry in imports if entry.domain in domains), default=0)


def _nearest_targets(release: str) -> str:
    known = known_targets()
    if _PREFIX + release in known:
        return f"write it as {_PREFIX}{release}"
    try:
        month = _month(release)
    except ValueError:
        return f"write it as {known[-1]}; known: {', '.join(known)}"
    older = [target for target in known if _month(target.removeprefix(_PREFIX)) < month]
    newer = [target for target in known if _month(target.removeprefix(_PREFIX)) > month]
    nearest = ", ".join((*older[-1:], *newer[:1]))
    # onnxruntime loads what its older versions loaded, so an older target is safe.
    return f"the nearest known: {nearest}" + ("; a newer server loads what the older loads" if older else "")


def _month(release: str) -> int:
    """Months since 2000, to order releases by."""
    year, dot, month = release.partition(".")
    if not (dot and year.isdecimal() and month.isdecimal()):
        raise ValueError(release)
    return int(year) * 12 + int(month)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
