"""Norms of one layer, among them the exact operator norm of a convolution."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import vmap

from genlib.network import over_models
from genlib.network.weights import BATCH_NORM, CONVOLUTIONS, TRANSPOSED, FoldedWeight

__all__ = [
    "OperatorNorm",
    "apply_linear",
    "conv_operator_norm",
    "diagonal_blocks",
    "group_norm",
    "kernel_frobenius_norm",
    "operator_frobenius_norm",
    "require_fit",
    "spectral_norm",
]

_GRAM_LIMIT = 1024  # above it Lanczos reads a matrix faster than its Gram matrix is diagonalized
_SPECTRUM_CHUNK = 2**23  # complex numbers held at a time: 64 MiB
MAX_PASSES = 4000
_CHECK_EVERY = 8  # Lanczos steps from one host read to the next


@dataclass(frozen=True)
class OperatorNorm:
    """An operator norm, the residual ‖Aᵀu - σv‖ of its singular pair, and the convolutions it cost, transposed or not.

    Some singular value lies within `residual` of `value`, which is never above the norm but for rounding. Both are 0
    where Fourier or a dense matrix gave the norm at once.
    """

    value: Float[Tensor, "*models"]
    residual: Float[Tensor, "*models"]
    passes: int


def kernel_frobenius_norm(weight: FoldedWeight) -> Float[Tensor, " models"]:
    return vector_norm(weight.value.flatten(1), 2)


def group_norm(weight: FoldedWeight, p: float | int, q: float | int) -> Float[Tensor, " models"]:
    for name, value in (("p", p), ("q", q)):
        if not value >= 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    return vector_norm(vector_norm(weight.rows, p), q)


def vector_norm(x: Tensor, order: float | int) -> Tensor:
    """The norm over the last axis; float64 inside, where squares of float32 neither overflow nor underflow."""
    return torch.linalg.vector_norm(x, order, -1, dtype=torch.float64).to(x.dtype)


def spectral_norm(weight: FoldedWeight, shapes: dict[str, tuple[int, ...]], rtol: float) -> Float[Tensor, " models"]:
    if isinstance(weight.operation, BATCH_NORM):
        return weight.value.abs().amax(-1)
    if weight.name in shapes:
        norm = conv_operator_norm(weight.operation, weight.value, shapes[weight.name], rtol, MAX_PASSES)
    else:
        norm = _dense(weight.value, rtol)
    if norm.passes and (norm.residual > rtol * norm.value).any():
        raise ValueError(f"rtol {rtol} is not reached for {weight.name} in {norm.passes} passes; ask for a larger rtol")
    return norm.value


def _dense(matrix: Float[Tensor, "models outputs inputs"], rtol: float) -> OperatorNorm:
    if min(matrix.shape[1:]) <= _GRAM_LIMIT:
        return _at_once(_matrix_norm(matrix))
    shape = matrix[:, 0].shape
    return _lanczos(lambda unit, x: (unit @ x.unsqueeze(-1)).squeeze(-1), matrix, shape, rtol, MAX_PASSES)


def _at_once(value: Tensor) -> OperatorNorm:
    return OperatorNorm(value, torch.zeros_like(value), 0)


def _matrix_norm(matrix: Tensor) -> Tensor:
    """σ_max of a batch of matrices, the root of the largest eigenvalue of the smaller Gram matrix."""
    scale = largest_magnitude(matrix, (-2, -1))
    matrix = matrix / scale
    if matrix.shape[-2] > matrix.shape[-1]:
        matrix = matrix.mH
    return torch.linalg.eigvalsh(matrix @ matrix.mH)[..., -1].clamp(min=0).sqrt() * scale[..., 0, 0]


def largest_magnitude(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The largest magnitude, 1 where all are zero: what to divide by before numbers are squared."""
    largest = x.abs().amax(dims, keepdim=True)
    return torch.where(largest > 0, largest, 1)


def apply_linear(operation: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """The linear part of a layer, with these weights for its own."""
    if isinstance(operation, nn.Linear):
        return F.linear(x, weight)
    if isinstance(operation, CONVOLUTIONS):
        return operation._conv_forward(x, weight, None)
    if isinstance(operation, BATCH_NORM):
        return x * weight.view(1, -1, *[1] * (x.ndim - 2))
    transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[TRANSPOSED.index(type(operation))]
    geometry = (operation.stride, operation.padding, operation.output_padding, operation.groups, operation.dilation)
    return transposed(x, weight, None, *geometry)


def require_fit(operation: nn.Module, weight: Tensor, shape: tuple[int, ...]) -> None:
    spatial = len(operation.kernel_size)
    if len(shape) != spatial + 1 or shape[0] != operation.in_channels:
        raise ValueError(
            f"input_shape is {shape}; this convolution takes {operation.in_channels} channels and {spatial} more axes"
        )
    try:
        apply_linear(operation, weight[0].to("meta"), torch.empty(1, *shape, dtype=weight.dtype, device="meta"))
    except RuntimeError as error:
        raise ValueError(f"input_shape {shape} does not fit the convolution: {error}") from error


def conv_operator_norm(
    operation: nn.Module, weight: Tensor, shape: tuple[int, ...], rtol: float, max_passes: int
) -> OperatorNorm:
    if not rtol > 0:
        raise ValueError(f"rtol is {rtol}; it must be positive")
    if _of_one_pixel(operation):
        return _at_once(_matrix_norm(_by_pixels(operation, weight)).amax(-1))
    if _circular(operation, weight, shape):
        return _at_once(_circular_norm(weight, shape[1:], operation))

    def convolve(unit: Tensor, x: Tensor) -> Tensor:
        if len(unit) == 1:
            return apply_linear(operation, unit[0], x)
        return vmap(lambda w, image: apply_linear(operation, w, image.unsqueeze(0)).squeeze(0))(unit, x)

    return _lanczos(convolve, weight, (len(weight), *shape), rtol, max_passes)


def _of_one_pixel(operation: nn.Module) -> bool:
    """Whether it is pixel by pixel the same matrix; a stride leaves pixels out, which changes no norm."""
    unpadded = operation.padding in ("same", "valid") or not any(operation.padding)
    return isinstance(operation, CONVOLUTIONS) and set(operation.kernel_size) == {1} and unpadded


def _by_pixels(operation: nn.Module, weight: Tensor) -> Float[Tensor, "models groups outputs inputs"]:
    return weight.flatten(2).unflatten(1, (operation.groups, -1))


def _circular(operation: nn.Module, weight: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether it is a circular convolution to an image of the same size, which Fourier makes diagonal."""
    if not isinstance(operation, CONVOLUTIONS) or operation.padding_mode != "circular" or set(operation.stride) != {1}:
        return False
    image = torch.empty(1, *shape, dtype=weight.dtype, device="meta")
    return apply_linear(operation, weight[0].to("meta"), image).shape[2:] == image.shape[2:]


def diagonal_blocks(
    operation: nn.Module, weight: Tensor, shape: tuple[int, ...]
) -> Iterable[Float[Tensor, "models blocks outputs inputs"]] | None:
    """Matrices whose singular values are the convolution's, each once that it has by symmetry; None if none are known.

    Of one pixel its matrix; of a circular convolution those of half of the frequencies, by chunks.
    """
    if _of_one_pixel(operation):
        return [_by_pixels(operation, weight)]
    return _spectra(weight, shape[1:], operation) if _circular(operation, weight, shape) else None


def _circular_norm(
    weight: Float[Tensor, "models outputs inputs *taps"], sizes: tuple[int, ...], operation: nn.Module
) -> Float[Tensor, " models"]:
    """The largest singular value over the frequencies of the kernel's Fourier transform [outputs, inputs]."""
    scale = largest_magnitude(weight, tuple(range(1, weight.ndim)))
    tops = [
        _top_eigenvalue(block @ block.mH if block.shape[-2] <= block.shape[-1] else block.mH @ block)
        for block in _spectra(weight / scale, sizes, operation)
    ]
    return torch.stack(tops).amax(0).clamp(min=0).sqrt() * scale.flatten()


def _spectra(
    weight: Float[Tensor, "models outputs inputs *taps"], sizes: tuple[int, ...], operation: nn.Module
) -> Iterator[Tensor]:
    """The kernel's Fourier transform at half of the frequencies, by chunks of them.

    A real kernel has K̂(-f) equal to the conjugate of K̂(f): one frequency of each such pair is enough.
    """
    kernel = weight.flatten(3).movedim(3, 1).unflatten(2, (operation.groups, -1)).flatten(3)
    kernel = kernel.transpose(1, 2).to(torch.promote_types(weight.dtype, torch.complex64))
    taps = _grid(operation.kernel_size, weight.device)
    taps = taps * taps.new_tensor([dilation / n for dilation, n in zip(operation.dilation, sizes, strict=True)])
    turns = _half(_grid(sizes, weight.device)) @ taps.T
    waves = torch.polar(torch.ones_like(turns), -2 * math.pi * turns).to(kernel.dtype)
    matrix = (weight.shape[1] // operation.groups, weight.shape[2])
    for chunk in waves.split(max(1, _SPECTRUM_CHUNK // math.prod(weight.shape[:3]))):
        yield (chunk @ kernel).flatten(1, 2).unflatten(2, matrix)


def _half(frequencies: Float[Tensor, "points axes"]) -> Float[Tensor, "half axes"]:
    """One of each pair f, -f of the frequencies of a grid, in the order of the grid."""
    sizes = frequencies.amax(0) + 1
    strides = sizes.flip(0).cumprod(0).flip(0) / sizes
    return frequencies[frequencies @ strides <= (-frequencies % sizes) @ strides]


def _grid(sizes: tuple[int, ...], device: torch.device) -> Float[Tensor, "points axes"]:
    axes = [torch.arange(n, dtype=torch.float64, device=device) for n in sizes]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)


def _top_eigenvalue(grams: Tensor, few: int = 16) -> Float[Tensor, " models"]:
    """The largest eigenvalue of each model's many Hermitian matrices [models, matrices, n, n], which it overwrites.

    The best few after a power step give a lower bound t. A matrix G has none above t where t - G has a Cholesky factor,
    at a quarter of the price of eigenvalues, which only the rest is asked for.
    """
    if grams.shape[1] <= 4 * few:
        return torch.linalg.eigvalsh(grams)[..., -1].amax(1)
    x = grams[..., :1]
    x = grams @ (x / largest_magnitude(x, (-2, -1)))
    growth = (grams @ x).abs().square().sum((-2, -1)) / x.abs().square().sum((-2, -1)).clamp(min=1e-30)
    best = growth.topk(few, 1).indices[..., None, None].expand(-1, -1, *grams.shape[2:])
    lower = torch.linalg.eigvalsh(grams.gather(1, best))[..., -1].amax(1)
    shifted = grams.neg_()
    shifted.diagonal(dim1=-2, dim2=-1).add_(lower[:, None, None])
    above = torch.linalg.cholesky_ex(shifted).info > 0
    model, rest = above.nonzero()[:, 0], shifted[above]
    return lower.scatter_reduce(0, model, lower[model] - torch.linalg.eigvalsh(rest)[:, 0], "amax")


def _lanczos(
    apply: Callable[[Tensor, Tensor], Tensor], weight: Tensor, shape: tuple[int, ...], rtol: float, max_passes: int
) -> OperatorNorm:
    """σ_max of the map x -> apply(weight, x), for each model, by Golub-Kahan bidiagonalization from a random image.

    Nothing is reorthogonalized: that would guard against copies of singular values, and copies of the largest one do
    no harm (Paige 1980). So five images are all that is held. One host read in `_CHECK_EVERY` steps.
    """
    scale = largest_magnitude(weight, tuple(range(1, weight.ndim)))
    unit, scale = weight / scale, scale.flatten()
    generator = torch.Generator(weight.device).manual_seed(0)
    v, _ = _normalized(torch.randn(shape, generator=generator, dtype=weight.dtype, device=weight.device))
    with torch.enable_grad():
        zero = torch.zeros_like(v).requires_grad_()
        image = apply(unit, zero)

    def transposed(u: Tensor) -> Tensor:
        return torch.autograd.grad(image, zero, u, retain_graph=True)[0]

    u, alpha = _normalized(apply(unit, v))
    alphas, betas = [alpha], []
    read = np.empty((2, 0, shape[0]))
    while True:
        v, beta = _normalized(transposed(u) - over_models(alpha, v) * v)
        betas.append(beta)
        passes = 2 * len(betas)
        last = passes + 2 > max_passes
        if last or len(betas) % _CHECK_EVERY == 0:
            new = slice(read.shape[1], None)
            fresh = torch.stack([torch.stack(alphas[new]), torch.stack(betas[new])])
            read = np.concatenate([read, fresh.double().cpu().numpy()], 1)
            values, residuals = zip(*(_top_of_bidiagonal(a, b) for a, b in read.transpose(2, 0, 1)), strict=True)
            if last or all(r <= rtol * s for s, r in zip(values, residuals, strict=True)):
                return OperatorNorm(v.new_tensor(values) * scale, v.new_tensor(residuals) * scale, passes)
        u, alpha = _normalized(apply(unit, v) - over_models(beta, u) * u)
        alphas.append(alpha)


def _normalized(x: Tensor) -> tuple[Tensor, Tensor]:
    """x / ‖x‖ and ‖x‖ of each model; zero stays zero, for Lanczos is done with a model whose images run out."""
    norm = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return x / over_models(torch.where(norm > 0, norm, 1), x), norm


def _top_of_bidiagonal(alphas: np.ndarray, betas: np.ndarray) -> tuple[float, float]:
    """The largest singular value of B, α its diagonal and β above it, and the residual of its pair β_k |x_k|."""
    from scipy.linalg import eigh_tridiagonal  # here, for scipy takes longer to import than all of genlib

    diagonal = alphas**2
    diagonal[:-1] += betas[:-1] ** 2
    k = len(alphas) - 1
    value, vector = eigh_tridiagonal(diagonal, alphas[1:] * betas[:-1], select="i", select_range=(k, k))
    return math.sqrt(max(value[0], 0.0)), betas[-1] * abs(vector[-1, 0])


def operator_frobenius_norm(weight: FoldedWeight, shapes: dict[str, tuple[int, ...]]) -> Float[Tensor, " models"]:
    """‖A‖_F of the layer's linear map."""
    if weight.name not in shapes:
        return kernel_frobenius_norm(weight)
    operation, shape = weight.operation, shapes[weight.name]
    scale = largest_magnitude(weight.value, tuple(range(1, weight.value.ndim)))
    unit = weight.value / scale
    if operation.padding_mode == "zeros":
        ones = unit.new_ones(1, *shape)
        squares = torch.stack([apply_linear(operation, w**2, ones).sum() for w in unit])
    else:
        # Taps that meet the same pixel add up before they are squared.
        taps = unit.flatten(3).flatten(1, 2)
        squares = ((taps.mT @ taps) * _meetings(operation, shape[1:], unit)).sum((1, 2))
    return squares.sqrt() * scale.flatten()


def _meetings(operation: nn.Module, sizes: tuple[int, ...], like: Tensor) -> Float[Tensor, "taps taps"]:
    """At how many places each two taps of the kernel meet the same pixel."""
    pixels = torch.arange(math.prod(sizes), dtype=torch.float64, device=like.device).view(1, 1, *sizes)
    padded = F.pad(pixels, operation._reversed_padding_repeated_twice, mode=operation.padding_mode)[0, 0]
    geometry = list(zip(padded.shape, operation.kernel_size, operation.stride, operation.dilation, strict=True))
    met = []
    for tap in itertools.product(*(range(k) for k in operation.kernel_size)):
        ends = [n - (k - 1 - t) * d for t, (n, k, _, d) in zip(tap, geometry, strict=True)]
        where = [slice(t * d, end, s) for t, end, (_, _, s, d) in zip(tap, ends, geometry, strict=True)]
        met.append(padded[tuple(where)].flatten())
    met = torch.stack(met)
    return torch.stack([(met == tap).sum(1) for tap in met]).to(like.dtype)
