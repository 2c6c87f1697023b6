"""Sensitivity to the input: Jacobian norms, and how often a network changes its linear piece along a path."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from genlib._objective import measurable, rademacher, require_finite, seeded_generator
from genlib._pieces import flips_along, kinks, require_pieces
from genlib._precision import full_precision
from genlib.estimates import Estimate
from genlib.network import Network, dense_steps

__all__ = [
    "breakpoints",
    "ellipse",
    "jacobian_norms",
    "mean_squared_jacobian_norm",
    "random_ellipses",
    "transitions",
    "translation_loop",
]

_JACOBIAN_BYTES = 64 * 2**20  # that the Jacobians of one chunk take
_OUTPUTS = ("probabilities", "logits")


@full_precision()
def jacobian_norms(
    network: nn.Module | Network,
    inputs: Tensor,
    *,
    of: str | Sequence[str] = "probabilities",
    norm: str = "frobenius",
    chunk_size: int | None = None,
) -> Float[Tensor, "*models samples"] | dict[str, Float[Tensor, "*models samples"]]:
    """The norm of the Jacobian J(x) = ∂f(x)/∂x of each sample, f the class probabilities or the logits.

    `of`: `probabilities`, `logits`, or a tuple of both, which gives a dict of both from the same passes. `norm`:
    `frobenius`, or `spectral`, the largest singular value, from the C × C Gram matrix JJᵀ. The probabilities' Jacobian
    is (diag(p) − ppᵀ) times the logits', with 1 − p written as a sum, so that nothing is lost as p nears 1. In units of
    the output over units of the input. A stack shares the inputs.
    Cost: 1 + C forward passes, C classes; less for a dense network with more inputs than units in its first layer.
    Memory: C × chunk × input numbers, by default 64 MB at most, twice for both; Frobenius of one output a C-th of it.
    ValueError: BatchNorm or dropout in training mode, no data, inputs that are no floating-point numbers, an output
    that isn't [samples, classes] or doesn't depend on the inputs, a norm that isn't finite. Novak et al. 2018.
    """
    names = (of,) if isinstance(of, str) else tuple(of)
    if norm not in ("frobenius", "spectral"):
        raise ValueError(f"norm is {norm!r}; choose frobenius or spectral")
    network, inputs = _measurable(network, inputs, chunk_size)
    classes = _classes(network, inputs, names)
    network, inputs = _in_row_space(network, inputs, classes)
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for chunk in inputs.split(chunk_size or _chunk_size(network, inputs, classes)):
        logits, x = _output(network, chunk)
        softmax = _Softmax.of(logits.detach()) if "probabilities" in names else None
        if names == ("probabilities",):
            found["probabilities"].append(softmax.rest * _norm(_products(logits, x, softmax.jacobian()), norm))
            continue
        rows = _products(logits, x, torch.eye(classes, dtype=x.dtype, device=x.device))
        if softmax is not None:
            jacobian = torch.stack(list(rows), -2)
            products = softmax.jacobian() @ jacobian
            found["probabilities"].append(softmax.rest * _norm(products.unbind(-2), norm))
            rows = jacobian.unbind(-2)
        found["logits"].append(_norm(rows, norm))
    norms = {name: require_finite(torch.cat(parts, -1), "Jacobian norm") for name, parts in found.items()}
    return norms[of] if isinstance(of, str) else norms


def _in_row_space(network: Network, inputs: Tensor, classes: int) -> tuple[Network, Tensor]:
    """The inputs turned so that what the first layer of a dense network can't see is zero, and left out.

    With Wᵀ = QR the layer sees Wx = Rᵀ(Qᵀx), and no norm of a Jacobian changes. Taken where it is worth the QR.
    """
    steps = dense_steps(network.module)
    if network.size is not None or not steps or type(steps[0][1]) is not nn.Linear:
        return network, inputs
    weight = f"{steps[0][0]}.weight"
    units, numbers = network.params[weight].shape
    if len(inputs) * classes * (numbers - units) < 4 * numbers * units:
        return network, inputs
    q, r = torch.linalg.qr(network.params[weight].T)
    return replace(network, params=network.params | {weight: r.T.contiguous()}), inputs.flatten(1) @ q


@full_precision()
def mean_squared_jacobian_norm(
    network: nn.Module | Network,
    inputs: Tensor,
    *,
    of: str = "probabilities",
    projections: int = 2,
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> Estimate:
    """The mean of ‖J(x)‖_F² over the samples, estimated by random projections: for many classes, J as `jacobian_norms`.

    E‖Jᵀv‖² = ‖J‖_F² for v of random signs, `projections` of them a sample. Unbiased for the mean square alone: its
    root lies above the mean of the norm. The standard error is that of the signs, not of the choice of samples.
    Without a generator the signs are always the same.
    Cost: 1 + projections forward passes. ValueError: as `jacobian_norms`, fewer than 2 projections.
    """
    if projections < 2:
        raise ValueError(f"projections is {projections}; draw at least 2, for the error comes from their spread")
    network, inputs = _measurable(network, inputs, chunk_size)
    _classes(network, inputs, (of,))
    generator = seeded_generator(generator, inputs.device)
    total, variance = 0.0, 0.0
    for chunk in inputs.split(chunk_size or _chunk_size(network, inputs, 1)):
        logits, x = _output(network, chunk)
        v = rademacher((projections, *logits.shape), x, generator)
        if of == "probabilities":
            softmax = _Softmax.of(logits.detach())
            v = softmax.rest.unsqueeze(-1) * softmax.product(v)
        squares = torch.stack([row.square().sum(-1) for row in _products(logits, x, v.movedim(0, -2))])
        spread, mean = torch.var_mean(squares, 0)
        total = total + mean.sum(-1) / len(inputs)
        variance = variance + spread.sum(-1) / (projections * len(inputs) ** 2)
    return Estimate(require_finite(total, "Jacobian norm"), variance.sqrt(), 1.0 + projections)


def _measurable(
    network: nn.Module | Network, inputs: Tensor, chunk_size: int | None, what: str = "inputs"
) -> tuple[Network, Float[Tensor, "samples ..."]]:
    if not inputs.is_floating_point():
        raise ValueError(f"{what} is of {inputs.dtype}; sensitivity is about numbers that vary, so make them float")
    if inputs.dim() < 2 or inputs.numel() == 0:
        raise ValueError(f"{what} is empty, or of one axis alone; give at least one sample, [samples, …]")
    labels = torch.zeros(len(inputs), dtype=torch.long, device=inputs.device)  # of no consequence
    return measurable(network, inputs, labels, chunk_size)


def _classes(network: Network, inputs: Tensor, of: tuple[str, ...]) -> int:
    if not of or set(of) - set(_OUTPUTS):
        raise ValueError(f"of is {of[0] if len(of) == 1 else of!r}; choose probabilities, logits, or both in a tuple")
    with torch.no_grad():
        shape = network.apply(network.params, inputs[:1]).shape
    least = 2 if "probabilities" in of else 1
    if len(shape) != (2 if network.size is None else 3) or shape[-1] < least:
        raise ValueError(
            f"network: its output has the shape {tuple(shape)}; it must be [samples, classes], {least} or more classes"
        )
    return shape[-1]


def _chunk_size(network: Network, inputs: Tensor, classes: int) -> int:
    sample = (network.size or 1) * max(inputs[0].numel(), classes) * inputs.element_size()
    return max(1, min(_at_once(network, inputs), _JACOBIAN_BYTES // (sample * classes)))


def _at_once(network: Network, inputs: Float[Tensor, "samples ..."]) -> int:
    """The samples that pass at a time: of convolutions on a CPU so few that their activations stay in its cache."""
    if inputs.device.type != "cpu" or dense_steps(network.module) is not None:
        return 2048
    return max(32, min(2048, 2**17 // inputs[0].numel()))


def _output(network: Network, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The logits, and the inputs that they hang on: each network of a stack has its own copy."""
    x = inputs if network.size is None else inputs.expand(network.size, *inputs.shape)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        # A clone, for an operation in place may not touch a leaf.
        logits = network.apply(network.params, x.clone(), inputs_of_each=network.size is not None)
    if not logits.requires_grad:
        raise ValueError("network: its output has no derivative with respect to inputs; remove no_grad or detach")
    return logits, x


def _products(
    logits: Float[Tensor, "*n classes"], x: Tensor, cotangents: Float[Tensor, "... rows classes"]
) -> Iterator[Float[Tensor, "*n numbers"]]:
    """Each row of cotangents times the logits' Jacobian, by one backward pass a row."""
    for cotangent in cotangents.unbind(-2):
        (product,) = torch.autograd.grad(logits, x, cotangent.expand_as(logits), retain_graph=True)
        yield product.reshape(*logits.shape[:-1], -1)


class _Softmax(NamedTuple):
    """The probabilities p = softmax(f); `top` marks the largest, q are the others among themselves, p = rest q."""

    top: Bool[Tensor, "*n classes"]
    p: Float[Tensor, "*n classes"]
    q: Float[Tensor, "*n classes"]
    rest: Float[Tensor, "*n"]

    @classmethod
    def of(cls, logits: Float[Tensor, "*n classes"]) -> "_Softmax":
        largest = logits.argmax(-1, keepdim=True)
        top = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, largest, True)
        others = logits.masked_fill(top, -torch.inf)
        rest = (others.logsumexp(-1) - logits.logsumexp(-1)).exp()
        return cls(top, logits.softmax(-1), others.softmax(-1), rest)

    # The Jacobian diag(p) − ppᵀ over `rest`: row k is q_k (e_k − p), and the top's p (e − q). Its entries are of order
    # one and free of cancellation, however near the top's p is to 1.

    def jacobian(self) -> Float[Tensor, "*n classes classes"]:
        centres = torch.where(self.top.unsqueeze(-1), self.q.unsqueeze(-2), self.p.unsqueeze(-2))
        identity = torch.eye(self.p.shape[-1], dtype=self.p.dtype, device=self.p.device)
        return torch.where(self.top, self.p, self.q).unsqueeze(-1) * (identity - centres)

    def product(self, v: Float[Tensor, "*n classes"]) -> Float[Tensor, "*n classes"]:
        means = [(shares * v).sum(-1, keepdim=True) for shares in (self.q, self.p)]
        return torch.where(self.top, self.p, self.q) * (v - torch.where(self.top, *means))


def _norm(rows: Iterable[Float[Tensor, "*n numbers"]], norm: str) -> Float[Tensor, "*n"]:
    if norm == "frobenius":  # row by row, without the whole Jacobian
        return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(row, dim=-1) for row in rows]), dim=0)
    jacobian = torch.stack(list(rows), -2)
    return torch.linalg.eigvalsh(jacobian @ jacobian.mT)[..., -1].clamp(min=0).sqrt()


# ------------------------------------------------------------------------------------------------------ linear pieces


@full_precision()
@torch.no_grad()
def transitions(
    network: nn.Module | Network, path: Tensor, *, dim: int = 0, chunk_size: int | None = None
) -> Int[Tensor, "..."]:
    """How many hidden units change their linear piece at each step of a closed path, from point i to i + 1 mod k.

    `path` [points, …]; with `dim` = 1 many paths at once, [paths, points, …], with as many axes before the points as
    `dim` says. Returns [*models, *paths, points]. ReLU, LeakyReLU, PReLU and abs have two pieces; ReLU6, HardTanh,
    HardSigmoid and clamp three, a jump over one counting twice; a unit of a max-pool changes where its argmax does.
    The sum over the steps grows with k up to the number of crossings: what is crossed twice within a step is missed.
    Take k so large that 2k points change the sum by less than 2 %. `chunk_size` points at a time.
    Cost: one forward pass over the points. Fewer than two points, an operation that isn't piecewise linear (named),
    BatchNorm or dropout in training mode: ValueError. Novak et al. 2018.
    """
    if not 0 <= dim <= path.dim() - 2:
        raise ValueError(f"dim is {dim} for a path of shape {tuple(path.shape)}; it must be the axis of the points")
    if path.shape[dim] < 2:
        raise ValueError(f"path has {path.shape[dim]} points along axis {dim}; give at least 2")
    network = Network.of(network)
    network.require_eval()
    require_pieces(network)
    network, points = _measurable(network, path.flatten(0, dim), chunk_size, "path")
    if not torch.stack(points.aminmax()).isfinite().all():  # ten times as fast as a look at each
        raise ValueError("path is not finite; drop those points")
    chunk_size = chunk_size or _at_once(network, points)
    points = points.unflatten(0, (-1, path.shape[dim]))
    counts = [_transitions(one, points, chunk_size) for one in network.each]
    counts = counts[0] if network.size is None else torch.stack(counts)
    return counts.view(*counts.shape[:-2], *path.shape[: dim + 1])


def _transitions(
    network: Network, points: Float[Tensor, "paths points ..."], chunk_size: int
) -> Int[Tensor, "paths points"]:
    module, k = network.shared_copy(), points.shape[1]
    rows = []
    for paths in points.split(max(1, chunk_size // k)):
        parts = paths.split(chunk_size, 1)
        following = [part[:, :1] for part in (*parts[1:], parts[0])]
        rows.append(
            torch.cat([flips_along(network, module, torch.cat(p, 1)) for p in zip(parts, following, strict=True)], 1)
        )
    return torch.cat(rows).long()


@torch.no_grad()
def breakpoints(
    network: nn.Module | Network, start: Float[Tensor, "..."], end: Float[Tensor, "..."]
) -> Float[Tensor, " n"]:
    """All t in (0, 1), sorted, where a hidden unit changes its linear piece on the line x(t) = (1 − t) start + t end.

    Exact: between neighbouring breakpoints of the layers before, a unit's input is affine in t, and its crossings of
    the activation's kinks are solved for. Computed and returned in float64; units that cross at the same t count once.
    `start` and `end` are single inputs. For Sequentials of dense layers with ReLU, LeakyReLU, ReLU6, HardTanh or
    HardSigmoid, and one network: what else there is, `transitions` counts along points.
    Cost: a forward pass over n points; one host read a layer. Another network, shapes that differ, start = end:
    ValueError.
    """
    network = Network.of(network)
    if network.size is not None:
        raise ValueError("network is a stack, whose networks differ in their number of breakpoints; take network.each")
    require_pieces(network)
    network.require_eval()
    steps = dense_steps(network.module)
    if steps is None:
        raise ValueError(
            "network is no Sequential of dense layers and elementwise activations; "
            "transitions counts along points of a path what breakpoints solves for"
        )
    if start.shape != end.shape or start.numel() == 0:
        raise ValueError(f"start has the shape {tuple(start.shape)} and end {tuple(end.shape)}; give two single inputs")
    ends = torch.stack([start, end]).detach().flatten(1).double()
    if torch.equal(*ends) or not ends.isfinite().all():
        raise ValueError("start and end are equal or not finite; there is no segment between them")
    t = torch.tensor([0.0, 1.0], dtype=torch.float64, device=ends.device)
    values = ends
    for name, layer in steps:
        if isinstance(layer, nn.Linear):
            bias = network.params.get(f"{name}.bias")
            values = values @ network.params[f"{name}.weight"].double().T
            values = values if bias is None else values + bias.double()
        elif not isinstance(layer, nn.Identity):
            for kink in kinks(layer):
                t, values = _split(t, values, kink)
            values = layer(values)
    return t[1:-1]


def _split(
    t: Float[Tensor, " knots"], values: Float[Tensor, "knots units"], kink: float | int
) -> tuple[Float[Tensor, " more"], Float[Tensor, "more units"]]:
    """The knots, and the units' values there, with those added where a unit crosses the kink between two of them."""
    z = values - kink
    piece, unit = torch.nonzero(z[:-1].sign() * z[1:].sign() < 0, as_tuple=True)
    below, above = z[piece, unit], z[piece + 1, unit]
    share = (below / (below - above)).unsqueeze(1)
    crossed = torch.lerp(values[piece], values[piece + 1], share)
    crossed[torch.arange(len(unit), device=t.device), unit] = kink
    found = torch.lerp(t[piece], t[piece + 1], share.squeeze(1))
    t, order = torch.cat([t, found]).sort(stable=True)
    kept = torch.cat([t.new_ones(1, dtype=torch.bool), t.diff() > 0])
    return t[kept], torch.cat([values, crossed])[order][kept]


# -------------------------------------------------------------------------------------------------------------- paths


def ellipse(
    a: Float[Tensor, "..."], b: Float[Tensor, "..."], c: Float[Tensor, "..."], *, points: int, dim: int = 0
) -> Float[Tensor, "..."]:
    """The ellipse that passes through a, b and c at the angles π/3, π and 5π/3, a closed path: z(2πi/points).

    z(θ) = Σ_i (1 + 2 cos(θ − θ_i))/3 x_i: a circle's affine image, in the plane of the three. It meets them exactly if
    6 divides `points`. The points' axis is `dim`: with [paths, …] for each of the three, `dim` = 1 gives
    [paths, points, …]. Fewer than two points, shapes that differ: ValueError. Novak et al. 2018.
    """
    if not a.shape == b.shape == c.shape:
        raise ValueError(f"a, b and c have the shapes {[tuple(x.shape) for x in (a, b, c)]}; give three of one shape")
    _require_points(points, dim, a)
    at = torch.tensor([1, 3, 5], dtype=torch.float64, device=a.device) * math.pi / 3
    angles = torch.arange(points, dtype=torch.float64, device=a.device) * (2 * math.pi / points)
    weights = (1 + 2 * torch.cos(angles.unsqueeze(1) - at)) / 3
    return torch.tensordot(weights.to(a), torch.stack([a, b, c]), 1).movedim(0, dim)


def random_ellipses(
    inputs: Float[Tensor, "samples ..."], count: int, *, points: int, generator: torch.Generator | None = None
) -> Float[Tensor, "count points ..."]:
    """Ellipses through random points, far from the data but of their scale.

    Each passes through three points of independent Gaussian numbers, with the mean and the standard deviation of all
    numbers in `inputs`. Without a generator they are always the same.
    """
    if count < 1 or inputs.numel() == 0:
        raise ValueError(f"count is {count} for {len(inputs)} inputs; give at least one of each")
    generator = seeded_generator(generator, inputs.device)
    deviation, mean = torch.std_mean(inputs, correction=0)
    drawn = torch.randn(3, count, *inputs.shape[1:], generator=generator, dtype=inputs.dtype, device=inputs.device)
    return ellipse(*(drawn * deviation + mean), points=points, dim=1)


def translation_loop(images: Float[Tensor, "..."], *, points: int, dim: int = 0) -> Float[Tensor, "..."]:
    """An image or a series moved once around its last axis, the end joined to the start: a closed path of equal shifts.

    Shift i is i·width/points; between whole pixels the two neighbouring shifts are interpolated. The points' axis is
    `dim`: 0 for one image, 1 for a batch of them. Fewer than two points: ValueError. Novak et al. 2018.
    """
    _require_points(points, dim, images)
    width = images.shape[-1]
    shifts = torch.arange(points, device=images.device, dtype=torch.float64) * (width / points)
    whole = shifts.floor()
    columns = (torch.arange(width, device=images.device) - whole.long().unsqueeze(1)) % width
    share = (shifts - whole).unsqueeze(1).to(images)
    moved = torch.lerp(images[..., columns], images[..., (columns - 1) % width], share)
    return moved.movedim(-2, dim)


def _require_points(points: int, dim: int, sample: Tensor) -> None:
    if points < 2:
        raise ValueError(f"points is {points}; a path has at least 2")
    if not 0 <= dim < max(1, sample.dim()):
        raise ValueError(
            f"dim is {dim} for the shape {tuple(sample.shape)}; it says how many axes go before the points"
        )
