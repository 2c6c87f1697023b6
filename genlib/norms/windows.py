"""Sums over paths through pooling and interpolation: each coefficient to the power p."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["POOLS", "NoPaths", "interpolated", "pooled"]

_AVERAGES = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
_ADAPTIVE_AVERAGES = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
POOLS = {
    getattr(nn, f"{kind}Pool{d}d"): (kind, d)
    for kind in ("Avg", "Max", "AdaptiveAvg", "AdaptiveMax")
    for d in (1, 2, 3)
}
POOLS |= {
    getattr(F, f"{call}_pool{d}d"): (kind, d)
    for call, kind in (("avg", "Avg"), ("max", "Max"), ("adaptive_avg", "AdaptiveAvg"), ("adaptive_max", "AdaptiveMax"))
    for d in (1, 2, 3)
}
_POOLING = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "count_include_pad", "divisor_override")
_POOLING += ("return_indices", "output_size")


class NoPaths(Exception):
    """An operation whose paths aren't known, by what it is."""


def pooled(pool, x: Tensor, p: float | int, *args, **kwargs) -> Tensor:
    """`pool` is a layer, or a function with its arguments."""
    if isinstance(pool, nn.Module):
        kwargs = {name: getattr(pool, name) for name in _POOLING if hasattr(pool, name)}
        pool = type(pool)
    kind, axes = POOLS[pool]
    if x.dim() != axes + 2:
        raise NoPaths("pooling of what isn't a batch of images")
    if kind == "Avg":
        return _average(x, p, *args, **kwargs)
    if kind == "Max":
        return _maximum(x, *args, **kwargs)
    return _adaptive(x, *args, **kwargs, power=p if kind == "AdaptiveAvg" else 0)


def _average(
    x, p, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
) -> Tensor:
    """Σ x / k^p over each window, k its own divisor, which padding and a ragged edge change."""
    total = _window_sum(x, kernel_size, stride, padding, ceil_mode)
    ones = torch.ones_like(x[:1, :1])
    average = _AVERAGES[x.ndim - 3]
    window = (kernel_size, stride, padding, ceil_mode, count_include_pad)
    mean = average(ones, *window, *([] if x.ndim == 3 else [divisor_override]))
    return total * (mean / _window_sum(ones, kernel_size, stride, padding, ceil_mode)) ** p


def _maximum(x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False) -> Tensor:
    if return_indices or set(_tuple(dilation, 1)) != {1}:
        raise NoPaths("max-pool with dilation or indices")
    return _window_sum(x, kernel_size, stride, padding, ceil_mode)


def _adaptive(x: Tensor, output_size, return_indices=False, *, power: float | int) -> Tensor:
    if return_indices:
        raise NoPaths("max-pool with indices")
    mean = _ADAPTIVE_AVERAGES[x.ndim - 3](x, output_size)
    for axis in range(2, x.ndim):
        size, out = x.shape[axis], mean.shape[axis]
        counts = [-(-(i + 1) * size // out) - i * size // out for i in range(out)]
        weights = mean.new_tensor(counts) ** (1 - power)
        mean = mean * weights.view(-1, *[1] * (x.ndim - 1 - axis))
    return mean


def _window_sum(x: Tensor, kernel_size, stride, padding, ceil_mode: bool) -> Tensor:
    spatial = x.ndim - 2
    kernel, padding = _tuple(kernel_size, spatial), _tuple(padding, spatial)
    stride = kernel if stride is None else _tuple(stride, spatial)
    if spatial == 3:
        return F.avg_pool3d(x, kernel, stride, padding, ceil_mode, divisor_override=1)
    if spatial == 2:
        return F.avg_pool2d(x, kernel, stride, padding, ceil_mode, divisor_override=1)
    flat = F.avg_pool2d(x.unsqueeze(2), (1, *kernel), (1, *stride), (0, *padding), ceil_mode, divisor_override=1)
    return flat.squeeze(2)


def _tuple(value, length: int) -> tuple:
    return tuple(value) if isinstance(value, tuple | list) else (value,) * length


def interpolated(x: Tensor, p: float | int, size=None, scale_factor=None, **options) -> Tensor:
    """Σ |c|^p x, axis by axis: the coefficients of interpolation are products of those along each axis."""
    axes = x.ndim - 2
    for axis in range(axes):
        alone = {}
        if size is not None:
            alone["size"] = [_tuple(size, axes)[axis] if i == axis else 1 for i in range(axes)]
        else:
            alone["scale_factor"] = [_tuple(scale_factor, axes)[axis] if i == axis else 1.0 for i in range(axes)]
        n = x.shape[axis + 2]
        units = torch.eye(n, dtype=x.dtype, device=x.device).view(n, 1, *(n if i == axis else 1 for i in range(axes)))
        coefficients = F.interpolate(units, **alone, **options).view(n, -1)
        x = torch.tensordot(x, coefficients.abs() ** p, ([axis + 2], [0])).movedim(-1, axis + 2)
    return x
