"""The density of all eigenvalues."""

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from genlib.curvature.lanczos import quadrature
from genlib.curvature.products import hessian, objective_of
from genlib.curvature.stacks import joined
from genlib.estimates import Density
from genlib.network import Network
from genlib.network.losses import Loss
from genlib.network.objective import seeded_generator
from genlib.network.precision import full_precision

__all__ = ["spectral_density"]


@full_precision()
def spectral_density(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Shaped[Tensor, "..."],
    *,
    steps: int = 50,
    draws: int = 5,
    loss: Loss = "cross_entropy",
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> Density:
    """The density of the eigenvalues of ∇²L(w), L the mean loss, by stochastic Lanczos quadrature.

    Of each of `draws` random signs z, `steps` of Lanczos give the nodes and weights of a Gauss quadrature for
    zᵀf(H)z/|z|², whose mean is the mean of f over all eigenvalues. `Density.on` draws it, by Gaussians.
    A stack: one model after the other, with a leading axis. Cost: 3 + 6 `steps` × `draws` forward passes, 9 each in
    several chunks; memory: `steps` + 3 times the parameters. No host read a step. ValueError: as `Objective.of`; the
    loss `error`; no steps or draws; a Hessian that isn't finite. Ubaru, Chen & Saad 2017; Ghorbani et al. 2019.
    """
    for name, value in (("steps", steps), ("draws", draws)):
        if value < 1:
            raise ValueError(f"{name} is {value}; give at least 1")
    objective = objective_of(network, inputs, labels, loss, chunk_size)
    generator = seeded_generator(generator, objective.device)
    nodes, weights = [], []
    for one in objective.each:
        operator = hessian(one)
        taken = min(steps, operator.dimension)
        pairs = [quadrature(operator, operator.signs(generator), taken) for _ in range(draws)]
        nodes.append(torch.stack([theta for theta, _ in pairs]))
        weights.append(torch.stack([omega for _, omega in pairs]) / draws)
    size = objective.network.size
    return Density(joined(nodes, size), joined(weights, size), operator.passes(taken * draws))
