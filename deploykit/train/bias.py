"""The bias of the layer that gives a model's logits: where it begins, and where it is moved to once all is learned."""

from __future__ import annotations

__all__ = ["begin_at_shares", "move_head"]

from collections.abc import Sequence
from typing import Any

import numpy as np

from deploykit.errors import TrainingError
from deploykit.train.rows import NO_LABEL, Row


def begin_at_shares(network: Any, rows: Sequence[Row]) -> None:
    """Let a new head of independent labels begin with each as likely as it is (Lin et al. 2017, section 4.1).

    Each label is rare. From even odds the first steps make all of them unlikely at once, for whatever message, through
    the encoder too: at high rates its states end up the same for all messages, and it learns no more.
    A head that has learned, or has no bias, stays as it is.
    """
    import torch

    head = _head(network, network.config.num_labels)
    if head is None or bool(head.bias.any()):
        return
    known = [row["labels"] for row in rows if row["labels"][0] != NO_LABEL]
    share = (np.sum(known, axis=0) + 0.5) / (len(known) + 1)
    with torch.no_grad():
        head.bias.copy_(torch.from_numpy(np.log(share / (1 - share))))


def move_head(network: Any, shift: float, outputs: int) -> None:
    """Take `shift` off all `outputs` logits, through the bias of the layer that gives them.

    Raises:
        TrainingError: there is no such bias.
    """
    import torch

    head = _head(network, outputs)
    if head is None:
        raise TrainingError(
            f"{type(network).__name__} has no bias in its last layer, which would hold the threshold",
            "use an encoder of the BERT kind",
        )
    with torch.no_grad():
        head.bias.sub_(shift)


def _head(network: Any, outputs: int) -> Any:
    """The layer that gives the logits; None where there is none with a bias."""
    import torch

    found = [each for each in network.modules() if isinstance(each, torch.nn.Linear) and each.out_features == outputs]
    return found[-1] if found and found[-1].bias is not None else None
