"""Path norms: the sum over all paths of a network, one node of its graph after the other."""

import math
import operator
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.func import vmap
from torch.utils._pytree import tree_leaves, tree_map_only

from genlib.network import Network
from genlib.network.precision import full_precision
from genlib.network.weights import (
    BATCH_NORM,
    CONVOLUTIONS,
    REGISTERED,
    TRANSPOSED,
    WeightedLayer,
    checked_shape,
    folded_weights,
    only_described,
    traced_layers,
)
from genlib.norms.operators import apply_linear

__all__ = ["PathSum", "log_path_norm", "path_norm"]

_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Tanh, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_MOVES = (nn.Flatten, nn.Unflatten, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)
_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)
# Of slope one at most, or a copy: the paths through them keep their weight.
_KEEPS = {F.relu, F.relu6, F.tanh, torch.relu, torch.tanh, "relu", "relu_", "tanh", operator.neg, torch.neg, "neg"}
_KEEPS |= {torch.clone, "clone", "contiguous", "float", "double"}
_MOVE_NAMES = ("flatten", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "sum")
_MOVE_NAMES += ("chunk", "split", "roll", "flip")
_MOVE_CALLS = {*_MOVE_NAMES, *(getattr(torch, name) for name in _MOVE_NAMES), torch.cat, torch.stack}
_MOVE_CALLS |= {operator.getitem, getattr, "size", "dim", "view"}
_SUMS = {torch.add, operator.add, operator.iadd, "add", torch.sub, operator.sub, "sub"}
_PRODUCTS, _RATIOS = {operator.mul, torch.mul, "mul"}, {operator.truediv, torch.div, "div"}
_AVERAGES = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
_ADAPTIVE_AVERAGES = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
_POOLS = {
    getattr(nn, f"{kind}Pool{d}d"): (kind, d)
    for kind in ("Avg", "Max", "AdaptiveAvg", "AdaptiveMax")
    for d in (1, 2, 3)
}
_POOLS |= {
    getattr(F, f"{call}_pool{d}d"): (kind, d)
    for call, kind in (("avg", "Avg"), ("max", "Max"), ("adaptive_avg", "AdaptiveAvg"), ("adaptive_max", "AdaptiveMax"))
    for d in (1, 2, 3)
}
_POOLING = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "count_include_pad", "divisor_override")
_POOLING += ("return_indices", "output_size")


_REDUCTIONS = (torch.mean, "mean", torch.amax, "amax", torch.sum, "sum")


class PathSum(fx.Interpreter):
    """The sum over paths, a node of the graph at a time. All values alive are kept as multiples of exp(self.log)."""

    def __init__(
        self,
        module: nn.Module,
        graph: fx.Graph,
        layers: list[WeightedLayer],
        weights: dict[str, Tensor],
        biases: dict[str, Tensor],
        p: float | int,
    ):
        super().__init__(module, graph=graph)
        self.operations = {layer.name: layer.operation for layer in layers}
        self.folded = {layer.folded for layer in layers}
        self.weights, self.biases = _with_tops(weights, p), _with_tops(biases, p)
        self.p, self.node = p, None
        self.extra_traceback = False  # errors here name their operation themselves

    def log_sum(self, ones: Tensor) -> Tensor:
        self.shape = tuple(ones.shape[1:])
        self.log = torch.zeros((), dtype=torch.float64, device=ones.device)
        out = self.run(ones)
        if not isinstance(out, Tensor):
            raise ValueError(f"network: it returns a {type(out).__name__}; a path norm needs one tensor")
        return out.double().sum().log() + self.log

    def run_node(self, node: fx.Node):
        self.node = node
        try:
            return super().run_node(node)
        except Exception as error:  # torch's, whatever it is
            if str(error).startswith("network: "):
                raise
            raise ValueError(f"input_shape {self.shape} does not fit the network at {node.name}: {error}") from error

    def call_module(self, target, args, kwargs):
        (x,), layer = (*args, *kwargs.values()), self.module.get_submodule(target)
        if target in self.weights:
            x = self._weighted(target, self.operations[target], x)
        elif target not in self.folded:
            return self._unweighted(layer, x)
        normalizes = target in self.folded or isinstance(self.operations[target], BATCH_NORM)
        act = getattr(layer, "act", None) if normalizes else None
        return x if act is None else self._unweighted(act, x)

    def _unweighted(self, layer: nn.Module, x: Tensor) -> Tensor:
        kind = type(layer)
        if kind in _ACTIVATIONS:
            return x
        if kind in _MOVES:
            return layer(x)
        if kind is nn.Hardtanh and layer.min_val <= 0 <= layer.max_val:
            return x
        if kind is nn.LeakyReLU and abs(layer.negative_slope) <= 1:
            return x
        if kind in _POOLS:
            return self._pooled(kind, x, **{name: getattr(layer, name) for name in _POOLING if hasattr(layer, name)})
        raise self._unknown(kind.__name__)

    def get_attr(self, target, args, kwargs):
        if only_described(self.node):
            return super().get_attr(target, args, kwargs)
        raise self._unknown("a tensor that is no weight of a known layer")

    def call_function(self, target, args, kwargs):
        return self._call(target, args, kwargs, super().call_function)

    def call_method(self, target, args, kwargs):
        return self._call(target, args, kwargs, super().call_method)

    def _call(self, target, args, kwargs, plainly: Callable):
        values = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
        if not values:
            return plainly(target, args, kwargs)  # arithmetic on shapes
        if target in _KEEPS or (target in _DROPOUTS and kwargs["training"] is False):
            return values[0]
        if target is F.hardtanh and kwargs["min_val"] <= 0 <= kwargs["max_val"]:
            return values[0]
        if target is F.leaky_relu and abs(kwargs["negative_slope"]) <= 1:
            return values[0]
        if target in ("to", "type_as") and _floating(*args[1:], *kwargs.values()):
            return values[0]
        if target in _SUMS and not kwargs and not any(a for a in args if not isinstance(a, Tensor)):
            return sum(values)  # of two, or of one and zero
        if target in _PRODUCTS | _RATIOS:
            return self._multiple(target, args, kwargs)
        if target in _REDUCTIONS and _over_samples(values[0], *args[1:2], **kwargs):
            raise self._unknown("a reduction over the samples")
        if target in _MOVE_CALLS:
            return plainly(target, args, kwargs)
        if target in (torch.mean, "mean"):
            mean = plainly(target, args, kwargs)
            return mean * (values[0].numel() / mean.numel()) ** (1 - self.p)
        if target in (torch.amax, "amax"):
            return torch.sum(*args, **kwargs)
        if target is F.pad and kwargs["mode"] == "constant" and not kwargs["value"]:
            return plainly(target, args, kwargs)
        if target in _POOLS:
            return self._pooled(target, *args, **kwargs)
        raise self._unknown(target if isinstance(target, str) else getattr(target, "__name__", str(target)))

    def _unknown(self, kind: str) -> ValueError:
        return ValueError(
            f"network: the operation {self.node.name} ({kind}) has no known paths, which dense layers, convolutions, "
            "BatchNorm, pooling, sums of two values, multiples and activations with φ(0) = 0 and slopes of at most 1 "
            "have; leave it out, or take a product of layers' norms instead"
        )

    def _multiple(self, target, args, kwargs) -> Tensor:
        """|c|^p x for the number c, or 1/c, that x is multiplied by."""
        x, factor = args if isinstance(args[0], Tensor) or target in _RATIOS else args[::-1]
        if not isinstance(factor, int | float) or kwargs or (target in _RATIOS and not factor):
            raise self._unknown("a product or ratio of two values")
        if not factor:
            return x * 0
        return self._rescaled(x, (-self.p if target in _RATIOS else self.p) * math.log(abs(factor)))

    def _weighted(self, name: str, layer: nn.Module, x: Tensor) -> Tensor:
        """|W|^p x + |b|^p."""
        if isinstance(layer, CONVOLUTIONS + TRANSPOSED):
            self._require_single_paths(layer, x)
        weight, top, log = self.weights[name]
        y = apply_linear(layer, _power(weight / top, self.p), x)
        if name not in self.biases:
            return self._rescaled(y, log)
        bias, top, bias_log = self.biases[name]
        y = self._rescaled(y, log, bias_log - self.log)
        bias = _power(bias / top, self.p) * (bias_log - self.log).exp().to(y.dtype)
        return y + (bias if isinstance(layer, nn.Linear) else bias.view(1, -1, *[1] * (y.ndim - 2)))

    def _require_single_paths(self, layer: nn.Module, x: Tensor) -> None:
        if x.dim() != len(layer.kernel_size) + 2:
            raise self._unknown("a convolution of what isn't a batch of images")
        spans = [(taps - 1) * dilation for taps, dilation in zip(layer.kernel_size, layer.dilation, strict=True)]
        around = layer.padding_mode == "circular" and all(s < n for s, n in zip(spans, x.shape[2:], strict=True))
        if layer.padding_mode != "zeros" and not around:
            raise self._unknown(f"a convolution with {layer.padding_mode} padding, two of whose taps meet one pixel")

    def _rescaled(self, y: Tensor, log: Tensor | float, *peaks: Tensor) -> Tensor:
        """y exp(log), once all that is alive is rescaled so that its largest value, or peak, is one."""
        dying = self.user_to_last_uses.get(self.node, [])
        alive = {node: value for node, value in self.env.items() if node not in dying}
        tensors = [value for value in tree_leaves(list(alive.values())) if isinstance(value, Tensor)]
        tops = [y.amax().double().log() + log, *(value.amax().double().log() for value in tensors), *peaks]
        peak = torch.stack(tops).amax()
        peak = torch.where(peak == -torch.inf, 0.0, peak)  # of zeros alone
        for node, value in alive.items():
            self.env[node] = tree_map_only(Tensor, lambda v: v * (-peak).exp().to(v.dtype), value)
        self.log = self.log + peak
        return y * (log - peak).exp().to(y.dtype)

    def _pooled(self, pool, x: Tensor, *args, **kwargs) -> Tensor:
        kind, axes = _POOLS[pool]
        if x.dim() != axes + 2:
            raise self._unknown("pooling of what isn't a batch of images")
        if kind == "Avg":
            return self._average(x, *args, **kwargs)
        if kind == "Max":
            return self._maximum(x, *args, **kwargs)
        return self._adaptive(x, *args, **kwargs, power=self.p if kind == "AdaptiveAvg" else 0)

    def _average(
        self, x, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
    ) -> Tensor:
        """Σ x / k^p over each window, k its own divisor, which padding and a ragged edge change."""
        total = _window_sum(x, kernel_size, stride, padding, ceil_mode)
        ones = torch.ones_like(x[:1, :1])
        average = _AVERAGES[x.ndim - 3]
        window = (kernel_size, stride, padding, ceil_mode, count_include_pad)
        mean = average(ones, *window, *([] if x.ndim == 3 else [divisor_override]))
        return total * (mean / _window_sum(ones, kernel_size, stride, padding, ceil_mode)) ** self.p

    def _maximum(
        self, x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
    ) -> Tensor:
        if return_indices or set(_tuple(dilation, 1)) != {1}:
            raise self._unknown("max-pool with dilation or indices")
        return _window_sum(x, kernel_size, stride, padding, ceil_mode)

    def _adaptive(self, x: Tensor, output_size, return_indices=False, *, power: float | int) -> Tensor:
        if return_indices:
            raise self._unknown("max-pool with indices")
        mean = _ADAPTIVE_AVERAGES[x.ndim - 3](x, output_size)
        for axis in range(2, x.ndim):
            size, out = x.shape[axis], mean.shape[axis]
            counts = [-(-(i + 1) * size // out) - i * size // out for i in range(out)]
            weights = mean.new_tensor(counts) ** (1 - power)
            mean = mean * weights.view(-1, *[1] * (x.ndim - 1 - axis))
        return mean


def _floating(*kinds) -> bool:
    dtypes = [kind.dtype if isinstance(kind, Tensor) else kind for kind in kinds]
    return all(dtype.is_floating_point for dtype in dtypes if isinstance(dtype, torch.dtype))


def _over_samples(x: Tensor, dim: int | Sequence[int] | None = None, axis=None, **_) -> bool:
    dim = axis if dim is None else dim
    axes = range(x.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    return not axes or 0 in [axis % x.ndim for axis in axes]


def _with_tops(tensors: dict[str, Tensor], p: float | int) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Each with its largest magnitude (1 where all is zero), to divide by, and the logarithm of its p-th power."""
    if not tensors:
        return {}
    # Twice as fast as the largest of the magnitudes, which would fill memory first.
    tops = torch.stack([torch.maximum(t.amax(), -t.amin()) for t in tensors.values()])
    logs = p * tops.double().log()
    return dict(zip(tensors, zip(tensors.values(), torch.where(tops > 0, tops, 1), logs, strict=True), strict=True))


def _power(x: Tensor, p: float | int) -> Tensor:
    """|x|^p, in place: the weights are the one large thing here."""
    return x.mul_(x) if p == 2 else x.abs_() if p == 1 else x.abs_().pow_(p)


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


def _tuple(value, length: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,) * length


@full_precision()
def log_path_norm(
    network: nn.Module | Network, *, input_shape: tuple[int, ...], p: float | int = 2
) -> Float[Tensor, "*models"]:
    """The logarithm of `path_norm`, in float64: computed with a running scale, it neither overflows nor underflows."""
    network = Network.of(network)
    if not p > 0:
        raise ValueError(f"p is {p}; it must be positive")
    layers, graph = traced_layers(network)
    if graph is None:
        raise ValueError(f"network: {network.untraced}, and a path norm needs its graph")
    if registered := [layer.name for layer in layers if type(layer.operation) in REGISTERED]:
        raise ValueError(f"network: {', '.join(registered)} is of a registered type, which path norms don't know")
    if several := [layer.name for layer in layers if layer.block is not None]:
        raise ValueError(
            f"network: {several[0]} has no known paths; measure curvature, sharpness or sensitivity instead"
        )
    weights = folded_weights(network, layers)
    ones = weights[0].value.new_ones(1, *checked_shape(input_shape))

    def of_one(values: dict[str, Tensor], biases: dict[str, Tensor]) -> Tensor:
        return PathSum(network.module, graph, layers, values, biases, p).log_sum(ones)

    values = {weight.name: weight.value for weight in weights}
    biases = {weight.name: weight.bias for weight in weights if weight.bias is not None}
    if network.size is not None:
        return vmap(of_one)(values, biases)
    return of_one(*({name: tensor[0] for name, tensor in tensors.items()} for tensors in (values, biases)))


def path_norm(
    network: nn.Module | Network, *, input_shape: tuple[int, ...], p: float | int = 2
) -> Float[Tensor, "*models"]:
    """Σ_paths Π |w|^p over all paths from an input or a bias to an output, no root, in float64 (Neyshabur et al. 2015).

    One forward pass of an input of ones with |w|^p for w. BatchNorm is folded, biases are inputs of one, a skip counts
    1, a number c times it |c|^p, an average over k values 1/k^p, a max-pool the sum of its window (an upper bound:
    Gonon et al. 2024), activations 1: those with φ(0) = 0 and slopes of at most 1, others are refused.
    Cost: one forward pass of one sample and two passes over the weights. Infinite beyond 1e308: see `log_path_norm`.
    Errors as `frobenius_norms`; an operation whose paths aren't known or meet (padding that reflects or repeats
    pixels), an untraceable network: ValueError, which names it.
    """
    return log_path_norm(network, input_shape=input_shape, p=p).exp()
