"""A certified bound on how far a network's outputs move with its input, below the product of spectral norms."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from genlib.network import Network, dense_steps
from genlib.network.precision import upcast_network
from genlib.norms.layers import require_nonzero

__all__ = ["log_lipschitz_bound"]


@torch.no_grad()
def log_lipschitz_bound(network: nn.Module | Network) -> Float[Tensor, "*models"]:
    """ln L with ‖f(x) - f(x')‖₂ ≤ L ‖x - x'‖₂ for all inputs, by ECLipsE-Fast (Xu & Sivaranjani 2024); float64.

    For f = W_d φ(W_{d-1} … φ(W₁x)), slopes of φ in [0, 1]. Let u be the difference of two inputs of a layer, v that of
    its outputs, v = DWu with D diagonal within [0, 1]: vᵀ(Wu - v) ≥ 0. With X positive definite, λ > 0 and
    X⁺ = λ - ¼λ² WX⁻¹Wᵀ then vᵀX⁺v ≤ λvᵀWu - ¼λ² vᵀWX⁻¹Wᵀv ≤ uᵀXu, for the last two are a square apart. From X₀ = 1,
    layer by layer, ‖x - x'‖² ≥ uᵀXu at the last, so that L² = ‖W_d X_{d-1}⁻¹ W_dᵀ‖₂. λ = 2/μ, μ = ‖WX⁻¹Wᵀ‖₂, makes the
    least eigenvalue of X⁺ as large as it can be, 1/μ; so L is never above Π‖W_i‖₂, nor below that over 2^((d-1)/2).
    Here X is λY, Y⁺ = 1 - WY⁻¹Wᵀ/2‖WY⁻¹Wᵀ‖₂, and ln L² = Σ_i ln ‖W_iY_{i-1}⁻¹W_iᵀ‖₂ - (d - 1) ln 2.
    Layers with nothing between them are multiplied first. Cost: a Cholesky factor and the eigenvalues of a square
    matrix of each layer's units. ValueError: another network than a Sequential of dense layers and activations whose
    slopes lie in [0, 1]; a layer of zeros.
    """
    network = upcast_network(Network.of(network))
    log_square, y = 0.0, None
    matrices = _matrices(network)
    for weight in matrices:
        m = weight @ weight.mT if y is None else weight @ torch.cholesky_solve(weight.mT, torch.linalg.cholesky(y))
        largest = require_nonzero(torch.linalg.eigvalsh(m)[..., -1].clamp(min=0))
        log_square = log_square + largest.log()
        y = torch.eye(m.shape[-1], dtype=m.dtype, device=m.device) - m / (2 * largest[..., None, None])
    return (log_square - (len(matrices) - 1) * math.log(2)) / 2


def _matrices(network: Network) -> list[Float[Tensor, "*models outputs inputs"]]:
    """Those of a chain, one for all layers that follow one another with nothing between."""
    steps = dense_steps(network.module)
    if not steps or not any(isinstance(layer, nn.Linear) for _, layer in steps):
        raise ValueError(
            "network is no Sequential of dense layers and elementwise activations; where nothing skips a layer and no "
            "slope exceeds 1, norms.log_product of its spectral_norms is a bound"
        )
    if steep := [
        name for name, layer in steps if isinstance(layer, nn.LeakyReLU) and not 0 <= layer.negative_slope <= 1
    ]:
        raise ValueError(
            f"network: {steep[0]} is a LeakyReLU with a slope outside [0, 1], and this bound is for those within"
        )
    tensors, found, apart = network.params | network.buffers, [], True
    for name, layer in steps:
        if isinstance(layer, nn.Linear):
            weight = tensors[f"{name}.weight"].double()
            found = [*found, weight] if apart else [*found[:-1], weight @ found[-1]]
            apart = False
        elif not isinstance(layer, nn.Identity):
            apart = True
    return found
