"""Path norms: the sum over all paths of a network, one node of its graph after the other."""

import operator
from collections import ChainMap
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.func import vmap
from torch.utils._pytree import tree_leaves, tree_map_only

from genlib.network import Network, aliases
from genlib.network.activations import false_claim
from genlib.network.kinds import (
    CASTS,
    COMPARISONS,
    COPIES,
    KINKS,
    NONEXPANSIVE,
    PRODUCTS,
    RATIOS,
    data_nodes,
    kinds_of,
    named,
)
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
from genlib.norms.layers import each
from genlib.norms.operators import apply_linear
from genlib.norms.windows import POOLS, NoPaths, interpolated, pooled

__all__ = ["PathSum", "log_path_norm", "path_norm"]

# Activations with φ(0) = 0 and slopes of at most 1, through which paths keep their weight; and settings to be that.
_OF_TORCH: dict[Callable | str, Callable[..., bool]] = {
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.Tanh, nn.Softshrink, F.relu, F.relu6, F.tanh), lambda *_, **__: True),
    **dict.fromkeys((F.softshrink, operator.abs, operator.neg), lambda *_, **__: True),
    **dict.fromkeys(named("relu", "relu_", "tanh", "abs", "absolute", "neg", "negative"), lambda *_, **__: True),
    F.leaky_relu: lambda negative_slope=0.01, inplace=False: abs(negative_slope) <= 1,
    F.hardtanh: lambda min_val=-1.0, max_val=1.0, inplace=False: min_val <= 0 <= max_val,
    F.threshold: lambda threshold, value, inplace=False: threshold == value == 0,
    **dict.fromkeys(named("clamp", "clip"), lambda min=None, max=None: (min or 0) <= 0 <= (max or 0)),
    **dict.fromkeys(named("clamp_min"), lambda min: min <= 0),
    **dict.fromkeys(named("clamp_max"), lambda max: max >= 0),
}
_GENTLE = ChainMap(_OF_TORCH, NONEXPANSIVE)
_SETTINGS = {
    nn.LeakyReLU: (F.leaky_relu, ("negative_slope",)),
    nn.Hardtanh: (F.hardtanh, ("min_val", "max_val")),
    nn.Threshold: (F.threshold, ("threshold", "value")),
    **dict.fromkeys(
        (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d),
        (F.interpolate, ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor")),
    ),
}
_MEANS, _LARGEST, _EXTREMES = named("mean"), named("amax", "amin"), named("max", "min")
_REDUCTIONS = named("sum", "cumsum") | _MEANS | _LARGEST | _EXTREMES
_PAIRS = {operator.add, operator.sub, *named("add", "sub", "subtract", "rsub", "maximum", "minimum")}


class PathSum(fx.Interpreter):
    """The sum over paths, a node of the graph at a time. All values alive are kept as multiples of exp(self.log)."""

    def __init__(
        self,
        network: Network,
        graph: fx.Graph,
        layers: list[WeightedLayer],
        weights: dict[str, Tensor],
        biases: dict[str, Tensor],
        p: float | int,
    ):
        super().__init__(network.module, graph=graph)
        self.network, self.data, self.kinds = network, data_nodes(graph), kinds_of(network.module, graph)
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
        except NoPaths as kind:
            raise self._unknown(str(kind)) from None
        except Exception as error:  # torch's, whatever it is
            raise ValueError(f"input_shape {self.shape} does not fit the network at {node.name}: {error}") from error

    def call_module(self, target, args, kwargs):
        (x,), layer = (*args, *kwargs.values()), self.module.get_submodule(target)
        if not self._given():
            raise NoPaths("a layer of a constant")
        if target in self.weights:
            x = self._weighted(target, self.operations[target], x)
        elif target not in self.folded:
            return self._unweighted(layer, x)
        normalizes = target in self.folded or isinstance(self.operations[target], BATCH_NORM)
        act = getattr(layer, "act", None) if normalizes else None
        return x if act is None else self._unweighted(act, x)

    def _unweighted(self, layer: nn.Module, x: Tensor) -> Tensor:
        if type(layer) in COPIES:
            return layer(x)
        if type(layer) in POOLS:
            return pooled(layer, x, self.p)
        if found := false_claim(layer, x):
            raise NoPaths(found)
        function, names = _SETTINGS.get(type(layer), (type(layer), ()))
        settings = {name: getattr(layer, name) for name in names}
        if function is F.interpolate:
            return interpolated(x, self.p, **settings)
        if function in _GENTLE and _GENTLE[function](**settings):
            return x
        raise NoPaths(type(layer).__name__)

    def get_attr(self, target, args, kwargs):
        constant, name = self.node.meta.get("constant"), aliases(self.module).get(target)
        owners = {self.module.get_submodule(buffer.rpartition(".")[0]) for buffer in self.network.buffers}
        ours = any(not type(owner).__module__.startswith("torch.nn.") for owner in owners)
        if constant is not None and (only_described(self.node) or not ours):  # not computed from a buffer
            return constant
        if constant is None and (only_described(self.node) or name is None):
            return super().get_attr(target, args, kwargs)
        if name in self.network.buffers and self.network.size is None:
            return self.network.buffers[name]
        raise NoPaths("a tensor that is no weight of a known layer")

    def call_function(self, target, args, kwargs):
        return self._call(target, args, kwargs, super().call_function)

    def call_method(self, target, args, kwargs):
        return self._call(target, args, kwargs, super().call_method)

    def _call(self, target, args, kwargs, plainly: Callable):
        if self.node not in self.data and not (target in COMPARISONS and self._given()):
            return plainly(target, args, kwargs)  # arithmetic on shapes and constants
        linear, p = self.kinds[self.node] == "linear", self.p
        x, *rest = [*args, *kwargs.values()]
        if target in PRODUCTS | RATIOS:
            return self._multiple(target, args, kwargs, plainly)
        if target in _PAIRS or (target in _EXTREMES and rest and isinstance(rest[0], Tensor)):
            return self._sum(args, kwargs)
        if target in _REDUCTIONS and _over_samples(self.node, x, *args[1:2], **kwargs):
            raise NoPaths("a reduction over the samples")
        if found := false_claim(target, *args, **kwargs):
            raise NoPaths(found)
        if target in _GENTLE and not any(isinstance(a, Tensor) for a in rest) and _GENTLE[target](*args[1:], **kwargs):
            return x
        if target in CASTS and linear:
            return x
        if target in COPIES and linear and not self._adds_constants():
            return plainly(target, args, kwargs)
        if target in _MEANS and linear:
            mean = plainly(target, args, kwargs)
            return mean * (x.numel() / mean.numel()) ** (1 - p)
        if target in _LARGEST:
            return torch.sum(*args, **kwargs)
        if target in _EXTREMES:
            return torch.return_types.max((torch.sum(*args, **kwargs), None))
        if target is F.pad and linear and not (kwargs["mode"] == "constant" and kwargs["value"]):
            return plainly(target, args, kwargs)
        if target is F.interpolate and linear:
            return interpolated(*args, p, **kwargs)
        if target in POOLS:
            return pooled(target, x, p, *args[1:], **kwargs)
        raise NoPaths(_name(target))

    def _given(self) -> bool:
        return any(node in self.data for node in self.node.all_input_nodes)

    def _adds_constants(self) -> bool:
        """Whether what is joined holds numbers that no path leads to."""
        constants = [self.env[node] for node in self.node.all_input_nodes if node not in self.data]
        return any(isinstance(c, Tensor) and c.is_floating_point() and bool(c.any()) for c in constants)

    def _unknown(self, kind: str) -> ValueError:
        return ValueError(
            f"network: the operation {self.node.name} ({kind}) has no known paths, which dense layers, convolutions, "
            "BatchNorm, pooling, sums, multiples and copies of values and activations with φ(0) = 0 and slopes of at "
            "most 1 have; leave it out, or take a product of layers' norms instead"
        )

    def _sum(self, args, kwargs) -> Tensor:
        """Σ x + |c|^p, c a constant, which counts as a bias."""
        if kwargs:
            raise NoPaths(_name(self.node.target))
        total = sum(x for x, node in zip(args, self.node.args, strict=True) if node in self.data)
        for constant, node in zip(args, self.node.args, strict=True):
            if node not in self.data:
                total = self._shifted(total, 0.0, *self._powers(constant))
        return total

    def _multiple(self, target, args, kwargs, plainly: Callable) -> Tensor:
        """|c|^p x, c a constant, or 1/c: a number, a tensor, a matrix or a kernel."""
        bias = args[2] if len(args) > 2 else kwargs.get("bias")
        if self.kinds[self.node] != "linear" or len(args) < 2 or bias is not None:
            raise NoPaths("a product or ratio of two values")
        place = int(self.node.args[0] in self.data)
        x, constant = args[1 - place], torch.as_tensor(args[place], dtype=torch.float64, device=self.log.device)
        if target in RATIOS and not constant.all():
            raise NoPaths("a product or ratio of two values")
        power, log = self._powers(1 / constant if target in RATIOS else constant)
        power = power.to(x.dtype)
        y = x * power if target in RATIOS else plainly(target, (*args[:place], power, *args[place + 1 :]), kwargs)
        return self._rescaled(y, log)

    def _powers(self, constant: Tensor | float | int) -> tuple[Tensor, Tensor]:
        """|c|^p over its largest number, and the logarithm of that."""
        constant = torch.as_tensor(constant, dtype=torch.float64, device=self.log.device)
        if not constant.isfinite().all():
            raise NoPaths("a constant that is not finite")
        ((_, top, log),) = _with_tops({"": constant}, self.p).values()
        return _power(constant / top, self.p), log

    def _weighted(self, name: str, layer: nn.Module, x: Tensor) -> Tensor:
        """|W|^p x + |b|^p."""
        if isinstance(layer, CONVOLUTIONS + TRANSPOSED):
            self._require_single_paths(layer, x)
        weight, top, log = self.weights[name]
        y = apply_linear(layer, _power(weight / top, self.p), x)
        if name not in self.biases:
            return self._rescaled(y, log)
        bias, top, bias_log = self.biases[name]
        bias = _power(bias / top, self.p)
        bias = bias if isinstance(layer, nn.Linear) else bias.view(1, -1, *[1] * (y.ndim - 2))
        return self._shifted(y, log, bias, bias_log)

    def _shifted(self, y: Tensor, log: Tensor | float, shift: Tensor, shift_log: Tensor) -> Tensor:
        """y exp(log) + shift exp(shift_log)."""
        y = self._rescaled(y, log, shift_log - self.log)
        return y + (shift * (shift_log - self.log).exp()).to(y.dtype)

    def _require_single_paths(self, layer: nn.Module, x: Tensor) -> None:
        if x.dim() != len(layer.kernel_size) + 2:
            raise NoPaths("a convolution of what isn't a batch of images")
        spans = [(taps - 1) * dilation for taps, dilation in zip(layer.kernel_size, layer.dilation, strict=True)]
        around = layer.padding_mode == "circular" and all(s < n for s, n in zip(spans, x.shape[2:], strict=True))
        if layer.padding_mode != "zeros" and not around:
            raise NoPaths(f"a convolution with {layer.padding_mode} padding, two of whose taps meet one pixel")

    def _rescaled(self, y: Tensor, log: Tensor | float, *peaks: Tensor) -> Tensor:
        """y exp(log), once all that is alive is rescaled so that its largest value, or peak, is one."""
        dying = self.user_to_last_uses.get(self.node, [])
        alive = {node: value for node, value in self.env.items() if node in self.data and node not in dying}
        tensors = [value for value in tree_leaves(list(alive.values())) if isinstance(value, Tensor)]
        tops = [y.amax().double().log() + log, *(value.amax().double().log() for value in tensors), *peaks]
        peak = torch.stack(tops).amax()
        peak = torch.where(peak == -torch.inf, 0.0, peak)  # of zeros alone
        for node, value in alive.items():
            self.env[node] = tree_map_only(Tensor, lambda v: v * (-peak).exp().to(v.dtype), value)
        self.log = self.log + peak
        return y * (log - peak).exp().to(y.dtype)


def _name(operation: Callable | str) -> str:
    return operation if isinstance(operation, str) else getattr(operation, "__name__", str(operation))


def _over_samples(node: fx.Node, x: Tensor, dim: int | Sequence[int] | None = None, axis=None, **_) -> bool:
    dim = axis if dim is None else dim
    axes = range(x.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    before = node.all_input_nodes[0]
    stacked = before.target is torch.stack and (*before.args[1:], *before.kwargs.values(), 0)[0] == 0
    return not axes or int(stacked) in [axis % x.ndim for axis in axes]


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
        return PathSum(network, graph, layers, values, biases, p).log_sum(ones)

    values = {weight.name: weight.value for weight in weights}
    biases = {weight.name: weight.bias for weight in weights if weight.bias is not None}
    if network.size is not None and not any(layer.operation in KINKS for layer in network.layers):
        return vmap(of_one)(values, biases)
    models = range(len(weights[0].value))  # one by one, also where torch's vmap may not follow an activation
    return each(network, [of_one(*({n: t[i] for n, t in ts.items()} for ts in (values, biases))) for i in models])


def path_norm(
    network: nn.Module | Network, *, input_shape: tuple[int, ...], p: float | int = 2
) -> Float[Tensor, "*models"]:
    """Σ_paths Π |w|^p over all paths from an input or a bias to an output, no root, in float64 (Neyshabur et al. 2015).

    One forward pass of an input of ones with |w|^p for w. BatchNorm is folded, biases are inputs of one, and so are
    constants that are added; a skip counts 1, a constant c times it |c|^p, a matrix or kernel of constants as weights;
    an average over k values 1/k^p, interpolation each of its coefficients to the power p. What copies values, as unfold
    or a step that pads by pixels, counts each copy. A max-pool or the larger of two values counts as their sum (an
    upper bound: Gonon et al. 2024), activations 1: those with φ(0) = 0 and slopes of at most 1, others are refused.
    Cost: one forward pass of one sample and two passes over the weights. Infinite beyond 1e308: see `log_path_norm`.
    Errors as `frobenius_norms`; an operation whose paths aren't known, or of whose taps two meet one pixel (a
    convolution that reflects or repeats pixels itself), an untraceable network: ValueError, which names it.
    """
    return log_path_norm(network, input_shape=input_shape, p=p).exp()
