"""QLoRA: the frozen weights lie in few bits while an adapter learns beside them (Dettmers et al. 2023, section 3).

bitsandbytes stores and multiplies them, on a GPU or a CPU. In the end they are written out in full again, with the
adapter's part added: what is shipped is the plain model that was trained, rounding and all.
"""

from __future__ import annotations

__all__ = ["in_full", "size_of", "store_in_bits"]

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any, Literal

from deploykit.errors import MissingDependencyError

Bits = Literal["nf4", "int8"]


def store_in_bits(network: Any, names: Sequence[str], kind: Bits, *, compute: Any, device: Any) -> None:
    """Put linear layers that store their weights in few bits in the place of a model's own.

    Args:
        network: the model.
        names: of its linear layers.
        kind: nf4: four bits by normal quantiles, their scales in eight bits; int8: eight bits a row (LLM.int8).
        compute: the number format that is computed in.
        device: where it is trained: the weights are rounded on their way there.

    Raises:
        MissingDependencyError: bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingDependencyError(
            f"finetune.quantized_base={kind} needs bitsandbytes", "pip install 'bitsandbytes>=0.50'"
        )
    bnb: Any = importlib.import_module("bitsandbytes")
    for name in names:
        plain = network.get_submodule(name)
        shape = (plain.in_features, plain.out_features, plain.bias is not None)
        weight = plain.weight.data
        if kind == "nf4":
            layer = bnb.nn.Linear4bit(*shape, compute_dtype=compute, quant_type="nf4", compress_statistics=True)
            layer.weight = bnb.nn.Params4bit(
                weight, requires_grad=False, quant_type="nf4", compress_statistics=True, module=layer
            )
        else:
            layer = bnb.nn.Linear8bitLt(*shape, has_fp16_weights=False, threshold=0.0)
            layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        layer.bias = plain.bias
        network.set_submodule(name, layer.to(device))
    setattr(network, "is_loaded_in_4bit" if kind == "nf4" else "is_loaded_in_8bit", True)  # peft looks at it


def in_full(network: Any) -> Any:
    """The model with plain linear layers: the stored weights written out, what LoRA learned added.

    Args:
        network: the model that an adapter was put into, with stored weights under it.
    """
    import torch
    from peft.tuners.lora import LoraLayer
    from peft.utils.integrations import dequantize_bnb_weight

    for name, module in list(network.named_modules()):
        if isinstance(module, LoraLayer):
            adapted: Any = module
            base = adapted.get_base_layer()
            learned = adapted.get_delta_weight("default").float()
            stored = dequantize_bnb_weight(base.weight, state=getattr(base, "state", None)).float()
            plain = torch.nn.Linear(
                base.in_features, base.out_features, base.bias is not None, device=learned.device, dtype=learned.dtype
            )
            with torch.no_grad():
                plain.weight.copy_(stored.view_as(learned) + learned)
                if base.bias is not None:
                    plain.bias.copy_(base.bias)
            network.set_submodule(name, plain)
    for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        if hasattr(network, flag):
            delattr(network, flag)
    return network


def size_of(value: Any) -> int:
    """How many numbers a parameter holds; two of four bits lie in a byte."""
    state = getattr(value, "quant_state", None)
    return int(value.numel() if state is None else state.shape.numel())
