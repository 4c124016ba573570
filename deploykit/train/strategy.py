"""What of a model is trained, and how fast: the head, some layers, all, or an adapter that is merged in the end.

Layer-wise learning rates and gradual unfreezing are those of Howard and Ruder 2018 (ULMFiT, sections 3.2 and 3.3).
"""

from __future__ import annotations

__all__ = [
    "ADAPTERS", "Adapter", "adapt", "freeze", "layer_rates", "sharing_out", "stack_depth", "trained_shares",
    "unfreezing",
]  # fmt: skip

import importlib
import importlib.util
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deploykit.errors import MissingDependencyError, TrainingError
from deploykit.recipe import Finetune
from deploykit.train.arguments import precision_of
from deploykit.train.base_bits import in_full, size_of, store_in_bits
from deploykit.train.processes import on_cpu, processes

ADAPTERS = ("lora", "dora", "adalora", "ia3", "loha", "lokr", "oft")
"""The strategies that `peft` trains and merges."""
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")


@dataclass(frozen=True)
class Adapter:
    """A model with an adapter in it.

    Attributes:
        wrapped: peft's model around it.
        adaptive: whether its ranks are shared out while it is trained (AdaLoRA).
        penalty_weight: of what keeps AdaLoRA's factors orthogonal; 0 for the others.
        in_bits: whether the weights under it lie in few bits.
    """

    wrapped: Any
    adaptive: bool
    penalty_weight: float
    in_bits: bool

    def merged(self) -> Any:
        """The model with the adapter's weights added to its own, as the model was before."""
        return in_full(self.wrapped.get_base_model()) if self.in_bits else self.wrapped.merge_and_unload()

    def penalty(self) -> Any:
        """How far AdaLoRA's factors are from orthogonal, a scalar tensor.

        Zhang et al. 2023, equation 4; the norms are averaged, not squared, as in the authors' code and in peft.
        """
        import torch

        found = []
        for name, value in self.wrapped.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                products = value @ value.T if "lora_A" in name else value.T @ value
                found.append(torch.linalg.matrix_norm(products - torch.eye(len(products), device=value.device)))
        return self.penalty_weight * sum(found) / max(len(found), 1)

    def share_out(self, step: int) -> None:
        """Give the ranks to the matrices that need them most; after a step of the optimizer, before gradients go."""
        self.wrapped.base_model.update_and_allocate(step)


def freeze(network: Any, settings: Finetune) -> None:
    """Freeze what is not to be trained; the head always is.

    Raises:
        TrainingError: more layers are to be trained than there are.
    """
    base, depth, layers = network.base_model, stack_depth(network), settings.trained_layers
    if settings.strategy == "last_layers" and layers > depth:
        raise TrainingError(
            f"finetune.trained_layers={layers}, and the model has {depth}",
            "train fewer of them, or all: finetune.strategy=full",
        )
    norms = {value for module in base.modules() if _is_norm(module) for value in module.parameters()}
    embeddings: set[Any] = set()
    if settings.freeze_embeddings and network.main_input_name == "input_ids":  # their gradient costs most
        table = getattr(base, "embeddings", network.get_input_embeddings())
        embeddings = set(table.parameters())

    def is_trained(name: str, value: Any) -> bool:
        layer = _layer_of(name)
        if settings.strategy == "last_layers":
            return "pooler" in name if layer is None else layer >= depth - layers
        return {
            "head": False,
            "prompt": False,
            "p_tuning": False,
            "prefix": False,  # it comes later, and is trained
            "bias": name.endswith("bias"),  # BitFit (Ben Zaken et al. 2022)
            "layer_norm": value in norms,
        }.get(settings.strategy, value not in embeddings)

    for name, value in base.named_parameters():
        value.requires_grad = is_trained(name, value)


def adapt(network: Any, settings: Finetune, total_steps: int) -> Adapter:
    """Put an adapter into every linear layer of the encoder; the head is trained whole.

    Args:
        network: the model; it keeps its class, and what it computes at first.
        settings: with a strategy of `ADAPTERS`.
        total_steps: of the training.

    Raises:
        MissingDependencyError: `peft` is not installed.
        TrainingError: the adapter does not fit the model.
    """
    if importlib.util.find_spec("peft") is None:
        raise MissingDependencyError(
            f"finetune.strategy={settings.strategy} needs peft", "pip install 'deploykit[peft]'"
        )
    import torch

    peft: Any = importlib.import_module("peft")
    linear = _linear_names(network)
    if settings.quantized_base != "none":
        compute = torch.bfloat16 if precision_of(settings.precision) == "bf16" else torch.float32
        device = "cpu" if on_cpu() else processes().device
        store_in_bits(network, linear, settings.quantized_base, compute=compute, device=device)
    rank, alpha = settings.adapter_rank, settings.adapter_alpha
    shared: dict[str, Any] = {"target_modules": linear}
    dropout = settings.adapter_dropout
    # IA3 rescales keys, values and what the FFN's second product takes (Liu et al. 2022, section 3.3).
    seconds = [name for name in linear if re.search(r"(?<!attention)\.output\.dense$|lin2$|fc2$", name)]
    rescaled = [name for name in linear if re.search(r"[._](?:k|v|key|value)(?:_lin|_proj)?$", name)] + seconds
    made = {
        "lora": lambda: peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, **shared),
        "dora": lambda: peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, use_dora=True, **shared),
        "adalora": lambda: peft.AdaLoraConfig(
            init_r=2 * rank, target_r=rank, lora_alpha=alpha, lora_dropout=dropout, total_step=total_steps,
            tinit=total_steps // 10, tfinal=total_steps // 3, deltaT=max(1, total_steps // 100), **shared,
        ),
        "ia3": lambda: peft.IA3Config(target_modules=rescaled or linear, feedforward_modules=seconds),
        "loha": lambda: peft.LoHaConfig(r=rank, alpha=alpha, **shared),
        "lokr": lambda: peft.LoKrConfig(r=rank, alpha=alpha, **shared),
        "oft": lambda: peft.OFTConfig(r=rank, oft_block_size=0, **shared),
    }  # fmt: skip
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of transformers' old names, and of layers that it knows all the same
            wrapped = peft.get_peft_model(network, made[settings.strategy]())
    except (ValueError, AssertionError, RuntimeError) as error:
        raise TrainingError(
            f"finetune.strategy={settings.strategy} does not fit the model: {error}", "use lora, or full"
        ) from error
    for name, module in network.named_children():
        if name != network.base_model_prefix:
            module.requires_grad_(True)
    adaptive = settings.strategy == "adalora"
    return Adapter(wrapped, adaptive, 0.5 if adaptive else 0.0, settings.quantized_base != "none")


def layer_rates(network: Any, settings: Finetune) -> list[dict[str, Any]] | None:
    """The optimizer's groups: each layer learns `layer_decay` times as fast as the one above it.

    Returns:
        groups of `params`, `lr` and `weight_decay`: the head first, the embeddings last. With the strategy `gradual`
        they hold what is frozen at first, too. None where all layers learn alike, which is the Trainer's own way.
    """
    if settings.layer_decay == 1 and settings.strategy != "gradual":
        return None
    from transformers.trainer_pt_utils import get_parameter_names

    depth = stack_depth(network)
    base = network.base_model_prefix
    decayed = set(get_parameter_names(network, _norm_classes(network)))
    groups: dict[tuple[int, bool], list[Any]] = {}
    for name, value in network.named_parameters():
        if not value.requires_grad and not _thaws(name, base, settings):
            continue
        decays = name in decayed and not name.endswith("bias")
        groups.setdefault((_height(name, base, depth), decays), []).append(value)
    return [
        {
            "params": values,
            "lr": settings.learning_rate * settings.layer_decay ** (depth + 1 - height),
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for (height, decays), values in sorted(groups.items(), key=lambda each: (-each[0][0], each[0][1]))
    ]


def sharing_out(adapter: Adapter) -> Any:
    """The callback that lets AdaLoRA share out its ranks."""
    from transformers import TrainerCallback

    class ShareOut(TrainerCallback):  # type: ignore[misc]
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            adapter.share_out(state.global_step)

    return ShareOut()


def unfreezing(network: Any, settings: Finetune, total_steps: int) -> Any:
    """The callback of gradual unfreezing: the head alone at first, then one layer more from above, all in the end.

    The layers come in equal steps over the first half of the training.
    """
    from transformers import TrainerCallback

    base, depth = network.base_model_prefix, stack_depth(network)
    lowest = 1 if settings.freeze_embeddings else 0

    class Unfreeze(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            done = 2 * state.global_step / max(total_steps, 1)
            line = max(lowest, depth + 1 - int(done * (depth + 1)))
            for name, value in network.named_parameters():
                if name.startswith(f"{base}."):
                    value.requires_grad = _height(name, base, depth) >= line

    return Unfreeze()


def stack_depth(network: Any) -> int:
    """How many layers a model has."""
    found = [layer for name, _ in network.named_parameters() if (layer := _layer_of(name)) is not None]
    return max(found, default=-1) + 1


def _layer_of(name: str) -> int | None:
    found = _LAYER.search(name)
    return None if found is None else int(found[1])


def _height(name: str, base: str, depth: int) -> int:
    """0 for the embeddings, then the layers, then the head and the pooler."""
    layer = _layer_of(name)
    if layer is not None:
        return layer + 1
    return 0 if name.startswith(f"{base}.") and "pooler" not in name else depth + 1


def _thaws(name: str, base: str, settings: Finetune) -> bool:
    """Whether what is frozen now is trained later."""
    if settings.strategy != "gradual":
        return False
    return not settings.freeze_embeddings or _height(name, base, 1) > 0


def _linear_names(network: Any) -> list[str]:
    """The names of the linear layers in the encoder's stack."""
    import torch

    modules = network.named_modules()
    return [
        name for name, module in modules if isinstance(module, torch.nn.Linear) and _layer_of(f"{name}.") is not None
    ]


def _is_norm(module: Any) -> bool:
    return "norm" in type(module).__name__.lower()


def _norm_classes(network: Any) -> list[type]:
    return list({type(module) for module in network.modules() if _is_norm(module)})


def trained_shares(parameters: Sequence[Any]) -> tuple[int, int]:
    """How many of the numbers are trained, and how many there are."""
    trained = sum(value.numel() for value in parameters if value.requires_grad)
    return trained, sum(map(size_of, parameters))
