"""Margins of the output and of every layer, their percentiles, and margins normalized by a network's complexity."""

import itertools
import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from genlib.network import Network
from genlib.network.derivatives import require_input_derivatives
from genlib.network.door import spread
from genlib.network.functional import pulled_back, without_recomputation
from genlib.network.losses import logits_of_classes
from genlib.network.objective import batches, measurable, require_classes, require_finite
from genlib.network.outputs import logits_of
from genlib.network.precision import full_precision
from genlib.norms import log_spectral_complexity

__all__ = [
    "input_margins",
    "layer_margins",
    "margin_percentile",
    "margins_of_logits",
    "normalized_margins",
    "output_margins",
    "require_positive",
]

_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)


@full_precision()
def output_margins(
    network: nn.Module | Network, inputs: Tensor, labels: Tensor, *, chunk_size: int = 1024
) -> Float[Tensor, "*models samples"]:
    """f(x)_y - max_{k≠y} f(x)_k of each sample, in units of the logits; negative where the network errs.

    Of a network of one output it is ± f(x), plus for label 1, for its other logit is 0.
    `labels` [samples], whole numbers from 0 to classes - 1; `chunk_size` samples at a time. Cost: one forward pass.
    BatchNorm in training mode, empty or mismatched data, labels out of range, logits not finite: ValueError.
    """
    network, inputs, labels = *_measurable(network, inputs, labels, chunk_size), labels.long()
    with torch.no_grad():
        logits = torch.cat([network.apply(network.params, x) for x, _ in batches(inputs, labels, chunk_size)], -2)
    require_classes(logits, labels, network.size)
    return require_finite(margins_of_logits(logits, labels), "margin")


@full_precision()
def layer_margins(
    network: nn.Module | Network, inputs: Tensor, labels: Tensor, *, chunk_size: int = 256
) -> Float[Tensor, "*models layers samples"]:
    """m / ‖∂m/∂h_l‖₂, m the output margin: to first order how far h_l can move before the class changes.

    h_l is what goes into the l-th dense or convolution layer, in the order in which they run; where nothing comes
    before the first, its row is that of `input_margins`. The pair of classes, the label and its strongest rival, is
    held fixed (Elsayed et al. 2018; Jiang et al. 2019). Where the gradient is zero no move helps: the margin is
    infinite with the sign of m, or 0. Cost: a forward and one backward pass for all layers together, and those over two
    samples. A stack takes its networks one by one. Errors as `output_margins`; a network with no dense or convolution
    layer, a layer whose input has other rows than one for each sample: ValueError.
    """
    network, inputs = _with_classes(network, inputs, labels, chunk_size)
    rows = []
    for one in network.each:
        module, met = _with_inputs_of_layers(one, inputs.is_floating_point())
        _require_rows_of_samples(module, met, spread(inputs, 0), spread(labels, 0))
        rows.append(_over_gradients(module, met, inputs, labels, chunk_size))
    return rows[0] if network.size is None else torch.stack(rows)


@full_precision()
def input_margins(
    network: nn.Module | Network, inputs: Tensor, labels: Tensor, *, chunk_size: int = 256
) -> Float[Tensor, "*models samples"]:
    """m / ‖∂m/∂x‖₂, m the output margin: to first order how far an input x can move before the class changes.

    In units of the input, whatever comes before the first layer; as `layer_margins` besides, and at its cost.
    ValueError: as `output_margins`; inputs that are no floating-point numbers, or on which no output hangs.
    """
    if not inputs.is_floating_point():
        raise ValueError(
            f"inputs is of {inputs.dtype}; a margin in input space needs numbers that vary, make them float"
        )
    network, inputs = _with_classes(network, inputs, labels, chunk_size)
    rows = [_over_gradients(one.shared_copy(), None, inputs, labels, chunk_size)[0] for one in network.each]
    return rows[0] if network.size is None else torch.stack(rows)


def margins_of_logits(
    logits: Float[Tensor, "*models samples outputs"], labels: Int[Tensor, " samples"]
) -> Float[Tensor, "*models samples"]:
    """f(x)_y - max_{k≠y} f(x)_k where the logits f(x) are at hand already."""
    logits = logits_of_classes(logits)
    label = labels.long().expand(logits.shape[:-1]).unsqueeze(-1)
    rivals = logits.scatter(-1, label, -torch.inf)
    return logits.gather(-1, label).squeeze(-1) - rivals.max(-1).values


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


def _measurable(
    network: nn.Module | Network, inputs: Tensor, labels: Tensor, chunk_size: int
) -> tuple[Network, Tensor]:
    if labels.dim() == 2 and not labels.dtype.is_floating_point:
        raise ValueError(f"labels has the shape {tuple(labels.shape)}; margins take [samples], which a stack shares")
    return measurable(network, inputs, labels, chunk_size)


def _with_classes(
    network: nn.Module | Network, inputs: Tensor, labels: Tensor, chunk_size: int
) -> tuple[Network, Tensor]:
    network, inputs = _measurable(network, inputs, labels, chunk_size)
    with torch.no_grad():
        require_classes(network.apply(network.params, inputs[:1]), labels, network.size)
    require_input_derivatives(network, inputs)
    return network, inputs


def _with_inputs_of_layers(network: Network, floating: bool) -> tuple[nn.Module, list[tuple[str, Tensor]]]:
    """A copy that shares every tensor, and the list where it writes each layer's name and input as it runs."""
    module, met = network.shared_copy(requires_grad=not floating), []  # whole numbers have no graph of their own

    def record(name: str) -> Callable:
        return lambda _, args, named: met.append((name, args[0] if args else named["input"]))

    for name, layer in module.named_modules():
        if isinstance(layer, _WEIGHTED):
            layer.register_forward_pre_hook(record(name), with_kwargs=True)
    return module, met


def _margins(module: nn.Module, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The inputs as a leaf, and the margins that hang on it."""
    with torch.enable_grad(), without_recomputation():
        x = x.detach().to(labels.device).requires_grad_(x.is_floating_point())
        logits = logits_of(module(x.clone()), len(x))  # a clone, for an operation in place may not touch a leaf
        m = margins_of_logits(logits, labels)
    if not m.requires_grad:
        raise ValueError("network: its output has no derivative with respect to inputs; remove no_grad or detach")
    return x, m


def _require_rows_of_samples(module: nn.Module, met: list, inputs: Tensor, labels: Tensor) -> None:
    """Refuse layers whose input has another first axis than the samples': one sample's margin hangs on one row."""
    _, m = _margins(module, inputs, labels)
    if not met:
        raise ValueError("network: it has no dense or convolution layer, so it has no layer margins")
    layers = list(met)
    met.clear()
    places = [h for _, h in layers if h.requires_grad]
    others = m.new_zeros(len(places))
    for i in (0, len(m) // 2):
        one = (torch.arange(len(m), device=m.device) == i).to(m)
        gradients = pulled_back(m, places, one, keep=True)
        others = others + torch.stack([g[:i].abs().sum() + g[i + 1 :].abs().sum() for g in gradients])
    others = others.tolist()  # the one host read
    for (name, h), other in itertools.zip_longest(layers, others):
        if not h.requires_grad or len(h) != len(inputs) or other:
            raise ValueError(
                f"network: {name} sees other rows than one for each sample, so its margins aren't known; "
                "output_margins and input_margins are"
            )


def _over_gradients(
    module: nn.Module, met: list | None, inputs: Tensor, labels: Tensor, chunk_size: int
) -> Float[Tensor, "places samples"]:
    """m / ‖∂m/∂h‖ at the inputs of the layers in `met`, or of the network itself."""
    rows, outputs = [], []
    for chunk, y in batches(inputs, labels, chunk_size):
        x, m = _margins(module, chunk, y)
        places = [x] if met is None else [h for _, h in met]
        gradients = pulled_back(m, places)
        if met:
            met.clear()
        m = m.detach()
        outputs.append(m)
        norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1, dtype=torch.float64) for g in gradients])
        rows.append(torch.where((m == 0) & (norms == 0), 0, m / norms).to(m.dtype))
    require_finite(torch.cat(outputs), "margin")
    return torch.cat(rows, 1)
