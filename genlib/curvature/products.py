"""Products of the Hessian of a mean loss, and of its Gauss-Newton part, with vectors, on graphs that are built once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from genlib.network import Network, Params
from genlib.network.derivatives import require_derivatives, twice_differentiable
from genlib.network.losses import Loss
from genlib.network.objective import Objective, rademacher, with_slope
from genlib.network.precision import full_precision

__all__ = ["Operator", "gauss_newton", "hessian", "hessian_product", "hessian_vector_product", "objective_of"]


@dataclass(frozen=True)
class Operator:
    """A symmetric matrix that is known by its products with vectors; the parameters lie in it one after the other."""

    product: Callable[[Tensor], Tensor]
    like: Params
    once: float  # forward passes before the first product
    a_product: float  # and at each

    @property
    def dimension(self) -> int:
        return sum(w.numel() for w in self.like.values())

    def __matmul__(self, v: Float[Tensor, " parameters"]) -> Float[Tensor, " parameters"]:
        return self.product(v)

    def passes(self, products: int) -> float:
        """What so many products cost in forward passes over the data."""
        return self.once + products * self.a_product

    def zeros(self, *lead: int) -> Float[Tensor, "*lead parameters"]:
        first = next(iter(self.like.values()))
        return torch.zeros((*lead, self.dimension), dtype=first.dtype, device=first.device)

    def signs(self, generator: torch.Generator) -> Float[Tensor, " parameters"]:
        return rademacher((self.dimension,), self.zeros(0), generator)

    def normal(self, generator: torch.Generator) -> Float[Tensor, " parameters"]:
        return self.zeros().normal_(generator=generator)


def hessian(objective: Objective) -> Operator:
    """∇²L: three passes and six a product where the data are one chunk, else nine a product."""
    kept = len(list(objective.batches)) == 1
    product = _flat(hessian_product(objective), objective.network.params)
    return Operator(product, objective.network.params, *((3.0, 6.0) if kept else (0.0, 9.0)))


def gauss_newton(objective: Objective) -> Operator:
    """G = (1/N) Σ_n J_nᵀ ∇²ℓ_n J_n: four passes and four a product where the data are one chunk, else eight."""
    kept = len(list(objective.batches)) == 1
    product = _flat(_gauss_newton_product(objective), objective.network.params)
    return Operator(product, objective.network.params, *((4.0, 4.0) if kept else (0.0, 8.0)))


def hessian_product(objective: Objective) -> Callable[[Params], Params]:
    """v -> Hv; of a stack every model's own at once."""
    leaves, names = _leaves(objective)

    def linearized(inputs: Tensor, labels: Tensor) -> Callable[[list[Tensor]], tuple[Tensor, ...]]:
        with torch.enable_grad(), twice_differentiable():
            logits = objective.network.apply(
                dict(zip(names, leaves, strict=True)), inputs, inputs_of_each=objective.of_each
            )
            loss = with_slope(objective.losses(logits, labels).sum() / objective.samples)
            gradient = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
        # Where they lie in the graph is enough, and the gradients themselves are let go.
        curved = [(i, get_gradient_edge(part)) for i, part in enumerate(gradient) if part.requires_grad]
        return lambda along: _pulled_back([edge for _, edge in curved], leaves, [along[i] for i, _ in curved])

    return _summed(objective, linearized)


def _gauss_newton_product(objective: Objective) -> Callable[[Params], Params]:
    leaves, names = _leaves(objective)

    def linearized(inputs: Tensor, labels: Tensor) -> Callable[[list[Tensor]], tuple[Tensor, ...]]:
        with torch.enable_grad(), twice_differentiable():
            logits = with_slope(objective.network.apply(dict(zip(names, leaves, strict=True)), inputs))
            at = logits.detach().requires_grad_()
            loss = objective.losses(at, labels).sum() / objective.samples
            (slope,) = torch.autograd.grad(loss, at, create_graph=True, materialize_grads=True)
            dummy = torch.zeros_like(at, requires_grad=True)
            transposed = torch.autograd.grad(logits, leaves, dummy, create_graph=True, materialize_grads=True)

        def product(along: list[Tensor]) -> tuple[Tensor, ...]:
            (forward,) = _pulled_back(transposed, [dummy], along)  # Jᵀc is linear in c, and Jv is its derivative
            return _pulled_back([logits], leaves, _pulled_back([slope], [at], [forward]))

        return product

    return _summed(objective, linearized)


def _leaves(objective: Objective) -> tuple[list[Tensor], list[str]]:
    params = objective.network.params
    return [w.detach().requires_grad_() for w in params.values()], list(params)


def _pulled_back(
    outputs: Sequence[Tensor | GradientEdge], inputs: Sequence[Tensor], along: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The gradient of Σ outputs · along in the inputs; outputs that don't depend on them count as constants."""
    curved = [(output, v) for output, v in zip(outputs, along, strict=True) if getattr(output, "requires_grad", True)]
    if not curved:
        return tuple(torch.zeros_like(one) for one in inputs)
    outputs, along = zip(*curved, strict=True)
    return torch.autograd.grad(outputs, inputs, along, retain_graph=True, materialize_grads=True)


def _summed(objective: Objective, linearized: Callable) -> Callable[[Params], Params]:
    """v -> the sum of all chunks' products. A single chunk's graph is built once and kept."""
    batches = list(objective.batches)
    names = list(objective.network.params)
    kept = linearized(*batches[0]) if len(batches) == 1 else None

    def product(v: Params) -> Params:
        along = [v[name] for name in names]
        if kept is not None:
            return dict(zip(names, kept(along), strict=True))
        total = [torch.zeros_like(part) for part in along]
        for batch in batches:
            for part, found in zip(total, linearized(*batch)(along), strict=True):
                part += found
        return dict(zip(names, total, strict=True))

    return product


def _flat(product: Callable[[Params], Params], like: Params) -> Callable[[Tensor], Tensor]:
    sizes = [w.numel() for w in like.values()]

    def flat(v: Float[Tensor, " parameters"]) -> Float[Tensor, " parameters"]:
        parts = {name: part.view_as(w) for (name, w), part in zip(like.items(), v.split(sizes), strict=True)}
        # What lies at an odd place of v can't be viewed as complex numbers, which pairs of real ones may stand for.
        parts = {name: part.clone() if part.shape[-1:] == (2,) else part for name, part in parts.items()}
        return torch.cat([part.flatten() for part in product(parts).values()])

    return flat


@full_precision()
def hessian_vector_product(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Shaped[Tensor, "..."],
    *,
    loss: Loss = "cross_entropy",
    chunk_size: int | None = None,
) -> Callable[[Params], Params]:
    """v ↦ ∇²L(w) v, L the mean loss and w the weights of now; v and the product have the weights' names and shapes.

    Where the data are one chunk, the graph of the gradient is built once and kept: 4 forward passes, then 6 a product
    (less what the first layer saves), and the memory of that graph, at the start 7 times the parameters; in several
    chunks 9 a product. A stack gives every model's product at once. ValueError: as `Objective.of`; the loss `error`, or
    one that isn't finite; a v of other names or shapes. Pearlmutter 1994.
    """
    objective = objective_of(network, inputs, labels, loss, chunk_size)
    objective.at_rest()
    shapes = {name: w.shape for name, w in objective.network.params.items()}
    # A copy: the network may be trained on while its products are in use.
    copied = {name: w.detach().clone() for name, w in objective.network.params.items()}
    product = hessian_product(replace(objective, network=replace(objective.network, params=copied)))

    @full_precision()
    def checked(v: Params) -> Params:
        if {name: part.shape for name, part in v.items()} != shapes:
            raise ValueError("v has other names or shapes than the network's parameters; give one tensor for each")
        return product({name: v[name].detach().to(w) for name, w in objective.network.params.items()})

    return checked


def objective_of(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Tensor,
    loss: Loss,
    chunk_size: int | None,
    *,
    twice: bool = True,
) -> Objective:
    """The objective, once its derivatives are seen to be right, the second ones if it is differentiated `twice`."""
    if loss == "error":
        raise ValueError("loss is 'error', which has no curvature; choose cross_entropy or mse")
    objective = Objective.of(network, inputs, labels, loss, chunk_size)
    require_derivatives(objective, twice=twice)
    return objective
