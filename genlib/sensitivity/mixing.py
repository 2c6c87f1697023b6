"""What a network says of mixtures of two samples of one class."""

import torch
from jaxtyping import Int
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

    Natekar & Sharma 2020, who take pairs within small batches. A class of one sample gives that sample. The standard
    error is that of so many independent mixtures. Without a generator the pairs are always the same; a stack shares
    them. Cost: one forward pass, and a copy of the inputs. ValueError: as `sharpness.Objective.of`; inputs that are no
    floating-point numbers; no class with two samples.
    """
    if not inputs.is_floating_point():
        raise ValueError(f"inputs is of {inputs.dtype}, and this mixes them; make them float, if they can be mixed")
    if labels.dim() != 1 or len(labels) != len(inputs):
        raise ValueError(
            f"labels has the shape {tuple(labels.shape)} for {len(inputs)} inputs; give one a sample, which a "
            "stack shares"
        )
    first, second = _pairs(labels.to(inputs.device), seeded_generator(generator, inputs.device))
    objective = Objective.of(
        network, (inputs[first] + inputs[second]) / 2, labels.to(first.device)[first], "error", chunk_size
    )
    error = objective(objective.network.params).double()
    return Estimate(error, (error * (1 - error) / len(inputs)).sqrt(), 1.0)


def _pairs(
    labels: Int[Tensor, " samples"], generator: torch.Generator
) -> tuple[Int[Tensor, " samples"], Int[Tensor, " samples"]]:
    """Each sample, and the next of its class in an order by chance, the last one's being the first."""
    shuffled = torch.randperm(len(labels), generator=generator, device=labels.device)
    order = shuffled[labels[shuffled].argsort(stable=True)]
    classes = labels[order].contiguous()
    begin, end = torch.searchsorted(classes, classes), torch.searchsorted(classes, classes, right=True)
    if not (end - begin > 1).any():
        raise ValueError("labels have no class of two samples, and only samples of one class are mixed; give more")
    place = torch.arange(1, len(labels) + 1, device=labels.device)
    return order, order[torch.where(place < end, place, begin)]
