"""What the last layer sees of each sample: how many directions its features take, and how far classes lie apart.

They predict generalization beside the measures of chapter 7, "Predicting generalization".
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from genlib.network import Network
from genlib.network.objective import batches, measurable, require_finite, stand_ins
from genlib.network.outputs import logits_of
from genlib.network.precision import full_precision

__all__ = ["class_separation", "effective_rank", "last_features"]

_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)
_LOST = 32  # units in the last place of the largest feature: equal inputs give features that differ by a few


@full_precision()
@torch.no_grad()
def last_features(
    network: nn.Module | Network, inputs: Tensor, *, chunk_size: int = 1024
) -> Float[Tensor, "*models samples features"]:
    """What goes into the dense or convolution layer that gives the outputs, flat, of each sample.

    Cost: one forward pass; a stack takes its networks one by one. ValueError: BatchNorm or dropout in training mode, no
    data, outputs that aren't those of such a layer, or aren't finite.
    """
    network, inputs = measurable(network, inputs, stand_ins(inputs), chunk_size)
    found = [_of_one(one, inputs, chunk_size) for one in network.each]
    return found[0] if network.size is None else torch.stack(found)


def _of_one(network: Network, inputs: Tensor, chunk_size: int) -> Float[Tensor, "samples features"]:
    module, met, rows = network.shared_copy(), [], []
    for layer in module.modules():
        if isinstance(layer, _WEIGHTED):
            layer.register_forward_hook(
                lambda _, args, named, output: met.append(_as_now(args[0] if args else named["input"], output)),
                with_kwargs=True,
            )
    device = next(iter((network.params | network.buffers).values())).device
    for x, _ in batches(inputs, stand_ins(inputs), chunk_size):
        logits = require_finite(logits_of(module(x.to(device).clone()), len(x)), "output")
        found = [features for features, output, then in met if _as_now(features, output)[2] == then
                 and _same(output, logits)]  # fmt: skip
        if not found:
            raise ValueError(
                "network: its outputs aren't those of a dense or convolution layer, so it is not known what its last "
                "features are; let it end with such a layer, change nothing of it in place, and return its outputs"
            )
        rows.append(found[-1].flatten(1))
        met.clear()
    return torch.cat(rows)


def _as_now(features: Tensor, output: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Both with the number of their changes in place, by which they are seen to be no longer what they were."""
    return features, output, (features._version, output._version)


def _same(output: Tensor, logits: Tensor) -> bool:
    return output.numel() == logits.numel() and torch.equal(output.reshape(logits.shape), logits)


def effective_rank(features: Float[Tensor, "*models samples features"]) -> Float[Tensor, "*models"]:
    """exp(-Σ p_i ln p_i), p_i = σ_i²/Σσ², σ the singular values of the features about their mean; float64.

    Between 1 and the smaller of features and samples less 1: how many directions share the variance. p has σ itself in
    RankMe (Garrido et al. 2023), of features that aren't centred, and in Roy & Vetterli (2007).
    Cost: the eigenvalues of the smaller Gram matrix. Features that are the same for all samples, but for rounding:
    ValueError.
    """
    x = features.double()
    x = x - x.mean(-2, keepdim=True)
    scale = x.abs().amax((-2, -1), keepdim=True)
    if not (scale > _rounding(features)).all():
        raise ValueError("features are the same for all samples, and have no rank; measure a network that tells apart")
    x = x / scale
    x = x if x.shape[-2] <= x.shape[-1] else x.mT
    squares = torch.linalg.eigvalsh(x @ x.mT).clamp(min=0)
    p = squares / squares.sum(-1, keepdim=True)
    return (-torch.special.xlogy(p, p).sum(-1)).exp()


def class_separation(
    features: Float[Tensor, "*models samples features"], labels: Int[Tensor, " samples"]
) -> Float[Tensor, "*models"]:
    """The Davies-Bouldin index of the classes, (1/C) Σ_k max_{l≠k} (s_k + s_l)/‖c_k - c_l‖₂; small where well apart.

    c_k is the mean of class k's features, s_k their mean distance from it; float64, over the classes that have samples.
    Natekar & Sharma (2020), who won the competition of NeurIPS 2020 with it times an error on mixtures, take the first
    layer's outputs, pooled, and in their code the mean over l in place of the maximum (Davies & Bouldin 1979).
    Cost: a product of features and classes. Fewer than two classes, means that coincide but for rounding: ValueError.
    """
    x = features.double()
    classes, own = labels.unique(return_inverse=True)
    if len(classes) < 2:
        raise ValueError("labels are all the same; how far classes lie apart needs two of them")
    member = torch.nn.functional.one_hot(own, len(classes)).to(x)
    share = member / member.sum(0)
    centres = share.mT @ x
    spread = (torch.linalg.vector_norm(x - centres[..., own, :], dim=-1).unsqueeze(-2) @ share).squeeze(-2)
    apart = torch.linalg.vector_norm(centres.unsqueeze(-2) - centres.unsqueeze(-3), dim=-1)
    apart.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
    if not (apart > _rounding(features)).all():
        raise ValueError("features: two classes have the same mean, and lie no distance apart; train the network first")
    return ((spread.unsqueeze(-1) + spread.unsqueeze(-2)) / apart).amax(-1).mean(-1)


def _rounding(features: Float[Tensor, "*models samples features"]) -> Float[Tensor, "*models 1 1"]:
    """Below which a difference of features may be one of rounding alone."""
    return _LOST * torch.finfo(features.dtype).eps * features.double().abs().amax((-2, -1), keepdim=True)
