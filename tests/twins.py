"""What measures are by brute force, of any module in float64: loops of autograd, and differences of its gradients."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from grammar import Constants, Doubled, InPlace, Map, Mean
from scipy import optimize
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = [
    "REFUSED",
    "fisher_rao",
    "gradient",
    "gradient_variance",
    "moved",
    "of_functions",
    "of_layers",
    "of_outputs",
    "of_paths",
    "of_the_loss",
    "of_weights",
    "rise",
    "wrong",
]

REFUSED = "refused"  # the only right answer
_STEP = 1e-7  # so small that no kink is near
_EXACT, _ROUGH = 1e-6, 2e-4  # relative; the second to the tolerances of Lanczos' method
_CONVOLUTIONS = nn.modules.conv._ConvNd
_TRANSPOSED = nn.modules.conv._ConvTransposeNd
_BATCH_NORM = nn.modules.batchnorm._BatchNorm
_SEVERAL = nn.RNNBase | nn.MultiheadAttention | nn.Embedding


def flat(tensors) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def loss(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    logits = network(x.clone())
    if logits.shape[1] > 1:
        return F.cross_entropy(logits, y)
    return F.softplus(-(2 * y - 1) * logits[:, 0]).mean()


def gradient(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    params = list(network.parameters())
    return flat(torch.autograd.grad(loss(network, x, y), params, allow_unused=True, materialize_grads=True))


def gradient_variance(network: nn.Module, x: Tensor, y: Tensor) -> float:
    each = torch.stack([gradient(network, *one) for one in zip(x.split(1), y.split(1), strict=True)])
    return (each - each.mean(0)).square().sum(1).mean().item()


def fisher_rao(network: nn.Module, x: Tensor, y: Tensor) -> float:
    each = torch.stack([gradient(network, *one) for one in zip(x.split(1), y.split(1), strict=True)])
    return (each @ flat(network.parameters())).square().mean().item()


def criteria(network: nn.Module, plain: nn.Module, x: Tensor, y: Tensor) -> dict[str, tuple[float, float]]:
    """Soft rank, TIC and evidence, by the Gauss-Newton matrix of all weights and the gradients of each sample."""
    weights, n = flat(network.parameters()), len(x)
    gradients = torch.stack([gradient(network, *one) for one in zip(x.split(1), y.split(1), strict=True)])
    matrix = torch.zeros(len(weights), len(weights), dtype=weights.dtype)
    for one in x.split(1):
        logits = plain(one.clone())[0]
        j = torch.stack([flat(_gradients(f, plain)) for f in logits])
        p = logits.detach().softmax(0) if len(logits) > 1 else logits.detach().sigmoid()
        inner = p.diag() - p.outer(p)  # of one output p(1 − p)
        matrix += j.T @ inner @ j / n
    values = torch.linalg.eigvalsh(matrix).clamp(min=0)
    damped = matrix + 1e-3 * torch.eye(len(matrix), dtype=matrix.dtype)

    def evidence(t: float) -> float:
        alpha, square = math.exp(t), weights.square().sum().item()
        return n * loss(network, x, y).item() + alpha * square / 2 + (n * values / alpha).log1p().sum().item() / 2

    tic = torch.linalg.solve(damped, gradients.T @ gradients / n).trace().item()
    least = optimize.minimize_scalar(evidence, (-5, 5), options={"xtol": 1e-8}).fun
    return {"soft_rank": (values / (values + 1e-3)).sum().item(), "tic": tic, "log_evidence": least}


def _gradients(value: Tensor, network: nn.Module) -> tuple[Tensor, ...]:
    params = list(network.parameters())
    return torch.autograd.grad(value, params, retain_graph=True, allow_unused=True, materialize_grads=True)


def relative_flatness(network: nn.Module, h: Tensor) -> float | None:
    """Σ_ss' ⟨w_s, w_s'⟩ tr H_ss' of the dense layer that has the last weights, if there is one."""
    place, found = 0, None
    for p in network.parameters():
        if p.dim() == 2:
            block = h[place : place + p.numel(), place : place + p.numel()].view(*p.shape, *p.shape)
            found = (p.detach() @ p.detach().T * block.diagonal(dim1=1, dim2=3).sum(-1)).sum().item()
        place += p.numel()
    return found


def moved(network: nn.Module, by: Tensor) -> nn.Module:
    """The network with its weights moved, in place."""
    with torch.no_grad():
        for p, step in zip(network.parameters(), by.split([p.numel() for p in network.parameters()]), strict=True):
            p.add_(step.view_as(p))
    return network


def hessian(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """By central differences of the gradient: torch's own second derivative is wrong for some modules.

    Weights to which torch gives no gradient, as those of a padding token, are held fixed.
    """
    kept = [p.detach().clone() for p in network.parameters()]
    columns = []
    for direction in torch.eye(sum(p.numel() for p in kept), dtype=torch.float64) * _STEP:
        found = []
        for sign in (1, -1):
            found.append(gradient(moved(network, sign * direction), x, y))
            with torch.no_grad():
                for p, value in zip(network.parameters(), kept, strict=True):
                    p.copy_(value)
        columns.append((found[0] - found[1]) / (2 * _STEP))
    h = torch.stack(columns)
    h[(h == 0).all(0)] = 0
    return (h + h.T) / 2


def rise(network: nn.Module, x: Tensor, y: Tensor, by: Tensor) -> float:
    """L(w + by) − L(w)."""
    with torch.no_grad():
        at_rest = loss(network, x, y)
        risen = loss(moved(network, by), x, y)
        moved(network, -by)
    return (risen - at_rest).item()


def _climbed(network: nn.Module, x: Tensor, y: Tensor, room: Tensor) -> float:
    """The largest rise that steps along the gradient's sign find in the box of these half widths."""
    by, best = torch.zeros_like(room), 0.0
    for _ in range(10):
        g = gradient(moved(network, by), x, y)
        moved(network, -by)
        by = torch.clamp(by + 0.5 * room * g.sign(), -room, room)
        best = max(best, rise(network, x, y, by))
    return best


def of_weights(network: nn.Module, initial: nn.Module) -> dict[str, float]:
    weights, start = flat(network.parameters()), flat(initial.parameters())
    return {"parameters": len(weights), "l2": weights.norm().item(), "l2_distance": (weights - start).norm().item()}


def of_outputs(network: nn.Module, x: Tensor, y: Tensor) -> dict[str, float | str]:
    """Loss and entropy, margins, and how the outputs hang on the inputs."""
    with torch.no_grad():
        logits = network(x.clone())
    found = {"cross_entropy": loss(network, x, y).item()}
    log_p = (logits if logits.shape[1] > 1 else F.pad(logits, (1, 0))).log_softmax(1)
    found["negative_entropy"] = (log_p.exp() * log_p).sum(1).mean().item()
    found["confidence"] = 1 - log_p.exp().amax(1).mean().item()
    for percent in (10, 5):
        if (margin := _percentile(_margins(logits, y), percent)) > 0:
            found[f"log_margin{percent}"] = math.log(margin)
    found["inverse_margin"] = math.exp(-2 * found["log_margin10"]) if "log_margin10" in found else REFUSED
    if not x.is_floating_point():
        return found | dict.fromkeys(("input_margin", "jacobian_norm", "input_gradient", "loss_curvature"), REFUSED)
    of_logits, of_probabilities, of_loss, distances = [], [], [], []
    for one, label in zip(x.split(1), y, strict=True):
        rows = torch.autograd.functional.jacobian(lambda v: network(v.clone())[0], one).flatten(1)
        p = log_p.exp()[len(of_logits)]
        full = rows if len(rows) > 1 else F.pad(rows, (0, 0, 1, 0))
        of_logits.append(rows.norm())
        of_probabilities.append((p.diag() @ full - p.outer(p) @ full).norm())
        of_loss.append((p[:, None] * (full - p @ full).square()).sum())
        out = F.pad(logits, (len(full) - len(rows), 0))[len(distances)]
        rival = out.masked_fill(F.one_hot(label, len(out)).bool(), -math.inf).argmax()
        distances.append((out[label] - out[rival]) / (full[label] - full[rival]).norm())
    found["jacobian_norm"] = torch.stack(of_probabilities).mean().item()
    found["loss_curvature"] = torch.stack(of_loss).mean().item()
    found["input_gradient"] = torch.stack(of_logits).square().mean().item()
    margin = _percentile(torch.stack(distances), 10)
    return found | {"input_margin": margin**-2 if margin > 0 else REFUSED}


def of_functions(network: nn.Module, initial: nn.Module, x: Tensor, y: Tensor) -> dict:
    """What training has made of the outputs, the features before the last layer, and the error on mixtures.

    That error is between the least and the most that partners of each sample's class can give.
    """
    with torch.no_grad():
        logits = network(x.clone())
        log_p, log_q = (_of_classes(z).log_softmax(1) for z in (logits, initial(x.clone())))
    found = {"function_distance": (log_p.exp() * (log_p - log_q)).sum(1).mean().item()}
    features = _last_features(network, x, logits)
    found |= dict.fromkeys(("feature_rank", "class_separation", "mixup_response"), REFUSED)
    if features is not None:
        variances = torch.linalg.svdvals(features - features.mean(0)).square()
        shares = variances[variances > 0] / variances.sum()
        found["feature_rank"] = -(-(shares * shares.log()).sum()).exp().item() if len(shares) else REFUSED
        if len(y.unique()) > 1:
            found["class_separation"] = _davies_bouldin(features, y)
    partners = [[j for j in range(len(y)) if i != j and y[i] == y[j]] for i in range(len(y))]
    if x.is_floating_point() and any(partners):
        wrong = [[_errs(network, (x[i] + x[j]) / 2, y[i]) for j in js or [i]] for i, js in enumerate(partners)]
        least, most = (sum(map(end, wrong)) / len(y) for end in (min, max))
        found["mixup_response"] = ((most + least) / 2, (most - least) / 2)
    return found


def _of_classes(logits: Tensor) -> Tensor:
    return logits if logits.shape[1] > 1 else F.pad(logits, (1, 0))


def _last_features(network: nn.Module, x: Tensor, logits: Tensor) -> Tensor | None:
    """What goes into the dense layer or convolution that gives the logits."""
    met = []
    layers = [part for part in network.modules() if isinstance(part, nn.Linear | _CONVOLUTIONS)]
    hooks = [
        part.register_forward_hook(lambda _, a, k, out: met.append(([*a, *k.values()][0], out)), with_kwargs=True)
        for part in layers
    ]
    with torch.no_grad():
        network(x.clone())
    for hook in hooks:
        hook.remove()
    given = [x for x, out in met if out.numel() == logits.numel() and torch.equal(out.reshape(logits.shape), logits)]
    return given[-1].flatten(1) if given else None


def _davies_bouldin(features: Tensor, y: Tensor) -> float | str:
    centres = {k: features[y == k].mean(0) for k in y.unique().tolist()}
    spread = {k: (features[y == k] - centre).norm(dim=1).mean().item() for k, centre in centres.items()}
    apart = {(k, j): (centres[k] - centres[j]).norm().item() for k in centres for j in centres if j != k}
    if not all(apart.values()):
        return REFUSED
    worst = [max((spread[k] + spread[j]) / apart[k, j] for j in centres if j != k) for k in centres]
    return sum(worst) / len(worst)


def _errs(network: nn.Module, one: Tensor, label: Tensor) -> bool:
    with torch.no_grad():
        logits = network(one[None].clone())[0]
    right = logits.argmax() == label if len(logits) > 1 else ((logits[0] > 0) == (label == 1)) & (logits[0] != 0)
    return not right.item()


def _margins(logits: Tensor, y: Tensor) -> Tensor:
    if logits.shape[1] == 1:
        return (2 * y - 1) * logits[:, 0]
    own = F.one_hot(y, logits.shape[1]).bool()
    return logits[own] - logits.masked_fill(own, -math.inf).amax(1)


def _percentile(values: Tensor, percent: int) -> float:
    values, place = values.sort().values.tolist(), percent / 100 * (len(values) - 1)
    below, above = values[math.floor(place)], values[math.ceil(place)]
    return below if below == above else below + (place - math.floor(place)) * (above - below)


def of_the_loss(network: nn.Module, plain: nn.Module, x: Tensor, y: Tensor) -> dict:
    """How the loss hangs on the weights; `plain` is the network such that autograd's gradient is the true one."""
    g, h, weights = gradient(network, x, y), hessian(plain, x, y), flat(network.parameters())
    eigenvalues = torch.linalg.eigvalsh(h).flip(0)
    size, tops = eigenvalues.abs().amax().item(), eigenvalues[:10]
    # What six random signs leave of the rest, beside ten eigenpairs: Var |Hz|² ≤ 2 Σ λ⁴.
    spread = (2 * eigenvalues[10:].pow(4).sum() / 6).sqrt().item() / max(2 * h.norm().item(), 1e-300)
    found = {
        "gradient_variance": gradient_variance(network, x, y),
        "batch_sharpness": ((g @ h @ g / g.square().sum()).item(), _EXACT * len(h) * size) if g.any() else REFUSED,
        "relative_flatness": relative_flatness(network, h),
        **criteria(network, plain, x, y),
        "fisher_rao": fisher_rao(network, x, y),
        "sam_sharpness": rise(network, x, y, 0.05 * g / g.norm()) if g.any() else 0.0,
        "hessian_trace": (h.trace().item(), _EXACT * len(h) * size),
        "top_eigenvalue": (tops[0].item(), _ROUGH * size),
        "hessian_norm": (h.norm().item(), _ROUGH * size + 4 * spread),
        "log_volume": (tops.log().sum().item(), _ROUGH * (size / tops).sum().item()) if tops[-1] > 0 else REFUSED,
    }
    relative = 100 / (1 + loss(network, x, y).item())
    for name, radius, factor in (("keskar_sharpness", 5e-4, relative), ("worst_case_sharpness", 2e-3, 1.0)):
        room = radius * (weights.abs() + 1)
        climbed, second = _climbed(network, x, y, room), (room @ h.abs() @ room).item() / 2
        found[name] = (factor * climbed, factor * (second + 0.05 * climbed))
    return found


# The layers


@dataclass
class Layer:
    """A layer as it runs: its linear map as a matrix, its bias, and the weights [outputs, inputs] that make it."""

    module: nn.Module
    matrix: Tensor
    bias: Tensor
    rows: Tensor
    kernel: Tensor | None = None  # of a convolution, as torch keeps it

    @property
    def spectral(self) -> float:
        return torch.linalg.matrix_norm(self.matrix, 2).item()


class _Convolutions(TorchFunctionMode):
    """Sees the weights and the outputs of each convolution within, without a bias, or puts other weights there."""

    NAMES = tuple(f"conv{kind}{d}d" for kind in ("", "_transpose") for d in (1, 2, 3))

    def __init__(self, instead: Tensor | None = None):
        super().__init__()
        self.instead, self.met = instead, []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__name__", "") not in self.NAMES:
            return function(*args, **kwargs)
        weight = args[1] if self.instead is None else self.instead
        self.met.append((weight, function(args[0], weight, None, *args[3:], **kwargs)))
        return self.met[-1][1]


def layers(network: nn.Module, x: Tensor, left_out: Collection[str] = ()) -> "list[Layer] | None":
    """The layers in the order in which they run, BatchNorm folded into the layer that it follows; None if unknown.

    But for the modules and parameters that are `left_out`, by name.
    """
    met, handles = [], []
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear | _CONVOLUTIONS | _BATCH_NORM | Map | _SEVERAL) and name not in left_out:
            before = module.register_forward_pre_hook(
                lambda m, args: met.append([m, args[0], None, args[0]._version]), prepend=True
            )
            after = module.register_forward_hook(
                lambda m, args, y: met[-1].__setitem__(2, (y, getattr(y, "_version", None)))
            )
            handles += [before, after]
    outputs = network(x.clone())
    for handle in handles:
        handle.remove()
    owned = {p for module, *_ in met for p in module.parameters()}
    owned |= {p for name, p in network.named_parameters() if {name, name.rpartition(".")[0]} & set(left_out)}
    params = list(network.parameters())
    reached = torch.autograd.grad(outputs.sum(), params, allow_unused=True)
    if any(g is not None and p not in owned for p, g in zip(params, reached, strict=True)):
        return None
    found: list[Layer] = []
    with torch.no_grad():
        for place, (module, given, _, version) in enumerate(met):
            if isinstance(module, _BATCH_NORM):
                scale, shift = _line(module, given)
                output, written = met[place - 1][2] if place else (None, None)
                if output is given and written == version and not isinstance(met[place - 1][0], _BATCH_NORM):
                    found[-1] = _folded(found[-1], scale, shift)
                else:
                    found.append(Layer(module, scale.diag(), shift, scale[:, None]))
            elif isinstance(module, _CONVOLUTIONS):
                found.append(_convolution(module, given))
            elif isinstance(module, _SEVERAL):
                found += [
                    Layer(module, rows, rows.new_zeros(len(rows)), rows)
                    for rows in map(Tensor.detach, _matrices(module))
                ]
            else:
                zero = module(given.new_zeros(1, given.shape[-1]))
                matrix = (module(torch.eye(given.shape[-1], dtype=given.dtype)) - zero).T
                found.append(Layer(module, matrix, zero[0], matrix))
    return found


def _matrices(module: nn.Module) -> list[Tensor]:
    """Those of a recurrent layer by gates, of attention by projections, of an embedding from one-hot rows."""
    if isinstance(module, nn.Embedding):
        return [module.weight.T]
    if isinstance(module, nn.MultiheadAttention):
        return [*module.in_proj_weight.chunk(3), module.out_proj.weight]
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[type(module)]
    return [gate for weight in module.parameters() if weight.dim() == 2 for gate in weight.chunk(gates)]


def _line(norm: nn.Module, given: Tensor) -> tuple[Tensor, Tensor]:
    zero = norm(torch.zeros_like(given[:1])).movedim(1, -1).flatten(0, -2)[0]
    return norm(torch.ones_like(given[:1])).movedim(1, -1).flatten(0, -2)[0] - zero, zero


def _folded(layer: Layer, scale: Tensor, shift: Tensor) -> Layer:
    wide = scale.repeat_interleave(len(layer.matrix) // len(scale))
    kernel = layer.kernel
    if kernel is not None:
        kernel = kernel * scale.view(-1, *[1] * (kernel.dim() - 1))
    return Layer(
        layer.module, wide[:, None] * layer.matrix, layer.bias * scale + shift, scale[:, None] * layer.rows, kernel
    )


def _convolution(module: nn.Module, given: Tensor) -> Layer:
    one = given[:1]
    basis = torch.eye(one.numel(), dtype=given.dtype).view(-1, *one.shape[1:])
    zero = module(torch.zeros_like(one))
    images = module(basis) - zero
    with _Convolutions() as bare:
        module(basis)
    ((weight, alone),) = bare.met
    kernel = weight * (images.flatten() @ alone.flatten()) / alone.flatten().square().sum()  # and what hooks do to it
    rows = kernel.flatten(1)
    if isinstance(module, _TRANSPOSED):
        rows = kernel.unflatten(0, (module.groups, -1)).transpose(1, 2).flatten(3).flatten(0, 1).flatten(1)
    corner = zero.flatten(2)[0, :, 0]
    return Layer(module, images.flatten(1).T, corner, rows, kernel)


def _inputs_and_taps(layer: Layer) -> tuple[int, int]:
    if layer.kernel is None:
        return layer.rows.shape[1], 1
    of_a_group = layer.kernel.shape[0] if isinstance(layer.module, _TRANSPOSED) else layer.kernel.shape[1]
    inputs = of_a_group if isinstance(layer.module, _TRANSPOSED) else of_a_group * layer.module.groups
    return inputs, layer.kernel[0, 0].numel()


def of_layers(
    network: nn.Module, initial: nn.Module, x: Tensor, y: Tensor, outputs: dict, left_out: Collection[str]
) -> dict[str, float | str]:
    """The measures of norms, from the layers that run; `outputs` are those of `of_outputs`."""
    found, start = layers(network, x[:2], left_out), layers(initial, x[:2], left_out)
    if not found or not start:
        return {}
    d, n, m = len(found), sum(p.numel() for p in network.parameters()), len(x)
    h = [len(layer.rows) for layer in found]
    norm = torch.linalg.vector_norm

    def each(value: Callable[[Layer], Tensor | float]) -> Tensor:
        return torch.tensor([float(value(layer)) for layer in found], dtype=torch.float64)

    def apart(value: Callable[[Tensor], Tensor], part: str = "rows") -> Tensor:
        pairs = zip(found, start, strict=True)
        return torch.tensor([float(value(getattr(a, part) - getattr(b, part))) for a, b in pairs], dtype=torch.float64)

    frobenius, spectral = each(lambda layer: layer.rows.norm()), each(lambda layer: layer.spectral)
    moved_f, moved_s = apart(norm), apart(lambda t: torch.linalg.matrix_norm(t, 2), "matrix")
    moved_21 = apart(lambda t: norm(t, dim=1).sum())
    product_f, product_s = 2 * frobenius.log().sum(), 2 * spectral.log().sum()
    ranks = (each(_operator_norm) / spectral).square()
    values = {
        "vc_dimension": n * d * math.log(n),
        "parameter_norm": frobenius.square().sum(),
        "frobenius_distance": moved_f.square().sum(),
        "spectral_distance": moved_s.square().sum(),
        "product_frobenius": product_f,
        "product_spectral": product_s,
        "sum_frobenius": d * (product_f / d).exp(),
        "sum_spectral": d * (product_s / d).exp(),
        "stable_rank": ranks.sum(),
    }
    lengths, (inputs, taps) = x.flatten(1).double().norm(dim=1), zip(*map(_inputs_and_taps, found), strict=True)
    roots = sum((k * c) ** 0.5 for k, c in zip(taps, h, strict=True))
    factor = 2 * math.log(84 * lengths.max() * roots + math.log(4 * max(h) ** 2 * d) ** 0.5)
    origin, from_start = ((moved / spectral).square().sum().log() for moved in (frobenius, moved_f))
    by_row = 1.5 * ((moved_21 / spectral) ** (2 / 3)).sum().log() + lengths.norm().log()
    by_width = 0.5 * (max(*h, *inputs) * (moved_f / spectral).square().sum()).log()
    if "log_margin10" in outputs:
        less = 2 * outputs["log_margin10"]
        values |= {
            "product_frobenius_margin": product_f - less,
            "product_spectral_margin": product_s - less,
            "sum_frobenius_margin": d * ((product_f - less) / d).exp(),
            "sum_spectral_margin": d * ((product_s - less) / d).exp(),
            "spectral_from_origin": product_s - less + origin,
            "spectral_from_start": product_s - less + from_start,
            "spectral_origin": product_s - less + origin + factor,
            "spectral_start": product_s - less + from_start + factor,
            "l1_max_margin": 2 * each(lambda layer: layer.rows.abs().sum(1).max()).log().sum() - less,
            "l3_margin": 2 * each(lambda layer: norm(norm(layer.rows, 3, dim=1), 1.5)).log().sum() - less,
            "spectral_complexity": product_s / 2 + by_row - math.log(m) - less / 2,
            "frobenius_complexity": math.log(d) + product_s / 2 + by_width - math.log(m) / 2 - less / 2,
        }
    if "log_margin5" in outputs:
        less = 2 * outputs["log_margin5"]
        values["neyshabur_l2"] = product_f + d * math.log(4) - less
        values["neyshabur_spectral"] = product_s + math.log(math.prod(h)) - less
    return {name: float(value) for name, value in values.items()}


def _operator_norm(layer: Layer) -> Tensor:
    return layer.matrix.norm()


# Paths


def of_paths(network: nn.Module, x: Tensor, outputs: dict) -> dict[str, float]:
    """The sums over paths: the network on ones, each layer with |w|^p, activations and hooks taken away."""
    found = layers(network, x[:2])
    if not found:
        return {}
    logs = {p: _path_sum(network, found, x, p) for p in (1, 2)}
    values = {"path": logs[2], "l1_path": 2 * logs[1]}
    if "log_margin10" in outputs:
        less = 2 * outputs["log_margin10"]
        values["path_margin"], values["l1_path_margin"] = logs[2] - less, 2 * logs[1] - less
    if "log_margin5" in outputs:
        more = len(found) * math.log(4) - 2 * outputs["log_margin5"]
        values["neyshabur_l1_path"] = 2 * logs[1] + more
        values["neyshabur_l2_path"] = logs[2] + more + sum(math.log(len(layer.rows)) for layer in found)
    return values


@torch.no_grad()
def _path_sum(network: nn.Module, found: list[Layer], x: Tensor, p: int) -> float:
    known = {id(layer.module): layer for layer in found}
    kept = {}
    for module in network.modules():
        layer = known.get(id(module))
        form = _path_form(module, p) if layer is None else _weighted(layer, module.forward, p)
        if form is not None:
            kept[module] = (module._forward_hooks.copy(), module._forward_pre_hooks.copy())
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()
            module.forward = form
    try:
        return network(torch.ones_like(x[:1])).sum().log().item()
    finally:
        for module, (after, before) in kept.items():
            del module.forward
            module._forward_hooks.update(after)
            module._forward_pre_hooks.update(before)


def _weighted(layer: Layer, forward: Callable, p: int) -> Callable:
    bias = layer.bias.abs() ** p
    if layer.kernel is None:
        if isinstance(layer.module, _BATCH_NORM):
            scale = layer.matrix.diagonal().abs() ** p
            return lambda z: z * scale.view(-1, *[1] * (z.dim() - 2)) + bias.view(-1, *[1] * (z.dim() - 2))
        return lambda z: z @ (layer.matrix.abs() ** p).T + bias

    def convolve(z):
        with _Convolutions(instead=layer.kernel.abs() ** p):
            y = forward(z)
        return y + bias.view(-1, *[1] * (y.dim() - 2))

    return convolve


def _path_form(module: nn.Module, p: int) -> Callable | None:
    kind = type(module).__name__
    if isinstance(module, nn.ReLU | nn.Tanh | nn.LeakyReLU | _BATCH_NORM):
        return lambda z: z
    if isinstance(module, Doubled):
        return lambda z: 2**p * z
    if isinstance(module, InPlace):
        return lambda z: 0.7**p * super(InPlace, module).forward(z) + 0.1**p
    if isinstance(module, Constants):
        return lambda z: module.layer(z + module.shift.abs() ** p) @ module.projection.abs() ** p
    if isinstance(module, Mean):
        return lambda z: z.sum(1) / z.shape[1] ** p
    if kind == "AdaptiveAvgPool2d":
        return lambda z: z.sum((2, 3), keepdim=True) / z[0, 0].numel() ** p
    if kind in ("AvgPool2d", "MaxPool2d"):
        window = (module.kernel_size, module.stride, module.padding, module.ceil_mode)

        def pooled(z):
            total = F.avg_pool2d(z, *window, divisor_override=1)
            if kind == "MaxPool2d":
                return total
            ones = torch.ones_like(z)
            return total * (F.avg_pool2d(ones, *window) / F.avg_pool2d(ones, *window, divisor_override=1)) ** p

        return pooled
    return None


# The table beside it


def wrong(name: str, row, truth) -> str | None:
    """What is wrong with a row; `truth` is a number, one with its tolerance, REFUSED, or None where it isn't known."""
    if row.reason.startswith("unexpected"):
        return f"{name}: {row.reason}"
    if math.isnan(row.value):
        return None if row.reason else f"{name}: no value and no reason"
    if truth is None:
        return None
    if truth == REFUSED:
        return f"{name}: {row.value:.8g} for what has no value"
    truth, room = truth if isinstance(truth, tuple) else (truth, 0.0)
    spectral = "spectral" in name or name in ("frobenius_complexity", "stable_rank")
    room += (_ROUGH if spectral else _EXACT) * max(1e-3, abs(truth), 10.0 * spectral)
    error = 0.0 if math.isnan(row.standard_error) else row.standard_error
    if abs(row.value - truth) <= room + 6 * error:
        return None
    return f"{name}: {row.value:.8g} ± {error:.2g} for {truth:.8g}"
