"""Margins of the output and of every layer, their percentiles, and margins normalized by a network's complexity."""

import copy
import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from genlib.network import Network, Params
from genlib.norms import log_spectral_complexity

__all__ = ["layer_margins", "margin_percentile", "normalized_margins", "output_margins", "require_positive"]

_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)


def output_margins(
    network: nn.Module | Network, inputs: Float[Tensor, "samples ..."], labels: Tensor, *, chunk_size: int = 1024
) -> Float[Tensor, "*models samples"]:
    """f(x)_y - max_{k≠y} f(x)_k of each sample, in units of the logits; negative where the network errs.

    `labels` [samples], whole numbers from 0 to classes - 1; `chunk_size` samples at a time. Cost: one forward pass.
    BatchNorm in training mode, empty or mismatched data, labels out of range, logits not finite: ValueError.
    """
    network = Network.of(network)
    inputs = _checked(network, inputs, labels)
    with torch.no_grad():
        logits = [
            network.apply(_upcast(network.params), x, buffers=_upcast(network.buffers))
            for x in _chunks(inputs, chunk_size)
        ]
    logits = torch.cat(logits, -2)
    _require_labels(logits, labels)
    return _require_finite(_margins(logits, labels))


def layer_margins(
    network: nn.Module | Network, inputs: Float[Tensor, "samples ..."], labels: Tensor, *, chunk_size: int = 256
) -> Float[Tensor, "*models layers samples"]:
    """m / ‖∂m/∂h_l‖₂, m the output margin: to first order how far h_l can move before the class changes.

    h_l is what goes into the l-th dense or convolution layer, in the order in which they run: the first row is the
    margin in input space. The pair of classes, the label and its strongest rival, is held fixed (Elsayed et al. 2018;
    Jiang et al. 2019). Where the gradient is zero no move helps: the margin is infinite with the sign of m, or 0.
    Cost: a forward and one backward pass for all layers together. A stack takes its networks one by one.
    Errors as `output_margins`; a network with no dense or convolution layer: ValueError.
    """
    network = Network.of(network)
    inputs = _checked(network, inputs, labels)
    if network.size is None:
        return _of_layers(network, _upcast(network.params), _upcast(network.buffers), inputs, labels, chunk_size)
    rows = []
    for i in range(network.size):
        params, buffers = ({name: t[i] for name, t in _upcast(ts).items()} for ts in (network.params, network.buffers))
        rows.append(_of_layers(network, params, buffers, inputs, labels, chunk_size))
    return torch.stack(rows)


def margin_percentile(margins: Float[Tensor, "*models samples"], percent: float | int = 10) -> Float[Tensor, "*models"]:
    """The percentile of the margins over the samples, linear between them; 0 gives the smallest margin.

    Neyshabur et al. (2017) take the 5th on the training data, Jiang et al. (2020) the 10th. It may be negative.
    """
    if not 0 <= percent <= 100:
        raise ValueError(f"percent is {percent}; it must be between 0 and 100")
    if margins.shape[-1] == 0:
        raise ValueError("margins is empty; give those of at least one sample")
    ordered = margins.sort(-1).values
    place = percent / 100 * (margins.shape[-1] - 1)
    below, above = ordered[..., math.floor(place)], ordered[..., math.ceil(place)]
    share = place - math.floor(place)
    # Where margins are infinite the difference of the two would not be a number.
    return torch.where(below == above, below, (1 - share) * below + share * above) if share else below


def require_positive(margin: Float[Tensor, "*models"]) -> Float[Tensor, "*models"]:
    """The margin itself, refused where it isn't positive: a measure that divides by it would have no meaning."""
    if not (lowest := margin.min().item()) > 0:
        raise ValueError(
            f"margin is {lowest:.4g}: so many samples are misclassified that a measure divided by this percentile "
            "has no meaning; train further, or take a higher percentile"
        )
    return margin


def normalized_margins(
    network: nn.Module | Network,
    initial: nn.Module | Network,
    inputs: Float[Tensor, "samples ..."],
    labels: Tensor,
    *,
    rtol: float = 1e-4,
) -> Float[Tensor, "*models samples"]:
    """The margins over R ‖X‖_F / n, R the spectral complexity with `initial` as reference (Bartlett et al. 2017).

    ‖X‖_F is the norm of all n samples together. Multiplying a layer by a constant changes nothing if its start is
    multiplied along. Cost: one forward pass and `spectral_complexity`; errors as there and as `output_margins`.
    """
    margins = output_margins(network, inputs, labels)
    complexity = log_spectral_complexity(network, initial, input_shape=tuple(inputs.shape[1:]), rtol=rtol)
    log_scale = complexity + torch.linalg.vector_norm(inputs, dtype=torch.float64).log() - math.log(len(inputs))
    if not log_scale.isfinite().all():
        raise ValueError("initial equals network, or inputs are all zero; then there is nothing to normalize by")
    return (margins.double() * (-log_scale).exp().unsqueeze(-1)).to(margins.dtype)


def _of_layers(
    network: Network, params: Params, buffers: Params, inputs: Tensor, labels: Tensor, chunk_size: int
) -> Float[Tensor, "layers samples"]:
    # A copy that shares every tensor: the hooks are its own, and its parameters ask for no gradient.
    lent = {**{name: nn.Parameter(p, requires_grad=False) for name, p in params.items()}, **buffers}
    originals = {**dict(network.module.named_parameters()), **dict(network.module.named_buffers())}
    module = copy.deepcopy(network.module, {id(tensor): lent[name] for name, tensor in originals.items()})
    met: list[Tensor] = []
    for layer in module.modules():
        if isinstance(layer, _WEIGHTED):
            layer.register_forward_pre_hook(lambda _, args: met.append(args[0]))
    rows, outputs = [], []
    for x, y in zip(_chunks(inputs, chunk_size), labels.split(chunk_size), strict=True):
        with torch.enable_grad():
            # A clone, for an operation in place may not touch a leaf.
            logits = module(x.detach().requires_grad_().clone())
            if not rows:
                _require_labels(logits.detach(), labels)
            m = _margins(logits, y)
            if not met:
                raise ValueError("network: it has no dense or convolution layer, so it has no layer margins")
            gradients = torch.autograd.grad(m.sum(), met, materialize_grads=True)
        met.clear()
        m = m.detach()
        outputs.append(m)
        norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients])
        rows.append(torch.where((m == 0) & (norms == 0), 0, m / norms))
    _require_finite(torch.cat(outputs))
    return torch.cat(rows, 1)


def _margins(logits: Float[Tensor, "*models samples classes"], labels: Tensor) -> Float[Tensor, "*models samples"]:
    label = labels.long().expand(logits.shape[:-1]).unsqueeze(-1)
    rivals = logits.scatter(-1, label, -torch.inf)
    return logits.gather(-1, label).squeeze(-1) - rivals.max(-1).values


def _checked(network: Network, inputs: Tensor, labels: Tensor) -> Tensor:
    """The inputs in the precision of the weights."""
    network.require_eval()
    if len(inputs) == 0:
        raise ValueError("inputs is empty; give at least one sample")
    if labels.shape != inputs.shape[:1] or labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise ValueError(
            f"labels has the shape {tuple(labels.shape)} and type {labels.dtype} for {len(inputs)} inputs; "
            "it must be whole numbers [samples]"
        )
    dtype = next((t.dtype for t in _upcast(network.params).values() if t.is_floating_point()), inputs.dtype)
    return inputs.detach().to(dtype)


def _require_labels(logits: Tensor, labels: Tensor) -> None:
    classes = logits.shape[-1]
    if logits.shape[-2] < 1 or logits.ndim not in (2, 3) or classes < 2:
        raise ValueError(
            f"network: its output has the shape {tuple(logits.shape)}; margins need [samples, 2 or more classes]"
        )
    if not ((labels >= 0) & (labels < classes)).all():
        raise ValueError(f"labels must lie between 0 and {classes - 1}, the classes of this network")


def _require_finite(margins: Tensor) -> Tensor:
    if not margins.isfinite().all():
        raise ValueError(
            "inputs give logits that are not finite; look for such values in the inputs, or measure earlier"
        )
    return margins


def _chunks(inputs: Tensor, chunk_size: int) -> tuple[Tensor, ...]:
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; it must be at least 1")
    return inputs.split(chunk_size)


def _upcast(tensors: Params) -> Params:
    half = (torch.float16, torch.bfloat16)
    return {name: tensor.float() if tensor.dtype in half else tensor for name, tensor in tensors.items()}
