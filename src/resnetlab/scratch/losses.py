"""Softmax and the cross-entropy of logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from resnetlab.core.checks import check_choice, check_number
from resnetlab.core.errors import UserError


def log_softmax(logits: Tensor, dim: int = 1) -> Tensor:
    """Returns z - log(sum(exp(z))) along `dim`, where z = logits - max(logits).

    Subtracting the largest logit does not change the result, and keeps every exponential at most 1.
    """
    shifted = logits - logits.detach().amax(dim, keepdim=True)
    return shifted - shifted.exp().sum(dim, keepdim=True).log()


def softmax(logits: Tensor, dim: int = 1) -> Tensor:
    """Returns the probabilities exp(z) / sum(exp(z)) along `dim`, where z = logits - max(logits)."""
    weights = (logits - logits.detach().amax(dim, keepdim=True)).exp()
    return weights / weights.sum(dim, keepdim=True)


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0, *, reduction: str = "mean") -> Tensor:
    """Returns the mean over the batch of -sum over classes of target * log(softmax(logits)).

    The target is label_smoothing / K for every class, plus 1 - label_smoothing for the label (Szegedy et al.,
    "Rethinking the inception architecture for computer vision", 2016).

    Args:
        logits: (N, K).
        labels: (N,), integers from 0 to K - 1.
        label_smoothing: in [0, 1].
        reduction: "mean" over the batch, or "none" for the loss of each sample.

    Returns:
        A scalar, or (N,) with reduction "none", in float32 or float64.

    Raises:
        UserError: the shapes do not fit, labels are not integers, or label smoothing is outside [0, 1].
        RuntimeError: from torch, for a label outside 0 ... K - 1. Checking for it here would synchronize the device.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise UserError(
            f"cross_entropy expects logits (N, K) and labels (N,), got {tuple(logits.shape)} and "
            f"{tuple(labels.shape)}. Pass one label per image."
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UserError(f"cross_entropy expects integer labels, got {labels.dtype}. Convert them: labels.long().")
    check_number("label_smoothing", label_smoothing, 0, 1)
    check_choice("reduction", reduction, ("mean", "none"))
    log_probabilities = log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)))
    loss = -log_probabilities.gather(1, labels.long()[:, None])[:, 0]
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing * log_probabilities.mean(1)
    return loss.mean() if reduction == "mean" else loss


class CrossEntropyLoss(nn.Module):
    """`cross_entropy` as a layer."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = check_number("label_smoothing", label_smoothing, 0, 1)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the mean loss of logits (N, K) and labels (N,)."""
        return cross_entropy(logits, labels, self.label_smoothing)

    def extra_repr(self) -> str:
        """Returns the arguments, for `print`."""
        return f"label_smoothing={self.label_smoothing}"
