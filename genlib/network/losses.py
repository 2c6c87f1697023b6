"""The losses that training and the measures know by name.

A network of one output tells two classes apart by its sign: label 1 is y = 1, label 0 is y = -1.
"""

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from genlib.network.errors import first_line, out_of_memory

__all__ = [
    "LOSSES",
    "MEANS",
    "Loss",
    "SampleLoss",
    "logits_of_classes",
    "per_sample_loss",
    "require_binary",
    "sample_losses",
    "zero_one_loss",
]

SampleLoss = Callable[[Tensor, Tensor], Tensor]
Loss = str | SampleLoss


def _cross_entropy(logits: Tensor, labels: Tensor, reduction: str = "none") -> Tensor:
    """-ln p_y, p the softmax; of one output f ln(1 + exp(-y f)), p being the sigmoid."""
    if logits.shape[-1] > 1:
        return F.cross_entropy(logits, labels, reduction=reduction)
    losses = -F.logsigmoid(_sided(logits, labels))
    return losses.mean() if reduction == "mean" else losses


def _mse(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over the classes of the squared distance to the one-hot label; of one output (f - y)²."""
    if logits.shape[-1] > 1:
        return (logits - F.one_hot(labels, logits.shape[-1])).square().mean(-1)
    return (_sided(logits, labels) - 1).square()  # y² = 1


def _sided(logits: Float[Tensor, "n 1"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """y f: positive where the network is right."""
    return (2 * labels - 1) * logits.squeeze(-1)


def logits_of_classes(logits: Float[Tensor, "*n outputs"]) -> Float[Tensor, "*n classes"]:
    """One logit a class: of one output f those of its two classes are 0 and f, whose softmax is the sigmoid of f."""
    return F.pad(logits, (1, 0)) if logits.shape[-1] == 1 else logits


LOSSES = {"cross_entropy": _cross_entropy, "mse": _mse}
MEANS = {_cross_entropy: lambda logits, labels: _cross_entropy(logits, labels, "mean")}  # one operation, not two


def zero_one_loss(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """1 for each sample that is misclassified, or whose logits are not finite; a single output of 0 says nothing."""
    right = logits.argmax(-1) == labels if logits.shape[-1] > 1 else _sided(logits, labels) > 0
    return (~right | ~logits.isfinite().all(-1)).to(logits.dtype)


def require_binary(labels: Int[Tensor, "..."]) -> None:
    """Refuse labels that a network of one output can't tell apart. One host read."""
    if ((labels < 0) | (labels > 1)).any():
        raise ValueError(
            "labels has values other than 0 and 1, and a network of one output tells two classes apart, by its sign; "
            "give it one output a class"
        )


def per_sample_loss(loss: Loss, *, error: bool = False) -> SampleLoss:
    """The function from logits and labels to one loss a sample that `loss` names; with `error`, the 0-1 loss too."""
    known = LOSSES | ({"error": zero_one_loss} if error else {})
    if not callable(loss) and loss not in known:
        raise ValueError(
            f"loss is {loss!r}; choose {' or '.join(known)}, of targets in floats mse, l1 or huber, or give a loss of "
            "torch or a function to one number a sample"
        )
    return loss if callable(loss) else known[loss]


def sample_losses(
    loss: SampleLoss, logits: Float[Tensor, "*models n classes"], labels: Int[Tensor, "..."]
) -> Float[Tensor, "*models n"]:
    """One loss a sample, and a network of a stack; labels [n] are shared."""
    shape = logits.shape[:-1]
    try:
        values = loss(logits.flatten(0, -2), labels.expand(shape).flatten())
    except Exception as error:  # whatever a function of one's own raises
        if loss in LOSSES.values() or out_of_memory(error) or str(error).startswith(("loss", "labels")):
            raise
        raise ValueError(
            f"loss fails on logits {tuple(logits.shape)} and labels {tuple(shape)} ({first_line(error)}); it "
            "must take logits [n, classes] and labels [n], and give one number a sample"
        ) from error
    if not isinstance(values, Tensor):
        raise ValueError(f"loss gives a {type(values).__name__}; it must give one number a sample, a tensor [n]")
    if values.shape != (shape.numel(),):
        raise ValueError(f"loss gives shape {tuple(values.shape)}; it must give one number a sample")
    return values.view(shape)
