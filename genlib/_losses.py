"""The losses that training and the measures know by name."""

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["MEANS", "Loss", "SampleLoss", "per_sample_loss", "sample_losses", "zero_one_loss"]

SampleLoss = Callable[[Tensor, Tensor], Tensor]
Loss = str | SampleLoss

LOSSES = {
    "cross_entropy": lambda logits, labels: F.cross_entropy(logits, labels, reduction="none"),
    "mse": lambda logits, labels: (logits - F.one_hot(labels, logits.shape[-1])).square().mean(-1),
}
MEANS = {LOSSES["cross_entropy"]: F.cross_entropy}  # in one operation instead of two


def zero_one_loss(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """1 for each sample that is misclassified, or whose logits are not finite."""
    wrong = (logits.argmax(-1) != labels) | ~logits.isfinite().all(-1)
    return wrong.to(logits.dtype)


def per_sample_loss(loss: Loss, *, error: bool = False) -> SampleLoss:
    """The function from logits and labels to one loss a sample that `loss` names; with `error`, the 0-1 loss too."""
    known = LOSSES | ({"error": zero_one_loss} if error else {})
    if not callable(loss) and loss not in known:
        raise ValueError(f"loss is {loss!r}; choose {' or '.join(known)}, or give a function to one loss a sample")
    return loss if callable(loss) else known[loss]


def sample_losses(
    loss: SampleLoss, logits: Float[Tensor, "*models n classes"], labels: Int[Tensor, "..."]
) -> Float[Tensor, "*models n"]:
    """One loss a sample, and a network of a stack; labels [n] are shared."""
    shape = logits.shape[:-1]
    values = loss(logits.flatten(0, -2), labels.expand(shape).flatten())
    if values.shape != (shape.numel(),):
        raise ValueError(f"loss gives shape {tuple(values.shape)}; it must give one number a sample")
    return values.view(shape)
