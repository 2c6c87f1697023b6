"""Norms of the Jacobian of probabilities or logits in the input."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from genlib.estimates import Estimate
from genlib.network import Network, dense_steps
from genlib.network.derivatives import require_input_derivatives
from genlib.network.functional import pulled_back, without_recomputation
from genlib.network.losses import logits_of_classes
from genlib.network.objective import rademacher, require_finite, seeded_generator
from genlib.network.precision import full_precision
from genlib.sensitivity.samples import at_once, measurable_inputs

__all__ = ["jacobian_norms", "mean_squared_jacobian_norm"]

_JACOBIAN_BYTES = 64 * 2**20  # that the Jacobians of one chunk take
_OUTPUTS = ("probabilities", "logits", "cross_entropy")


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

    `of`: `probabilities`, `logits`, `cross_entropy`, or a tuple of these, which gives a dict of all from the same
    passes. `norm`: `frobenius`, or `spectral`, the largest singular value, from the smaller of the Gram matrices JJᵀ
    and JᵀJ. The probabilities' Jacobian is S = diag(p) − ppᵀ times the logits', with 1 − p written as a sum, so that
    nothing is lost as p nears 1; a network of one output f counts as the two logits 0 and f. `cross_entropy` takes the
    rows √p_k (J_k − Σ_l p_l J_l) of the logits' Jacobian: the square of its norm is the trace (of `spectral` the
    largest eigenvalue) of JᵀSJ, the Gauss-Newton part of the Hessian of that loss in the inputs, which is all of it
    where logits are piecewise linear in them. In units of the output over units of the input. A stack shares the
    inputs.
    Cost: 1 + C forward passes, C classes; less for a dense network with more inputs than units in its first layer; for
    logits beside others 2 more where one sample's Jacobian exceeds 64 MB. Memory: the Jacobians of a chunk, by default
    64 MB at most, twice for several; Frobenius takes rows alone where one sample's is beyond that, and spectral three
    matrices of inputs × inputs, where these are fewer than classes, else that one Jacobian.
    ValueError: BatchNorm or dropout in training mode, no data, inputs that are no floating-point numbers, an output
    that isn't [samples, classes] or doesn't depend on the inputs, a norm that isn't finite. Novak et al. 2018.
    """
    names = (of,) if isinstance(of, str) else tuple(of)
    if norm not in ("frobenius", "spectral"):
        raise ValueError(f"norm is {norm!r}; choose frobenius or spectral")
    network, inputs = measurable_inputs(network, inputs, chunk_size)
    classes = _classes(network, inputs, names)
    network, turned = _in_row_space(network, inputs, classes)
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for chunk in inputs.split(chunk_size or _chunk_size(network, turned(inputs[:1]), classes, norm)):
        logits, x = _output(network, turned(chunk), names)
        softmax = _Softmax.of(logits.detach()) if _of_classes(names) else None
        norms = {name: _Norm(norm == "spectral") for name in names}
        for rows in _rows(logits, x, softmax, names):
            for name, row in rows.items():
                norms[name].add(row)
        for name in names:
            found[name].append(norms[name].value() * (1.0 if name == "logits" else softmax.factor(name)))
        del logits, x, softmax, norms, rows, row  # the graph, before that of the next chunk is built
    norms = {name: require_finite(torch.cat(parts, -1), "Jacobian norm") for name, parts in found.items()}
    return norms[of] if isinstance(of, str) else norms


def _in_row_space(network: Network, inputs: Tensor, classes: int) -> tuple[Network, Callable[[Tensor], Tensor]]:
    """The network of inputs turned so that what its first, dense layer can't see is zero and left out, and the turn.

    With Wᵀ = QR the layer sees Wx = Rᵀ(Qᵀx), and no norm of a Jacobian changes. Taken where it is worth the QR.
    """
    steps = dense_steps(network.module)
    if network.size is not None or not steps or type(steps[0][1]) is not nn.Linear:
        return network, lambda x: x
    weight = f"{steps[0][0]}.weight"
    units, numbers = network.params[weight].shape
    if len(inputs) * classes * (numbers - units) < 4 * numbers * units:
        return network, lambda x: x
    q, r = torch.linalg.qr(network.params[weight].T)
    turned = replace(network, params=network.params | {weight: r.T.contiguous()})
    return turned, lambda x: x.flatten(1).to(q.device) @ q


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
    if of == "cross_entropy":
        raise ValueError("of is 'cross_entropy'; choose probabilities or logits, or jacobian_norms for it")
    if projections < 2:
        raise ValueError(f"projections is {projections}; draw at least 2, for the error comes from their spread")
    network, inputs = measurable_inputs(network, inputs, chunk_size)
    _classes(network, inputs, (of,))
    generator = seeded_generator(generator, inputs.device)
    total, variance = 0.0, 0.0
    for chunk in inputs.split(chunk_size or _chunk_size(network, inputs, 1)):
        logits, x = _output(network, chunk, (of,))
        v = rademacher((projections, *logits.shape), x, generator)
        if of == "probabilities":
            softmax = _Softmax.of(logits.detach())
            v = softmax.rest.unsqueeze(-1) * softmax.product(v)
        squares = torch.stack([row.square().sum(-1) for row in _products(logits, x, v)])
        spread, mean = torch.var_mean(squares, 0)
        total = total + mean.sum(-1) / len(inputs)
        variance = variance + spread.sum(-1) / (projections * len(inputs) ** 2)
    return Estimate(require_finite(total, "Jacobian norm"), variance.sqrt(), 1.0 + projections)


def _classes(network: Network, inputs: Tensor, of: tuple[str, ...]) -> int:
    if not of or set(of) - set(_OUTPUTS):
        raise ValueError(
            f"of is {of[0] if len(of) == 1 else of!r}; choose {', '.join(_OUTPUTS)}, or several in a tuple"
        )
    with torch.no_grad():
        shape = network.apply(network.params, inputs[:1]).shape
    if len(shape) != (2 if network.size is None else 3) or not shape[-1]:
        raise ValueError(f"network: its output has the shape {tuple(shape)}; it must be [samples, classes]")
    require_input_derivatives(network, inputs)
    return max(shape[-1], 2 if _of_classes(of) else 1)


def _of_classes(names: tuple[str, ...]) -> bool:
    return set(names) != {"logits"}


def _chunk_size(network: Network, inputs: Tensor, classes: int, norm: str = "frobenius") -> int:
    least, most = sorted((inputs[0].numel(), classes))
    row = (network.size or 1) * most * inputs.element_size()
    rows = classes
    if row * rows > _JACOBIAN_BYTES:  # of one sample, so class by class
        rows = 4 * least if norm == "spectral" else 10
    return max(1, min(at_once(network, inputs), _JACOBIAN_BYTES // (row * rows)))


def _output(network: Network, inputs: Tensor, of: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """The logits, and the inputs that they hang on: each network of a stack has its own copy.

    Of one output the two of its classes, where it is about these.
    """
    x = inputs if network.size is None else inputs.expand(network.size, *inputs.shape)
    with torch.enable_grad(), without_recomputation():
        x = x.detach().requires_grad_()
        # A clone, for an operation in place may not touch a leaf.
        logits = network.apply(network.params, x.clone(), inputs_of_each=network.size is not None)
    if not logits.requires_grad:
        raise ValueError("network: its output has no derivative with respect to inputs; remove no_grad or detach")
    return logits_of_classes(logits) if _of_classes(of) else logits, x


def _products(
    logits: Float[Tensor, "*n classes"], x: Tensor, cotangents: Iterable[Float[Tensor, "*n classes"]]
) -> Iterator[Float[Tensor, "*n numbers"]]:
    """Each cotangent times the logits' Jacobian, by one backward pass each."""
    for cotangent in cotangents:
        (product,) = pulled_back(logits, [x], cotangent, keep=True)
        yield product.reshape(*logits.shape[:-1], -1)


def _rows(
    logits: Float[Tensor, "*n classes"], x: Tensor, softmax: "_Softmax | None", names: tuple[str, ...]
) -> Iterator[dict[str, Float[Tensor, "*n numbers"]]]:
    """Class by class, the row of each output's Jacobian, that of a function of the softmax over its `factor`."""
    if softmax is None:
        yield from ({"logits": row} for row in _products(logits, x, _units(logits)))
        return
    shares = {name: softmax.shares(name).split(1, -1) for name in names if name != "logits"}
    for k, (row, centred) in enumerate(_centred(logits, x, softmax, "logits" in names)):
        yield {name: shares[name][k] * centred if name in shares else row for name in names}


def _centred(
    logits: Float[Tensor, "*n classes"], x: Tensor, softmax: "_Softmax", also_logits: bool
) -> Iterator[tuple[Float[Tensor, "*n numbers"], Float[Tensor, "*n numbers"]]]:
    """Class by class, the row of the logits' Jacobian, where it is asked for, and what it is above the others' mean."""
    if not also_logits:
        yield from ((row, row) for row in _products(logits, x, softmax.centred()))
        return
    rows = _products(logits, x, _units(logits))
    if logits.shape[-1] * max(logits.nbytes, x.nbytes) <= _JACOBIAN_BYTES:
        jacobian = torch.stack(list(rows), -2)
        yield from zip(jacobian.unbind(-2), (softmax.centering() @ jacobian).unbind(-2), strict=True)
    else:
        of_p, of_q = _products(logits, x, (softmax.p, softmax.q))
        tops = softmax.top.split(1, -1)
        yield from ((row, row - torch.where(top, of_q, of_p)) for row, top in zip(rows, tops, strict=True))


def _units(logits: Float[Tensor, "*n classes"]) -> Iterator[Float[Tensor, "*n classes"]]:
    for k in range(logits.shape[-1]):
        unit = torch.zeros_like(logits)
        unit[..., k] = 1
        yield unit


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

    # Row k of the Jacobian diag(p) − ppᵀ is p_k (e_k − p), the top's rest p (e − q). Over `rest` its entries are of
    # order one and free of cancellation, however near the top's p is to 1. Row k of the root of the same is
    # √p_k (e_k − p), the top's rest √p (e − q), and is taken over √rest.

    def factor(self, of: str) -> Float[Tensor, "*n"]:
        return self.rest if of == "probabilities" else self.rest.sqrt()

    def shares(self, of: str = "probabilities") -> Float[Tensor, "*n classes"]:
        if of == "probabilities":
            return torch.where(self.top, self.p, self.q)
        return torch.where(self.top, self.rest.unsqueeze(-1) * self.p, self.q).sqrt()

    def centering(self) -> Float[Tensor, "*n classes classes"]:
        """Row k is e_k less p, or q for the top."""
        centres = torch.where(self.top.unsqueeze(-1), self.q.unsqueeze(-2), self.p.unsqueeze(-2))
        return torch.eye(self.p.shape[-1], dtype=self.p.dtype, device=self.p.device) - centres

    def centred(self) -> Iterator[Float[Tensor, "*n classes"]]:
        """The rows of `centering`, one at a time."""
        for k, top in enumerate(self.top.split(1, -1)):
            row = torch.where(top, self.q, self.p).neg_()
            row[..., k] += 1
            yield row

    def product(self, v: Float[Tensor, "*n classes"]) -> Float[Tensor, "*n classes"]:
        means = [(shares * v).sum(-1, keepdim=True) for shares in (self.q, self.p)]
        return self.shares() * (v - torch.where(self.top, *means))


@dataclass
class _Norm:
    """A norm of a matrix whose rows come one after the other."""

    spectral: bool
    kept: list[Tensor] = field(default_factory=list)  # rows, or their norms
    gram: Float[Tensor, "*n numbers numbers"] | None = None  # of the rows that were let go

    def add(self, row: Float[Tensor, "*n numbers"]) -> None:
        self.kept.append(row if self.spectral else torch.linalg.vector_norm(row, dim=-1))
        if self.spectral and len(self.kept) > row.shape[-1]:
            self._let_go()
        elif not self.spectral and len(self.kept) > 64:  # thousands of small tensors fragment the memory
            self.kept = [torch.linalg.vector_norm(torch.stack(self.kept), dim=0)]

    def _let_go(self) -> None:
        rows, self.kept = torch.stack(self.kept, -2), []
        self.gram = rows.mT @ rows if self.gram is None else self.gram + rows.mT @ rows

    def value(self) -> Float[Tensor, "*n"]:
        if not self.spectral:
            return torch.linalg.vector_norm(torch.stack(self.kept), dim=0)
        if self.gram is not None and self.kept:
            self._let_go()
        if self.gram is None:
            rows = torch.stack(self.kept, -2)
            self.gram = rows @ rows.mT
        return torch.linalg.eigvalsh(self.gram)[..., -1].clamp(min=0).sqrt()
