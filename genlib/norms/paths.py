"""Path norms: the sum over all paths of a network, one node of its graph after the other."""

import operator
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.func import vmap

from genlib.network import Network
from genlib.network.precision import full_precision
from genlib.network.weights import BATCH_NORM, REGISTERED, checked_shape, folded_weights
from genlib.norms.operators import apply_linear

__all__ = ["PathSum", "log_path_norm", "path_norm"]

_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Tanh, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_MOVES = (nn.Flatten, nn.Unflatten, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)
_ACTIVATION_CALLS = {F.relu, F.relu6, F.hardtanh, F.tanh, torch.relu, torch.tanh, "relu", "relu_", "tanh"}
_MOVE_CALLS = {torch.flatten, torch.cat, operator.getitem, torch.add, operator.add, operator.iadd}
_MOVE_CALLS |= {getattr, "size", "flatten", "view", "reshape", "permute", "transpose", "contiguous"}
_MOVE_CALLS |= {"squeeze", "unsqueeze", "sum"}
_AVERAGES = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
_ADAPTIVE_AVERAGES = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
_MAXIMA = (F.max_pool1d, F.max_pool2d, F.max_pool3d)


class PathSum(fx.Interpreter):
    """The sum over paths, a node of the graph at a time. All values alive are kept as multiples of exp(self.log)."""

    def __init__(self, network: Network, weights: dict[str, Tensor], biases: dict[str, Tensor], p: float | int):
        super().__init__(network.module, graph=network.graph)
        self.weights, self.biases = _with_tops(weights, p), _with_tops(biases, p)
        self.p, self.node = p, None
        self.extra_traceback = False  # errors here name their operation themselves

    def log_sum(self, ones: Tensor) -> Tensor:
        self.log = torch.zeros((), dtype=torch.float64, device=ones.device)
        out = self.run(ones)
        if not isinstance(out, Tensor):
            raise ValueError(f"network: it returns a {type(out).__name__}; a path norm needs one tensor")
        return out.double().sum().log() + self.log

    def run_node(self, node: fx.Node):
        self.node = node
        return super().run_node(node)

    def call_module(self, target, args, kwargs):
        layer, x = self.fetch_attr(target), args[0]
        if target in self.weights:
            return self._weighted(target, layer, x)
        if isinstance(layer, (BATCH_NORM, *_ACTIVATIONS)):  # a BatchNorm without weights of its own is folded
            return x
        if isinstance(layer, _MOVES):
            return layer(x)
        if isinstance(layer, nn.Hardtanh) and layer.min_val <= 0 <= layer.max_val:
            return x
        if isinstance(layer, nn.LeakyReLU) and abs(layer.negative_slope) <= 1:
            return x
        kind = type(layer).__name__
        if kind.startswith("AvgPool"):
            window = (layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode, layer.count_include_pad)
            return self._average(x, *window, getattr(layer, "divisor_override", None))
        if kind.startswith("MaxPool"):
            return self._maximum(x, layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode)
        if kind.startswith("AdaptiveAvgPool"):
            return self._adaptive(x, layer.output_size, self.p)
        if kind.startswith("AdaptiveMaxPool"):
            return self._adaptive(x, layer.output_size, 0)
        raise self._unknown(kind)

    def get_attr(self, target, args, kwargs):
        raise self._unknown("a tensor that is no weight of a known layer")

    def call_function(self, target, args, kwargs):
        return self._call(target, args, kwargs, super().call_function)

    def call_method(self, target, args, kwargs):
        return self._call(target, args, kwargs, super().call_method)

    def _call(self, target, args, kwargs, plainly: Callable):
        values = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        if target in (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d) or target in _ACTIVATION_CALLS:
            return args[0]
        if not values and target is not torch.cat:
            return plainly(target, args, kwargs)  # arithmetic on shapes
        if target in (torch.add, operator.add, operator.iadd) and (len(values) != 2 or kwargs):
            raise self._unknown("addition of a constant")
        if target is operator.iadd:
            return values[0] + values[1]
        if target in _MOVE_CALLS:
            return plainly(target, args, kwargs)
        if target in (torch.sub, operator.sub) and len(values) == 2 and not kwargs:
            return values[0] + values[1]
        if target in (torch.mean, "mean"):
            mean = plainly(target, args, kwargs)
            return mean * (args[0].numel() / mean.numel()) ** (1 - self.p)
        if target is F.pad and kwargs.get("value", args[3] if len(args) > 3 else None) in (None, 0):
            return plainly(target, args, kwargs)
        if target in _AVERAGES:
            return self._average(*args, **kwargs)
        if target in _MAXIMA:
            return self._maximum(*args, **kwargs)
        if target in _ADAPTIVE_AVERAGES:
            return self._adaptive(*args, **kwargs, power=self.p)
        raise self._unknown(target if isinstance(target, str) else getattr(target, "__name__", str(target)))

    def _unknown(self, kind: str) -> ValueError:
        return ValueError(f"network: the operation {self.node.name} ({kind}) has no known paths; leave it out")

    def _weighted(self, name: str, layer: nn.Module, x: Tensor) -> Tensor:
        """|W|^p x + |b|^p, everything alive rescaled so that its largest value is one."""
        weight, top, log = self.weights[name]
        y = apply_linear(layer, _power(weight / top, self.p), x)
        dying = self.user_to_last_uses.get(self.node, [])
        alive = {node: v for node, v in self.env.items() if node not in dying and isinstance(v, Tensor)}
        peaks = [y.amax().double().log() + log, *(value.amax().double().log() for value in alive.values())]
        if name in self.biases:
            bias, top, bias_log = self.biases[name]
            bias_log = bias_log - self.log
            peaks.append(bias_log)
        peak = torch.stack(peaks).amax().clamp(min=torch.finfo(torch.float64).min)  # of zeros it is -inf
        for node, value in alive.items():
            self.env[node] = value * (-peak).exp().to(value.dtype)
        y = y * (log - peak).exp().to(y.dtype)
        if name in self.biases:
            bias = _power(bias / top, self.p) * (bias_log - peak).exp().to(y.dtype)
            y = y + (bias if isinstance(layer, nn.Linear) else bias.view(1, -1, *[1] * (y.ndim - 2)))
        self.log = self.log + peak
        return y

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

    def _adaptive(self, x: Tensor, output_size, power: float | int) -> Tensor:
        mean = _ADAPTIVE_AVERAGES[x.ndim - 3](x, output_size)
        for axis in range(2, x.ndim):
            size, out = x.shape[axis], mean.shape[axis]
            counts = [-(-(i + 1) * size // out) - i * size // out for i in range(out)]
            weights = mean.new_tensor(counts) ** (1 - power)
            mean = mean * weights.view(-1, *[1] * (x.ndim - 1 - axis))
        return mean


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
    weights = folded_weights(network)
    if network.graph is None:
        raise ValueError("network: torch.fx can't trace this module, and a path norm needs its graph")
    if registered := [weight.name for weight in weights if type(weight.operation) in REGISTERED]:
        raise ValueError(f"network: {', '.join(registered)} is of a registered type, which path norms don't know")
    ones = weights[0].value.new_ones(1, *checked_shape(input_shape))

    def of_one(values: dict[str, Tensor], biases: dict[str, Tensor]) -> Tensor:
        return PathSum(network, values, biases, p).log_sum(ones)

    values = {weight.name: weight.value for weight in weights}
    biases = {weight.name: weight.bias for weight in weights if weight.bias is not None}
    try:
        if network.size is not None:
            return vmap(of_one)(values, biases)
        return of_one(*({name: tensor[0] for name, tensor in tensors.items()} for tensors in (values, biases)))
    except RuntimeError as error:
        raise ValueError(f"input_shape {tuple(input_shape)} does not fit the network: {error}") from error


def path_norm(
    network: nn.Module | Network, *, input_shape: tuple[int, ...], p: float | int = 2
) -> Float[Tensor, "*models"]:
    """Σ_paths Π |w|^p over all paths from an input or a bias to an output, no root, in float64 (Neyshabur et al. 2015).

    One forward pass of an input of ones with |w|^p for w. BatchNorm is folded, biases are inputs of one, a skip counts
    1, an average over k values 1/k^p, a max-pool the sum of its window (an upper bound: Gonon et al. 2024),
    activations 1: those with φ(0) = 0 and slopes of at most 1, others are refused.
    Cost: one forward pass of one sample and two passes over the weights. Infinite beyond 1e308: see `log_path_norm`.
    An operation whose paths aren't known, a tied weight, an untraceable network: ValueError, which names it.
    """
    return log_path_norm(network, input_shape=input_shape, p=p).exp()
