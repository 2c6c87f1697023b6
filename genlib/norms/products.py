"""What all layers' norms together bound: products, and the complexities made of them."""

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from genlib.network import Network
from genlib.network.parts import Patterns
from genlib.norms.layers import LayerShape, distances, layer_shapes, require_nonzero, spectral_norms

__all__ = [
    "log_frobenius_complexity",
    "log_frobenius_complexity_of",
    "log_product",
    "log_spectral_complexity",
    "log_spectral_complexity_of",
    "spectral_complexity",
]


def log_product(norms: Float[Tensor, "*models layers"]) -> Float[Tensor, "*models"]:
    """log Π_i ‖W_i‖ = Σ_i log ‖W_i‖, in float64: the product itself may overflow. -inf where a norm is zero."""
    return norms.double().log().sum(-1)


def log_spectral_complexity(
    network: nn.Module | Network,
    initial: nn.Module | Network,
    *,
    input_shape: tuple[int, ...],
    rtol: float = 1e-4,
    include: Patterns = None,
    exclude: Patterns = None,
) -> Float[Tensor, "*models"]:
    """The logarithm of `spectral_complexity`, in float64: of a deep network the value itself may overflow."""
    parts = {"include": include, "exclude": exclude}
    spectral = require_nonzero(spectral_norms(network, input_shape=input_shape, rtol=rtol, **parts))
    return log_spectral_complexity_of(spectral, distances(network, initial, norm=(2, 1), **parts))


def log_spectral_complexity_of(
    spectral: Float[Tensor, "*models layers"], moved: Float[Tensor, "*models layers"]
) -> Float[Tensor, "*models"]:
    """`log_spectral_complexity` from the norms that it is made of, ‖W_i‖₂ and ‖W_i - W_i⁰‖_{2,1}."""
    ratios = moved.double() / spectral.double()
    return log_product(spectral) + 1.5 * (ratios ** (2 / 3)).sum(-1).log()


def spectral_complexity(
    network: nn.Module | Network,
    initial: nn.Module | Network,
    *,
    input_shape: tuple[int, ...],
    rtol: float = 1e-4,
    include: Patterns = None,
    exclude: Patterns = None,
) -> Float[Tensor, "*models"]:
    """R = Π_i ‖W_i‖₂ (Σ_i (‖W_i - W_i⁰‖_{2,1} / ‖W_i‖₂)^{2/3})^{3/2}, for 1-Lipschitz activations, in float64.

    Theorem 1.1 of Bartlett, Foster & Telgarsky (2017), rows of W_i being incoming weights; a kernel's (2, 1) norm is
    that of its matrix [outputs, inputs x taps]. Infinite beyond 1e308: see `log_spectral_complexity`.
    Cost and errors as `spectral_norms` and `distances`; a layer of zeros: ValueError.
    """
    parts = {"include": include, "exclude": exclude}
    return log_spectral_complexity(network, initial, input_shape=input_shape, rtol=rtol, **parts).exp()


def log_frobenius_complexity(
    network: nn.Module | Network,
    initial: nn.Module | Network,
    *,
    input_shape: tuple[int, ...],
    rtol: float = 1e-4,
    include: Patterns = None,
    exclude: Patterns = None,
) -> Float[Tensor, "*models"]:
    """log d √h Π_i ‖W_i‖₂ (Σ_i ‖W_i - W_i⁰‖_F² / ‖W_i‖₂²)^{1/2} over d layers, h the widest, in float64.

    The bound of Neyshabur, Bhojanapalli & Srebro (2018), Theorem 1, is in proportion to it over the margin and the
    root of the number of samples; there W⁰ = 0, in their code it is the initialization. h is the largest number of
    inputs or outputs of a layer, of a convolution its channels: noise of deviation σ on W_i has E‖U_i‖₂ ≤ 2σ√h.
    Errors as `spectral_complexity`.
    """
    parts = {"include": include, "exclude": exclude}
    spectral = require_nonzero(spectral_norms(network, input_shape=input_shape, rtol=rtol, **parts))
    return log_frobenius_complexity_of(spectral, distances(network, initial, **parts), layer_shapes(network, **parts))


def log_frobenius_complexity_of(
    spectral: Float[Tensor, "*models layers"], moved: Float[Tensor, "*models layers"], shapes: Sequence[LayerShape]
) -> Float[Tensor, "*models"]:
    """`log_frobenius_complexity` from what it is made of, ‖W_i‖₂, ‖W_i - W_i⁰‖_F and the layers' shapes."""
    width = max(max(shape.inputs, shape.outputs) for shape in shapes)
    squares = (moved.double() / spectral.double()) ** 2
    return math.log(len(shapes)) + log_product(spectral) + 0.5 * (squares.sum(-1).log() + math.log(width))
