"""Formulas that several measures share."""

import math

from jaxtyping import Float
from torch import Tensor

from genlib.estimates import Estimate
from genlib.measures.quantities import total
from genlib.measures.searches import Shared
from genlib.network import Params
from genlib.sharpness.noise import FLOOR

__all__ = [
    "divided",
    "inverse_square",
    "isotropic",
    "magnitude",
    "mean_of_layers",
    "sharp",
    "sharp_magnitude",
    "spectral_factor",
    "spectral_from",
]

_DELTA = 0.05


def divided(log_value: Float[Tensor, ""], shared: Shared, percent: int = 10) -> Float[Tensor, ""]:
    """A logarithm of a squared norm less that of the squared margin."""
    return log_value - 2 * shared.log_margin(percent)


def mean_of_layers(log_product: Float[Tensor, ""], shared: Shared) -> Float[Tensor, ""]:
    """d times the geometric mean over d layers."""
    return shared.depth * (log_product / shared.depth).exp()


def isotropic(square: Float[Tensor, ""], sigma: Estimate, shared: Shared) -> Estimate:
    """‖v‖²/4σ² + ln(m/σ) + 10, with the error that σ brings."""
    value = square / (4 * sigma.value**2) + (shared.samples / sigma.value).log() + 10
    slope = square / (2 * sigma.value**3) + 1 / sigma.value
    return Estimate(value, slope * sigma.standard_error, 0.0)


def magnitude(v: Params, sigma: Estimate, shared: Shared, c: float = 1.0) -> Estimate:
    """¼ Σ_i ln[(ε² + (σ² + c) ‖v‖²/ω) / (ε² + σ² v_i²)] + ln(m √c/σ) + 10, with the error that σ brings."""
    squares = [tensor.double().square() for tensor in v.values()]

    def bound(s: Tensor) -> Tensor:
        above = (FLOOR**2 + (s**2 + c) * total(squares) / shared.parameters).log() * shared.parameters
        below = total((FLOOR**2 + s**2 * square).log() for square in squares)
        return (above - below) / 4 + (shared.samples * c**0.5 / s).log() + 10

    value = bound(sigma.value.double())
    return Estimate(value, (bound(sigma.value.double() + sigma.standard_error) - value).abs(), 0.0)


def sharp(square: Float[Tensor, ""], radius: Estimate, shared: Shared) -> Estimate:
    """‖v‖² ln 2ω/4α² + ln(m/σ) + 10: the noise of σ = α/(ln 2ω)^½ stays in the box."""
    sigma = radius.value / math.log(2 * shared.parameters) ** 0.5
    return isotropic(square, Estimate(sigma, radius.standard_error, 0.0), shared)


def sharp_magnitude(v: Params, radius: Estimate, shared: Shared) -> Estimate:
    """The same of a box's radius α: its noise, of σ = α/c^½, c = 4 ln(2ω/δ), stays in the box."""
    return magnitude(v, radius, shared, c=4 * math.log(2 * shared.parameters / _DELTA))


def spectral_from(shared: Shared, moved: Float[Tensor, " layers"]) -> Float[Tensor, ""]:
    """ln γ⁻² Π‖W_i‖₂² Σ moved_i²/‖W_i‖₂², moved_i how far layer i lies from the origin, or from its start."""
    return divided(2 * shared.log_spectral, shared) + (moved / shared.spectral).square().sum().log()


def spectral_factor(shared: Shared) -> Float[Tensor, ""]:
    """ln (84 B Σ_i k_i √c_i + √ln(4h²d))², B the longest input, c_i the outputs of a layer of k_i² taps, h the most."""
    longest = shared.input_norms.max()
    roots = sum((shape.taps * shape.outputs) ** 0.5 for shape in shared.shapes)
    most = max(shape.outputs for shape in shared.shapes)
    return 2 * (84 * longest * roots + math.log(4 * most**2 * shared.depth) ** 0.5).log()


def inverse_square(sigma: Estimate) -> Estimate:
    return Estimate(sigma.value**-2, 2 * sigma.standard_error / sigma.value**3, 0.0)
