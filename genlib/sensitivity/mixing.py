"""What a network says of mixtures of two samples of one class."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from genlib.estimates import Estimate
from genlib.network import Network
from genlib.network.objective import Objective, seeded_generator
from genlib.network.precision import full_precision

__all__ = ["mixup_error"]


@full_precision()
@torch.no_grad()
def mixup_error(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Tensor,
    *,
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> Estimate:
    """The error on the means (x + x')/2 of two samples of one class, of each sample and another one by chance.

    Natekar & Sharma 2020, who take pairs within small batches. A class of one sample gives that sample. The pairs of a
    class make a ring, so that each sample is in two of them: the standard error, that of the choice of pairs, is of
    what an error has beside the shares of its two samples, below that of so many independent mixtures, and 0 where
    classes have three samples at most. Without a generator the pairs are always the same; a stack shares them.
    Cost: one forward pass, and a copy of the inputs. ValueError: as `sharpness.Objective.of`; inputs that are no
    floating-point numbers; no class with two samples.
    """
    if not inputs.is_floating_point():
        raise ValueError(f"inputs is of {inputs.dtype}, and this mixes them; make them float, if they can be mixed")
    if labels.dim() != 1 or len(labels) != len(inputs):
        raise ValueError(
            f"labels has the shape {tuple(labels.shape)} for {len(inputs)} inputs; give one a sample, which a "
            "stack shares"
        )
    order, after = _rings(labels.to(inputs.device), seeded_generator(generator, inputs.device))
    classes = labels.to(order.device)[order]
    mixed = (inputs[order] + inputs[order[after]]) / 2
    objective = Objective.of(network, mixed, classes, "error", chunk_size)
    wrong = objective.losses(objective.logits(), objective.labels.to(objective.device)).double()
    variance = _variance(wrong, classes.to(wrong.device), after.to(wrong.device))
    return Estimate(wrong.mean(-1), variance.clamp(min=0).sqrt(), 1.0)


def _variance(
    values: Float[Tensor, "*models pairs"], classes: Int[Tensor, " pairs"], after: Int[Tensor, " pairs"]
) -> Float[Tensor, "*models"]:
    """The variance of the mean of h over random rings, Σ_k [(n - 4) Q₀ - 2 (n - 2) Q₁] / (n - 1) over the number².

    With h_ij = μ + a_i + a_j + b_ij in a class of n, Σ_j b_ij = 0, a ring's sum is nμ + Σ b, of variance n·mean(b²),
    for each a is in it twice. Of what h and the next one in the ring are above their mean, Q₀ = Σ d², Q₁ = Σ d d': with
    A = mean(a²) and B = mean(b²) their expectations are (n - 1) B + 2n (n - 2)/(n - 1) A and
    -2 (n - 1)/(n - 2) B + n (n - 4)/(n - 1) A.
    """
    _, own, sizes = classes.unique(return_inverse=True, return_counts=True)
    n = sizes[own]
    sums = torch.zeros_like(values[..., :1]).expand(*values.shape[:-1], len(sizes)).clone()
    d = values - sums.index_add(-1, own, values)[..., own] / n
    squares = ((n - 4) * d - 2 * (n - 2) * d[..., after]) * d / (n - 1).clamp(min=1)  # alone, d = 0
    return squares.sum(-1) / len(classes) ** 2


def _rings(
    labels: Int[Tensor, " samples"], generator: torch.Generator
) -> tuple[Int[Tensor, " samples"], Int[Tensor, " samples"]]:
    """The samples, class by class, each in an order by chance, and the places there of the next of the same class."""
    shuffled = torch.randperm(len(labels), generator=generator, device=labels.device)
    order = shuffled[labels[shuffled].argsort(stable=True)]
    classes = labels[order].contiguous()
    begin, end = torch.searchsorted(classes, classes), torch.searchsorted(classes, classes, right=True)
    if not (end - begin > 1).any():
        raise ValueError("labels have no class of two samples, and only samples of one class are mixed; give more")
    place = torch.arange(1, len(labels) + 1, device=labels.device)
    return order, torch.where(place < end, place, begin)
