"""The tail of a layer's spectrum: how fast its largest values thin out."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from genlib.network import Network
from genlib.network.parts import Patterns
from genlib.network.precision import full_precision
from genlib.network.weights import BATCH_NORM, FoldedWeight
from genlib.norms.layers import folded
from genlib.norms.operators import apply_linear, diagonal_blocks

__all__ = ["LEAST", "Tail", "tail_exponent", "tail_exponents"]

LEAST = 50  # values, below which the exponent is hardly an estimate (Clauset, Shalizi & Newman 2009)
_SIDE, _ENTRIES = 2048, 2**23  # of a matrix whose eigenvalues take seconds, or that takes 64 MB


@dataclass(frozen=True)
class Tail:
    """A power law p(x) ∝ x^-value from `minimum` on, which fits the `count` largest values best; float64.

    `distance`: the largest distance between the distribution functions of these values and of the law (Kolmogorov &
    Smirnov). `standard_error`: (value - 1)/√count, that of the exponent if the law and `minimum` were true.
    """

    value: Float[Tensor, "*models"]
    standard_error: Float[Tensor, "*models"]
    minimum: Float[Tensor, "*models"]
    distance: Float[Tensor, "*models"]
    count: Int[Tensor, "*models"]


def tail_exponent(values: Float[Tensor, "*models n"]) -> Tail:
    """The power law that fits the tail of positive values, by maximum likelihood from the best minimum on.

    α = 1 + k/Σ ln(x_i/x_min) over the k values from x_min on; each value but the largest is tried for x_min, and that
    taken whose law lies nearest to the values in `distance` (Clauset, Shalizi & Newman 2009). α isn't bounded above, as
    it is by 3 in the package powerlaw unless its range is opened, whose distance leaves out the jumps at the values.
    A law is always found; only the distance tells whether one holds. Cost: n sums of n numbers, on the host.
    ValueError: fewer than 50 values, values that aren't positive and finite, that are all the same.
    """
    n = values.shape[-1]
    if n < LEAST:
        raise ValueError(f"values holds {n}, and a tail needs {LEAST} values or more; take a larger layer")
    if not (values.isfinite() & (values > 0)).all():
        raise ValueError("values must be positive and finite; leave out those of zero")
    rows = np.sort(values.detach().double().cpu().numpy().reshape(-1, n), -1)
    found = torch.tensor(np.array([_fit(row) for row in rows]), device=values.device)
    value, minimum, distance, count = (column.reshape(values.shape[:-1]) for column in found.unbind(-1))
    return Tail(value, (value - 1) / count.sqrt(), minimum, distance, count.long())


def _fit(x: np.ndarray) -> tuple[float, float, float, float]:
    """Exponent, minimum, distance and count of the best tail of sorted values."""
    logs, n = np.log(x), len(x)
    firsts = np.flatnonzero(np.diff(x, prepend=-math.inf) > 0)  # where each value stands first
    best = (math.nan, math.nan, math.inf, math.nan)
    for i in firsts[:-1]:
        excess, k = logs[i:] - logs[i], n - i
        alpha = 1 + k / excess.sum()
        law, below = -np.expm1((1 - alpha) * excess), np.arange(k) / k
        distance = max((law - below).max(), (below + 1 / k - law).max())
        if distance < best[2]:
            best = (alpha, x[i], distance, float(k))
    if math.isnan(best[0]):
        raise ValueError("values are all the same; there is no tail to fit")
    return best


@full_precision()
@torch.no_grad()
def tail_exponents(
    network: nn.Module | Network,
    *,
    input_shape: tuple[int, ...],
    include: Patterns = None,
    exclude: Patterns = None,
) -> dict[str, Tail]:
    """`tail_exponent` of the squared singular values of each layer's linear map, by name (Martin & Mahoney 2021).

    Those layers alone that have 50 singular values other than zero; of a convolution those of the map on its whole
    image. What a map has several times by its symmetry counts once: a convolution of one pixel has the spectrum of its
    matrix, a circular one that of half of its frequencies. Cost: the eigenvalues of each layer's smaller Gram matrix,
    of other convolutions by their dense matrix. ValueError: as `norms.spectral_norms`; no layer that is large enough; a
    matrix above 2,048 rows and columns, or of a convolution above 8 million entries: take the others by `exclude`.
    """
    network, weights, shapes = folded(network, include, exclude, input_shape)
    spectra = {weight.name: _squares(weight, shapes) for weight in weights}
    found, most = {}, 0
    for name, squares in spectra.items():
        kept = [row[row > row.amax() * len(row) * torch.finfo(row.dtype).eps] for row in squares]
        most = max(most, *(len(row) for row in kept))
        if min(len(row) for row in kept) >= LEAST:
            tails = [tail_exponent(row) for row in kept]
            fields = {key: torch.stack([getattr(tail, key) for tail in tails]) for key in vars(tails[0])}
            found[name] = Tail(**(fields if network.size is not None else {key: t[0] for key, t in fields.items()}))
    if not found:
        raise ValueError(
            f"network: the most singular values of a layer are {most}, and a tail needs {LEAST} or more; measure "
            "a wider network"
        )
    return found


def _squares(weight: FoldedWeight, shapes: dict[str, tuple[int, ...]]) -> Float[Tensor, "models n"]:
    """The squared singular values of a layer's linear map, those that it has by symmetry once."""
    value = weight.value.double()
    if isinstance(weight.operation, BATCH_NORM):
        return value.square()
    if weight.name not in shapes:
        return _of_matrix(value, weight.name)
    blocks = diagonal_blocks(weight.operation, value, shapes[weight.name])
    if blocks is not None:
        return torch.cat([_eigenvalues(block).flatten(1) for block in blocks], 1)
    return _of_matrix(_dense(weight.operation, value, shapes[weight.name], weight.name), weight.name)


def _dense(
    operation: nn.Module, value: Tensor, shape: tuple[int, ...], name: str
) -> Float[Tensor, "models inputs outputs"]:
    """The matrix of a convolution on images of this shape, transposed."""
    numbers = math.prod(shape)
    image = torch.empty(1, *shape, dtype=value.dtype, device="meta")
    outputs = apply_linear(operation, value[0].to("meta"), image).numel()
    if numbers * outputs > _ENTRIES:
        raise ValueError(_too_large(name, numbers, outputs))
    units = torch.eye(numbers, dtype=value.dtype, device=value.device).view(numbers, *shape)
    return torch.stack([apply_linear(operation, w, units).flatten(1) for w in value])


def _of_matrix(matrix: Float[Tensor, "models rows columns"], name: str) -> Float[Tensor, "models n"]:
    if min(matrix.shape[1:]) > _SIDE:
        raise ValueError(_too_large(name, *matrix.shape[1:]))
    return _eigenvalues(matrix)


def _eigenvalues(matrix: Shaped[Tensor, "... rows columns"]) -> Float[Tensor, "... n"]:
    """Those of the smaller Gram matrix."""
    matrix = matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mH
    return torch.linalg.eigvalsh(matrix @ matrix.mH).clamp(min=0)


def _too_large(name: str, rows: int, columns: int) -> str:
    return (
        f"network: the map of {name} is {rows} × {columns}, too large for its whole spectrum; leave it out by exclude"
    )
