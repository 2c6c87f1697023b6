"""Curvature: the trace of the Hessian of the training loss, exact where a network is piecewise linear."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from genlib._losses import Loss
from genlib._objective import Objective, require_finite, seeded_generator
from genlib._precision import full_precision
from genlib._weights import BATCH_NORM, CONVOLUTIONS, TRANSPOSED
from genlib.estimates import Estimate
from genlib.network import Network

__all__ = ["trace"]

_LAYERS = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED, BATCH_NORM, nn.PReLU)

_ALL_CLASSES = 64  # above it cotangents are drawn
_COTANGENTS = 16  # a sample, where they are drawn


@full_precision()
def trace(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Int[Tensor, "..."],
    *,
    loss: Loss = "cross_entropy",
    method: str = "auto",
    cotangents: int | None = None,
    vectors: int = 30,
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> Estimate:
    """tr ∇²L(w), L the mean loss, w all parameters; `by_layer` that of each layer's block.

    `exact`: (1/N) Σ_n Σ_c |J_nᵀ s_nc|², Σ_c s_nc s_ncᵀ the Hessian of sample n's loss in its logits, J_n theirs in w:
    the Gauss-Newton trace, and the Hessian's where logits are piecewise linear in each parameter and no layer runs
    twice, for cross_entropy and mse (2/C each). Above 64 classes `cotangents` (16) random ones a sample stand for all,
    with a standard error; fewer classes draw them only if asked. `hutch++`: a third of `vectors` finds a subspace, a
    third sums over it, a third estimates the rest (Meyer et al. 2021); any network, any loss. `auto`: exact if it is.
    A stack gives one value a model, one after the other. Cost: exact 1 + cotangents forward passes, 1 + 2 cotangents
    with convolutions; hutch++ 3 + 6 `vectors`, 9 `vectors` in several chunks, memory vectors/3 times the parameters.
    ValueError: as `Objective.of`; `exact` asked of another network or loss, which it names; the loss `error`.
    """
    if loss == "error":
        raise ValueError("loss is 'error', which has no curvature; choose cross_entropy or mse")
    if method not in ("auto", "exact", "hutch++"):
        raise ValueError(f"method is {method!r}; choose auto, exact or hutch++")
    if cotangents is not None and cotangents < 2:
        raise ValueError(f"cotangents is {cotangents}; draw at least 2 a sample, for the error comes from their spread")
    if vectors < 6:
        raise ValueError(f"vectors is {vectors}; give at least 6, for the error comes from the spread of a third")
    objective = Objective.of(network, inputs, labels, loss, chunk_size)
    generator = seeded_generator(generator, objective.inputs.device)
    obstacle = _obstacle(objective.network, loss)
    if method == "exact" and obstacle:
        raise ValueError(f"{obstacle}; method='hutch++' estimates the trace")
    if method == "hutch++" or obstacle:
        found = [_hutch_plus_plus(one, vectors, generator) for one in _each(objective)]
    else:
        found = [_gauss_newton(one, loss, cotangents, chunk_size, generator) for one in _each(objective)]
    value, error, by_layer = _joined(found, objective.network.size)
    return Estimate(require_finite(value, "trace"), error, found[0].passes, by_layer)


def _each(objective: Objective) -> Iterator[Objective]:
    """The objective of each network of a stack, or the only one."""
    for i, one in enumerate(objective.network.each):
        data = (objective.inputs[i], objective.labels[i]) if objective.of_each else (objective.inputs, objective.labels)
        yield replace(objective, network=one, inputs=data[0], labels=data[1])


def _joined(found: list[Estimate], size: int | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    if size is None:
        return found[0].value, found[0].standard_error, found[0].by_layer
    by_layer = {name: torch.stack([one.by_layer[name] for one in found]) for name in found[0].by_layer}
    values, errors = zip(*((one.value, one.standard_error) for one in found), strict=True)
    return torch.stack(values), torch.stack(errors), by_layer


# ------------------------------------------------------------------------------------------------------------- exact


def _obstacle(network: Network, loss: Loss) -> str | None:
    """Why the Hessian's trace isn't known to be the Gauss-Newton one, if it isn't."""
    if loss not in ("cross_entropy", "mse"):
        return f"loss is {loss!r}, whose Hessian in the logits is not known here"
    if network.graph is None:
        return "network: torch.fx can't trace this module, so it isn't known to be piecewise linear"
    if odd := [layer.name for layer in network.layers if layer.kind not in ("linear", "piecewise linear")]:
        return f"network: {', '.join(odd)} is not piecewise linear, or not known to be"
    runs = Counter(node.target for node in network.graph.nodes if node.op == "call_module")
    owners: dict[int, str] = {}
    for name, layer in network.module.named_modules(remove_duplicate=False):
        if not runs[name]:
            continue
        for parameter in layer.parameters(recurse=False):
            if owners.setdefault(id(parameter), name) != name:
                return f"network: {owners[id(parameter)]} and {name} share a weight"
        if isinstance(layer, BATCH_NORM) and layer.running_mean is None:
            return f"network: {name} normalizes by the batch at hand"
        if _own(layer) and not (isinstance(layer, _LAYERS) and _own(layer) <= {"weight", "bias"}):
            return f"network: the weights of {name} are those of no layer that is known here"
        if _own(layer) and runs[name] > 1:
            return f"network: {name} runs {runs[name]} times"
    params = {name for name, _ in network.module.named_parameters(remove_duplicate=False)}
    if loose := [node.target for node in network.graph.nodes if node.op == "get_attr" and node.target in params]:
        return f"network: {loose[0]} is used outside of its layer"
    return None


def _own(layer: nn.Module) -> set[str]:
    return {name for name, _ in layer.named_parameters(recurse=False)}


def _gauss_newton(
    objective: Objective, loss: str, cotangents: int | None, chunk_size: int | None, generator: torch.Generator
) -> Estimate:
    classes = objective.classes
    count = cotangents or (classes if classes <= _ALL_CLASSES else _COTANGENTS)
    count, drawn = min(count, classes), count < classes
    if chunk_size is None:  # every sample passes backwards once a cotangent
        objective = replace(objective, chunk_size=max(1, objective.chunk_size // count))
    module, met = _with_records(objective.network)
    by_layer: dict[str, Tensor] = {}
    variance = objective.inputs.new_zeros((), dtype=next(iter(objective.network.params.values())).dtype)
    for inputs, _ in objective.batches:
        met.clear()
        with torch.enable_grad():
            logits = module(inputs)
        factor = _factor(logits.detach(), loss, count if drawn else None, generator)
        deltas = torch.autograd.grad(
            logits, [output for *_, output in met], factor, is_grads_batched=True, materialize_grads=True
        )
        total = torch.zeros_like(factor[..., 0])
        for (name, layer, x, _), delta in zip(met, deltas, strict=True):
            if len(x) != len(inputs):
                raise ValueError(
                    f"network: {name} sees {len(x)} rows for {len(inputs)} samples, so a sample's own share of its "
                    "gradient isn't known; method='hutch++' estimates the trace"
                )
            squares = _squares(layer, x, delta)
            by_layer[name] = by_layer.get(name, 0.0) + squares.sum() / objective.samples
            total += squares
        if drawn:
            variance += count * total.var(0).sum() / objective.samples**2
    weighing = any(isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED)) for _, layer, *_ in met)
    return Estimate(sum(by_layer.values()), variance.sqrt(), 1.0 + count * (1 + weighing), by_layer)


def _with_records(network: Network) -> tuple[nn.Module, list[tuple[str, nn.Module, Tensor, Tensor]]]:
    """A copy that shares every tensor, and the list where it writes each layer with its input and output as it runs."""
    module = network.shared_copy(requires_grad=True)
    met: list[tuple[str, nn.Module, Tensor, Tensor]] = []

    def record(name: str) -> Callable:
        def hook(layer: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
            met.append((name, layer, args[0].detach(), output))
            return output.clone()  # what comes next may work in place

        return hook

    for name, layer in module.named_modules():
        if isinstance(layer, _LAYERS) and _own(layer):
            layer.register_forward_hook(record(name))
    return module, met


def _factor(
    logits: Float[Tensor, "n classes"], loss: str, drawn: int | None, generator: torch.Generator
) -> Float[Tensor, "cotangents n classes"]:
    """Cotangents s_c with Σ_c s_c s_cᵀ the Hessian of the loss in the logits, or that on average over random signs."""
    n, classes = logits.shape
    if drawn is None:
        signs = torch.eye(classes, dtype=logits.dtype, device=logits.device).unsqueeze(1)
    else:
        signs = _signs((drawn, n, classes), logits, generator) / drawn**0.5
    if loss == "mse":
        return ((2 / classes) ** 0.5 * signs).expand(-1, n, classes)
    p = logits.softmax(1)
    roots = p.sqrt() * signs  # diag(p) - ppᵀ = AAᵀ, column c of A being √p_c (e_c - p)
    return roots - p * roots.sum(-1, keepdim=True)


def _squares(
    layer: nn.Module, x: Float[Tensor, "n ..."], delta: Float[Tensor, "cotangents n ..."]
) -> Float[Tensor, "cotangents n"]:
    """|∂(δ·layer(x))/∂(weight, bias)|² of each sample, δ being the gradient at the layer's output."""
    count, n = delta.shape[:2]
    squares = torch.zeros((count, n), dtype=delta.dtype, device=delta.device)
    if "weight" in _own(layer):
        squares += _weight_squares(layer, x, delta)
    if "bias" in _own(layer):
        channels = delta if isinstance(layer, nn.Linear) else delta.movedim(2, -1)
        squares += channels.reshape(count, n, -1, channels.shape[-1]).sum(2).square().sum(-1)
    return squares


def _weight_squares(layer: nn.Module, x: Tensor, delta: Tensor) -> Float[Tensor, "cotangents n"]:
    count, n = delta.shape[:2]
    if isinstance(layer, nn.Linear):
        places = delta.reshape(count, n, 1, -1, layer.out_features).mT
        return _product_squares(places, x.reshape(n, 1, -1, layer.in_features).mT)
    if isinstance(layer, CONVOLUTIONS):
        places = delta.flatten(3).unflatten(2, (layer.groups, -1))
        return _product_squares(places, _patches(layer, x, delta.shape[3:]))
    if isinstance(layer, TRANSPOSED):  # the same with the two ends of the layer exchanged
        patches = _patches(layer, delta.flatten(0, 1), x.shape[2:])
        return _product_squares(patches.unflatten(0, (count, n)), x.flatten(2).unflatten(1, (layer.groups, -1)))
    if isinstance(layer, nn.PReLU):
        slope = x.clamp(max=0).reshape(n, layer.num_parameters, -1)
    else:
        mean, root = layer.running_mean, (layer.running_var + layer.eps).rsqrt()
        slope = (x.reshape(n, len(mean), -1) - mean.unsqueeze(1)) * root.unsqueeze(1)
    return (delta.reshape(count, *slope.shape) * slope).sum(-1).square().sum(-1)


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


# --------------------------------------------------------------------------------------------------------- estimated


@torch.no_grad()
def _hutch_plus_plus(objective: Objective, vectors: int, generator: torch.Generator) -> Estimate:
    """Hutch++ with the diagonal kept, so that it can be summed by layers: E[u ⊙ Hu] + Σ q ⊙ Hq, u = z - QQᵀz."""
    weights = objective.network.params
    product, passes = _hessian_vector_product(objective)
    like = next(iter(weights.values()))
    sizes, third = [w.numel() for w in weights.values()], vectors // 3

    def probe() -> Float[Tensor, " parameters"]:
        return _signs((sum(sizes),), like, generator)

    basis = torch.linalg.qr(torch.stack([product(probe()) for _ in range(third)], 1)).Q
    diagonal = torch.zeros_like(basis[:, 0])
    for q in basis.T:
        diagonal += q * product(q)
    rest, count = [], vectors - 2 * third
    for _ in range(count):
        z = probe()
        u = z - basis @ (basis.T @ z)
        terms = u * product(u)
        diagonal += terms / count
        rest.append(terms.sum())
    by_layer: dict[str, Tensor] = {}
    for name, part in zip(weights, diagonal.split(sizes), strict=True):
        layer = name.rpartition(".")[0]
        by_layer[layer] = by_layer.get(layer, 0.0) + part.sum()
    error = torch.stack(rest).std() / count**0.5
    return Estimate(sum(by_layer.values()), error, passes(2 * third + count), by_layer)


def _hessian_vector_product(objective: Objective) -> tuple[Callable[[Tensor], Tensor], Callable[[int], float]]:
    """v -> Hv on flat vectors, and what so many of them cost in forward passes.

    Where the data are one chunk, the graph of the gradient is built once: 3 passes, then 6 a product, else 9.
    """
    leaves = [w.detach().requires_grad_() for w in objective.network.params.values()]
    batches = list(objective.batches)

    def gradient(inputs: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            logits = objective.network.apply(dict(zip(objective.network.params, leaves, strict=True)), inputs)
            loss = objective.losses(logits, labels).sum() / objective.samples
            return torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)

    kept = [gradient(*batches[0])] if len(batches) == 1 else None

    def product(v: Float[Tensor, " parameters"]) -> Float[Tensor, " parameters"]:
        parts = [part.view_as(w) for part, w in zip(v.split([w.numel() for w in leaves]), leaves, strict=True)]
        total = torch.zeros_like(v)
        for gradients in kept or (gradient(*batch) for batch in batches):
            curved = [(g, part) for g, part in zip(gradients, parts, strict=True) if g.requires_grad]
            if curved:
                outputs, along = zip(*curved, strict=True)
                found = torch.autograd.grad(
                    outputs, leaves, along, retain_graph=kept is not None, materialize_grads=True
                )
                total += torch.cat([part.flatten() for part in found])
        return total

    return product, lambda products: 3.0 + 6 * products if kept else 9.0 * products


def _signs(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    bits = torch.randint(2, shape, generator=generator, device=like.device)
    return bits.to(like.dtype) * 2 - 1
