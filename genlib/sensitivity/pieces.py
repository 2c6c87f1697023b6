"""The linear pieces of a network: at which values its operations bend, and how many units change piece along paths."""

import functools
import operator
from collections import ChainMap
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor, fx, nn

from genlib.network import Network
from genlib.network.kinds import CHOICES, COMPARISONS, KINKS, kinds_of, named
from genlib.network.operations import Rerun

__all__ = ["changing_units", "flips_along", "kinks", "require_pieces"]

_AT_ZERO = {nn.ReLU, nn.LeakyReLU, nn.PReLU, F.relu, F.leaky_relu, operator.abs}
_AT_ZERO |= named("relu", "relu_", "prelu", "abs", "absolute")
_OF_TORCH = {
    **dict.fromkeys(_AT_ZERO, lambda *_, **__: [0.0]),
    **dict.fromkeys((nn.ReLU6, F.relu6), lambda *_, **__: [0.0, 6.0]),
    **dict.fromkeys((nn.Hardsigmoid, F.hardsigmoid), lambda *_, **__: [-3.0, 3.0]),
    F.hardtanh: lambda min_val=-1.0, max_val=1.0, inplace=False: [min_val, max_val],
    nn.Hardtanh: lambda layer: [layer.min_val, layer.max_val],
    F.threshold: lambda threshold, value, inplace=False: [threshold],
    nn.Threshold: lambda layer: [layer.threshold],
    **dict.fromkeys({F.softshrink, *named("hardshrink")}, lambda lambd=0.5: [-lambd, lambd]),
    **dict.fromkeys((nn.Softshrink, nn.Hardshrink), lambda layer: [-layer.lambd, layer.lambd]),
    **dict.fromkeys(named("clamp", "clip"), lambda min=None, max=None: [end for end in (min, max) if end is not None]),
    **dict.fromkeys(named("clamp_min"), lambda min: [min]),
    **dict.fromkeys(named("clamp_max"), lambda max: [max]),
}
_KINKS = ChainMap(_OF_TORCH, KINKS)


def _choice(found: Tensor | tuple[Tensor, Tensor], *args, **kwargs) -> Tensor:
    """Which of two tensors is the larger, or the places of the numbers that are returned with them."""
    return operator.gt(*args, *kwargs.values()) if isinstance(found, Tensor) else found[1]


def _place(_, input: Tensor, dim: int | Sequence[int] = (), keepdim: bool = False, *, sign: int = 1) -> Tensor:
    """Where along these axes, all of them if none, the largest number is, or with the other sign the smallest."""
    axes = [dim] if isinstance(dim, int) else list(dim) or list(range(input.dim()))
    return (sign * input).movedim(axes, list(range(-len(axes), 0))).flatten(-len(axes)).argmax(-1)


# From what they return and what they are given: what changes with the piece.
_CHOICES = {
    **dict.fromkeys(COMPARISONS, lambda found, *_, **__: found),
    **dict.fromkeys(CHOICES, _choice),
    **dict.fromkeys(named("amax"), _place),
    **dict.fromkeys(named("amin"), functools.partial(_place, sign=-1)),
}


def _window(pool: nn.Module) -> dict:
    return {name: getattr(pool, name) for name in ("kernel_size", "stride", "padding", "dilation", "ceil_mode")}


def _size(pool: nn.Module) -> dict:
    return {"output_size": pool.output_size}


_POOLS = {
    **{pool: (pool, None) for pool in (F.max_pool1d, F.max_pool2d, F.max_pool3d)},
    **{pool: (pool, None) for pool in (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)},
    **{getattr(nn, f"MaxPool{d}d"): (getattr(F, f"max_pool{d}d"), _window) for d in (1, 2, 3)},
    **{getattr(nn, f"AdaptiveMaxPool{d}d"): (getattr(F, f"adaptive_max_pool{d}d"), _size) for d in (1, 2, 3)},
}


def _kind(operation: nn.Module | Callable | str) -> type | Callable | str:
    return type(operation) if isinstance(operation, nn.Module) else operation


def kinks(operation: nn.Module | Callable | str, *args, **kwargs) -> Sequence:
    """Where an elementwise operation passes from one linear piece to the next.

    `args` and `kwargs` are those of a function or a method, without the tensor that it works on.
    """
    if isinstance(operation, nn.Module):
        return _KINKS[type(operation)](operation)
    return _KINKS[operation](*args, **kwargs)


def require_pieces(network: Network) -> None:
    """Refuse a network with an operation that isn't linear, nor of known linear pieces, by name."""
    network.require_known()
    if smooth := [layer.name for layer in network.layers if layer.kind == "smooth"]:
        raise ValueError(
            f"network: {', '.join(smooth)} is not piecewise linear, so there are no linear pieces to count; "
            "measure jacobian_norms instead"
        )
    pieces = [layer for layer in network.layers if layer.kind == "piecewise linear"]
    if odd := [layer.name for layer in pieces if _kind(layer.operation) not in {*_KINKS, *_POOLS, *_CHOICES}]:
        raise ValueError(f"network: the pieces of {', '.join(odd)} are unknown; write it with relu or clamp")


def flips_along(network: Network, module: nn.Module, points: Tensor) -> Int[Tensor, "paths steps"]:
    """How many units change their piece from each point [paths, points, …] to the next, pieces crossed counted singly.

    `module` is a copy of the network's that shares its tensors. One forward pass.
    """
    return _counted(network, module, points, lambda code: (code[:, 1:] != code[:, :-1]).sum(-1, dtype=torch.int32))


def changing_units(network: Network, module: nn.Module, points: Tensor) -> Int[Tensor, " sets"]:
    """How many units are not on one piece at all points [sets, points, …] of a set; otherwise as `flips_along`."""
    return _counted(network, module, points, lambda code: (code != code[:, :1]).any(1).sum(-1, dtype=torch.int32))


def _counted(network: Network, module: nn.Module, points: Tensor, count: Callable[[Tensor], Tensor]) -> Tensor:
    walk = _Walk(module, network.graph, points, count)
    walk.run(points.flatten(0, 1).clone() if network.writes_inputs else points.flatten(0, 1))
    return walk.total


class _Walk(Rerun):
    """A forward pass along paths that adds up what `count` says of the units' pieces [paths, points, units]."""

    def __init__(self, module: nn.Module, graph: fx.Graph, points: Tensor, count: Callable[[Tensor], Tensor]):
        super().__init__(module, graph=graph)
        self.extra_traceback = False  # it would be written into the messages of errors
        self.paths, self.points = points.shape[:2]
        self.kinds = kinds_of(module, graph)
        self.count, self.total = count, count(points.new_zeros(self.paths, self.points, 0))

    def run_node(self, n):
        self.node = n
        return super().run_node(n)

    def call_module(self, target, args, kwargs):
        return self._through(self.fetch_attr(target), super().call_module, target, args, kwargs)

    def call_function(self, target, args, kwargs):
        return self._through(target, super().call_function, target, args, kwargs)

    def call_method(self, target, args, kwargs):
        return self._through(target, super().call_method, target, args, kwargs)

    def _through(self, operation, call, target, args, kwargs):
        if self.kinds[self.node] != "piecewise linear":
            return call(target, args, kwargs)
        if _kind(operation) in _POOLS:
            return self._pool(operation, args, kwargs)
        if _kind(operation) in _KINKS:
            rest = dict(kwargs)
            x, args_after = (args[0], args[1:]) if args else (rest.pop("input"), ())
            for kink in kinks(operation, *args_after, **rest):
                self._count(_above(x, kink))
        found = call(target, args, kwargs)
        if operation in _CHOICES:
            self._count(_CHOICES[operation](found, *args, **kwargs))
        return found

    def _pool(self, operation, args, kwargs):
        function, settings = _POOLS[_kind(operation)]
        wanted = operation.return_indices if settings else kwargs.get("return_indices", False)
        options = settings(operation) if settings else {}
        output, largest = function(*args, **kwargs | options | {"return_indices": True})
        self._count(largest)
        return (output, largest) if wanted else output

    def _count(self, code: Tensor) -> None:
        if len(code) != self.paths * self.points:
            raise ValueError(
                f"network: {self.node.name} sees {len(code)} rows for {self.paths * self.points} points, so the units "
                "of a point are not known; keep the samples' axis first"
            )
        self.total += self.count(code.reshape(self.paths, self.points, -1))


def _above(x: Tensor, kink: float | int | Tensor) -> Bool[Tensor, "..."]:
    """x > kink, on a CPU in half the time of that comparison, which torch doesn't vectorize there."""
    shifted = x - kink if isinstance(kink, Tensor) or kink else x
    return torch.relu(shifted).bool()
