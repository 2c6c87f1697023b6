"""The Gauss-Newton part of the Hessian, from every sample's own gradients: its trace, and its spectrum."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from genlib.estimates import Estimate
from genlib.network import Network, Params
from genlib.network.calls import altered
from genlib.network.derivatives import square
from genlib.network.door import spread
from genlib.network.losses import Loss
from genlib.network.objective import Objective, rademacher, with_slope
from genlib.network.outputs import logits_of
from genlib.network.weights import BATCH_NORM, CONVOLUTIONS, TRANSPOSED

__all__ = [
    "exact_trace",
    "exact_trace_passes",
    "gram_matrix",
    "gram_scale",
    "obstacle",
    "squared_gradients",
    "unknown_gradients",
    "unknown_rows",
    "unlike_samples",
    "with_records",
]

_LAYERS = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.PReLU)
_ALL_CLASSES = 64  # above it cotangents are drawn
_COTANGENTS = 16  # a sample, where they are drawn


def obstacle(network: Network, loss: Loss) -> str | None:
    """Why the Hessian's trace isn't known to be the Gauss-Newton one, if it isn't."""
    if odd := [layer.name for layer in network.layers if layer.kind not in ("linear", "piecewise linear")]:
        return f"network: {', '.join(odd)} is not piecewise linear, or not known to be"
    return unknown_gradients(network, loss)


def unknown_gradients(network: Network, loss: Loss) -> str | None:
    """Why each sample's own gradients aren't to be had layer by layer, if they aren't."""
    if loss not in ("cross_entropy", "mse"):
        return f"loss is {loss!r}, whose Hessian in the logits is not known here"
    if why := altered(network.module):
        return f"network: {why}, so what its layers do isn't known; remove it"
    if network.graph is None:
        return "network: torch.fx can't trace this module, so its layers aren't known"
    runs = Counter(node.target for node in network.graph.nodes if node.op == "call_module")
    owners: dict[int, str] = {}
    for name, layer in network.module.named_modules(remove_duplicate=False):
        if not runs[name]:
            continue
        for parameter in layer.parameters():
            if owners.setdefault(id(parameter), name) != name:
                return f"network: {owners[id(parameter)]} and {name} share a weight"
        own = {part for part, _ in layer.named_parameters()}
        if isinstance(layer, BATCH_NORM) and layer.running_mean is None:
            return f"network: {name} normalizes by the batch at hand"
        if own and not (type(layer) in _LAYERS and own <= {"weight", "bias"}):
            return f"network: the weights of {name} are those of no layer that is known here"
        if own and runs[name] > 1:
            return f"network: {name} runs {runs[name]} times"
    params = {name for name, _ in network.module.named_parameters(remove_duplicate=False)}
    if loose := [node.target for node in network.graph.nodes if node.op == "get_attr" and node.target in params]:
        return f"network: {loose[0]} is used outside of its layer"
    return None


def unlike_samples(objective: Objective) -> str | None:
    """Why the layers' rows don't give a sample's own gradient, if they don't; seen on a few samples, once a network.

    As where an axis other than the samples' comes first, or a weight takes part that no layer holds.
    """
    if "layers" in objective.network.passed or objective.device.type == "meta":
        return None
    few = next(objective.each)
    x = spread(few.inputs, 0).to(objective.device)
    module, met = with_records(few.network)
    with torch.enable_grad():
        logits = logits_of(module(x), len(x))
        of_each = with_slope(square(logits, logits)).unbind()
    layers = list(met)
    met.clear()  # for the module's hooks hold on to it, in a circle that lives on until it is searched for
    if cut := [name for name, _, _, output in layers if not output.requires_grad]:
        return f"network: {cut[0]} runs without a graph"
    weights = [p for p in module.parameters() if p.requires_grad]
    if odd := [name for name, layer, seen, _ in layers if len(seen) != len(x) or not _batched(layer, seen)]:
        return f"network: {odd[0]} sees other rows than one for each sample"
    unlike, places = [], [*(output for *_, output in layers), *weights]
    for i in {0, len(x) // 2}:
        found = torch.autograd.grad(of_each[i], places, retain_graph=True, materialize_grads=True)
        if met:
            return "network: its layers run again as it is differentiated"
        squares = [
            squared_gradients(layer, seen, delta.unsqueeze(0))[0, i]
            for (_, layer, seen, _), delta in zip(layers, found, strict=False)
        ]
        by_layers, whole = sum(squares, of_each[i].new_zeros(())), sum(g.square().sum() for g in found[len(layers) :])
        unlike.append((by_layers - whole).abs() > 1e-3 * whole)
    if torch.stack(unlike).any():  # the one host read
        return "network: its layers' rows don't belong to one sample each, or weights take part that no layer holds"
    objective.network.passed.add("layers")
    return None


def unknown_rows(objective: Objective, loss: Loss = "cross_entropy") -> str | None:
    """Why the samples' own gradients, of which Gram matrices are made, aren't to be had layer by layer, if not."""
    return unknown_gradients(objective.network, loss) or unlike_samples(objective)


def _batched(layer: nn.Module, x: Tensor) -> bool:
    """Whether x has an axis of samples in front."""
    return x.dim() == 2 + len(layer.kernel_size) if hasattr(layer, "kernel_size") else x.dim() >= 2


def _own(layer: nn.Module) -> set[str]:
    """The names of its own weights that move."""
    return {name for name, w in layer.named_parameters(recurse=False) if w.requires_grad}


def exact_trace_passes(objective: Objective, loss: Loss = "cross_entropy") -> float | None:
    """The forward passes of `trace` where it is exact; None where it takes random vectors."""
    if obstacle(objective.network, loss) or unlike_samples(objective):
        return None
    return _passes(_cotangents(objective.outputs), objective.network.module.modules())


def _cotangents(outputs: int) -> int:
    return outputs if outputs <= _ALL_CLASSES else _COTANGENTS


def _passes(cotangents: int, layers: Iterable[nn.Module]) -> float:
    return 1.0 + cotangents * (1 + any(isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED)) for layer in layers))


def exact_trace(
    objective: Objective, loss: str, cotangents: int | None, chunk_size: int | None, generator: torch.Generator
) -> Estimate:
    outputs = objective.outputs
    count = cotangents or _cotangents(outputs)
    count, drawn = min(count, outputs), count < outputs
    if chunk_size is None:  # every sample passes backwards once a cotangent
        objective = replace(objective, chunk_size=max(1, objective.chunk_size // count))
    module, met = with_records(objective.network)
    zero = next(iter(objective.network.params.values())).new_zeros(())
    by_layer, variances, variance = {}, {}, zero
    for inputs, _ in objective.batches:
        total = zero.new_zeros(count, len(inputs))
        for name, layer, x, delta in _backward(module, met, inputs, loss, count if drawn else None, generator):
            squares = squared_gradients(layer, x, delta)
            by_layer[name] = by_layer.get(name, 0.0) + squares.sum() / objective.samples
            variances[name] = variances.get(name, 0.0) + (_scatter(squares, objective) if drawn else 0.0)
            total = total + squares
        variance = variance + (_scatter(total, objective) if drawn else 0.0)
    by_layer = {name: by_layer.get(name, zero) for name, *_ in met}
    errors = {name: (zero + variances.get(name, 0.0)).sqrt() for name in by_layer}
    passes = _passes(count, [layer for _, layer, *_ in met])
    met.clear()
    return Estimate(sum(by_layer.values(), zero), variance.sqrt(), passes, by_layer, errors)


def _scatter(squares: Float[Tensor, "cotangents n"], objective: Objective) -> Float[Tensor, ""]:
    """The variance of the mean over the samples of each sample's sum over its cotangents."""
    return len(squares) * squares.var(0).sum() / objective.samples**2


def with_records(network: Network) -> tuple[nn.Module, list[tuple[str, nn.Module, Tensor, Tensor]]]:
    """A copy that shares every tensor, and the list where it writes each layer with its input and output as it runs."""
    module = network.shared_copy(requires_grad=True)
    met: list[tuple[str, nn.Module, Tensor, Tensor]] = []

    def record(name: str) -> Callable:
        def hook(layer: nn.Module, args: tuple[Tensor, ...], named: Params, output: Tensor) -> Tensor:
            met.append((name, layer, (args[0] if args else named["input"]).detach(), output))
            return output.clone()  # what comes next may work in place

        return hook

    for name, layer in module.named_modules():
        if type(layer) in _LAYERS and _own(layer):
            layer.register_forward_hook(record(name), with_kwargs=True)
    return module, met


def _backward(
    module: nn.Module,
    met: list,
    inputs: Tensor,
    loss: str,
    drawn: int | None = None,
    generator: torch.Generator | None = None,
) -> list[tuple[str, nn.Module, Tensor, Tensor]]:
    """Each layer with its input and the cotangents at its output, [cotangents, n, …]; both from `with_records`."""
    met.clear()
    with torch.enable_grad():
        logits = logits_of(module(inputs), len(inputs))
    factor = _factor(logits.detach(), loss, drawn, generator)
    outputs = [output for *_, output in met]
    # Not materialize_grads, whose zeros would lack the axis of cotangents. A layer on which no logit hangs counts zero.
    deltas = torch.autograd.grad(logits, outputs, factor, is_grads_batched=True, allow_unused=True)
    return [
        (name, layer, x, delta) for (name, layer, x, _), delta in zip(met, deltas, strict=True) if delta is not None
    ]


def _factor(
    logits: Float[Tensor, "n classes"], loss: str, drawn: int | None = None, generator: torch.Generator | None = None
) -> Float[Tensor, "cotangents n classes"]:
    """Cotangents s_c with Σ_c s_c s_cᵀ the Hessian of the loss in the logits, or that on average over random signs."""
    n, classes = logits.shape
    if drawn is None:
        signs = torch.eye(classes, dtype=logits.dtype, device=logits.device).unsqueeze(1)
    else:
        signs = rademacher((drawn, n, classes), logits, generator) / drawn**0.5
    roots = gram_scale(logits, loss) * signs
    if loss == "mse" or classes == 1:
        return roots.expand(-1, n, classes)
    return roots - logits.softmax(1) * roots.sum(-1, keepdim=True)  # diag(p) - ppᵀ = AAᵀ, A's columns √p_c (e_c - p)


def gram_scale(logits: Float[Tensor, "n classes"], loss: str) -> Float[Tensor, "n classes"]:
    """What the loss' slope s in the logits is divided by for the u of S_n u = s, S_n the root in `gram_matrix`."""
    if loss == "mse":
        return torch.full_like(logits, (2 / logits.shape[1]) ** 0.5)
    if logits.shape[1] == 1:  # σ(f)(1 − σ(f))
        return (logits.sigmoid() * (-logits).sigmoid()).sqrt()
    return logits.softmax(1).sqrt()


def squared_gradients(
    layer: nn.Module, x: Float[Tensor, "n ..."], delta: Float[Tensor, "cotangents n ..."]
) -> Float[Tensor, "cotangents n"]:
    """|∂(δ·layer(x))/∂(weight, bias)|² of each sample, δ being the gradient at the layer's output."""
    squares = torch.zeros(delta.shape[:2], dtype=delta.dtype, device=delta.device)
    if "weight" in _own(layer):
        factors = _factors(layer, x, delta)
        squares += _slope_gradient(layer, x, delta).square().sum(-1) if factors is None else _product_squares(*factors)
    if "bias" in _own(layer):
        squares += _bias_gradient(layer, delta).square().sum(-1)
    return squares


def _bias_gradient(layer: nn.Module, delta: Tensor) -> Float[Tensor, "cotangents n features"]:
    channels = delta if isinstance(layer, nn.Linear) else delta.movedim(2, -1)
    return channels.reshape(*delta.shape[:2], -1, channels.shape[-1]).sum(2)


def _slope_gradient(layer: nn.Module, x: Tensor, delta: Tensor) -> Float[Tensor, "cotangents n features"]:
    """The gradient in the weight of a PReLU or a BatchNorm."""
    n = len(x)
    if isinstance(layer, nn.PReLU):
        slope = x.clamp(max=0).reshape(n, layer.num_parameters, -1)
    else:
        mean, root = layer.running_mean, (layer.running_var + layer.eps).rsqrt()
        slope = (x.reshape(n, len(mean), -1) - mean.unsqueeze(1)) * root.unsqueeze(1)
    return (delta.reshape(len(delta), *slope.shape) * slope).sum(-1)


def _factors(layer: nn.Module, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor] | None:
    """a [cotangents, n, groups, rows, places] and b [n, groups, columns, places], abᵀ the gradient in the weight."""
    count, n = delta.shape[:2]
    if isinstance(layer, nn.Linear):
        return delta.reshape(count, n, 1, -1, layer.out_features).mT, x.reshape(n, 1, -1, layer.in_features).mT
    if isinstance(layer, CONVOLUTIONS):
        return delta.flatten(3).unflatten(2, (layer.groups, -1)), _patches(layer, x, delta.shape[3:])
    if isinstance(layer, TRANSPOSED):  # the same with the two ends of the layer exchanged
        patches = _patches(layer, delta.flatten(0, 1), x.shape[2:])
        return patches.unflatten(0, (count, n)), x.flatten(2).unflatten(1, (layer.groups, -1))
    return None


def _product_squares(
    a: Float[Tensor, "cotangents n groups rows places"], b: Float[Tensor, "n groups columns places"]
) -> Float[Tensor, "cotangents n"]:
    """Σ |a bᵀ|² over the groups, by the products or by the Gram matrices of the places, whichever are cheaper."""
    count, _, _, rows, places = a.shape
    columns = b.shape[2]
    if places == 1:
        return (a.square().sum((3, 4)) * b.square().sum((2, 3))).sum(-1)
    if places * (rows + columns / count) < rows * columns:
        return ((a.mT @ a) * (b.mT @ b)).sum((2, 3, 4))
    products = a.movedim(0, 2).flatten(2, 3) @ b.mT  # not of five axes, which would copy b for every cotangent
    return products.square().sum(-1).unflatten(2, (count, rows)).sum((1, 3)).T


def _patches(
    layer: nn.Module, x: Float[Tensor, "n channels ..."], places: tuple[int, ...]
) -> Float[Tensor, "n groups taps places"]:
    """What each place of the convolution reads, channel by channel and tap by tap."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    for axis, (taps, stride, dilation, size) in enumerate(
        zip(layer.kernel_size, layer.stride, layer.dilation, places, strict=True), start=2
    ):
        windows = x.unfold(axis, (taps - 1) * dilation + 1, stride)[..., ::dilation]
        x = windows.narrow(axis, 0, size)
    spatial = len(places)
    x = x.unflatten(1, (layer.groups, -1))  # [n, groups, channels, *places, *taps]
    taps, where = range(3 + spatial, 3 + 2 * spatial), range(3, 3 + spatial)
    return x.permute(0, 1, 2, *taps, *where).flatten(2, 2 + spatial).flatten(3)


def gram_matrix(objective: Objective, loss: str) -> Float[Tensor, "rows rows"]:
    """(1/N) SᵀJJᵀS in float64, one row an output and sample: its eigenvalues but zeros are the Gauss-Newton matrix's.

    Of a dense layer the rows' products are those of its outputs' gradients times those of its inputs, so that no
    gradient in the weights is formed.
    """
    objective = objective.in_float64
    n, outputs = objective.samples, objective.outputs
    module, met = with_records(objective.network)
    chunks = objective.inputs.split(max(1, objective.chunk_size // outputs))
    found = [_backward(module, met, chunk, loss) for chunk in chunks]
    met.clear()
    gram = objective.inputs.new_zeros((outputs, n, outputs, n), dtype=torch.float64)
    for parts in zip(*found, strict=True):
        layer = parts[0][1]
        x, delta = torch.cat([x for *_, x, _ in parts]), torch.cat([delta for *_, delta in parts], 1)
        _add_products(gram, layer, x, delta)
    return gram.view(outputs * n, outputs * n).div_(n)


def _add_products(gram: Float[Tensor, "c n c n"], layer: nn.Module, x: Tensor, delta: Tensor) -> None:
    own = _own(layer)
    if isinstance(layer, nn.Linear) and x.dim() == 2:
        rows = delta.flatten(0, 1)
        gram += (rows @ rows.T).view_as(gram) * (("weight" in own) * (x @ x.T) + ("bias" in own)).unsqueeze(1)
        return
    if "weight" in own:
        factors = _factors(layer, x, delta)
        if factors is None:
            rows = _slope_gradient(layer, x, delta)
        else:
            a, b = factors
            rows = (a @ b.mT).flatten(2)
        gram += (rows.flatten(0, 1) @ rows.flatten(0, 1).T).view_as(gram)
    if "bias" in own:
        rows = _bias_gradient(layer, delta).flatten(0, 1)
        gram += (rows @ rows.T).view_as(gram)
