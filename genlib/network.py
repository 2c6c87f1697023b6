"""A module as a pure function of its parameters, alone or in a stack. All of torch.func and torch.fx is here."""

import copy
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.func import functional_call, stack_module_state, vmap

from genlib._normalizations import SimplifiedBatchNorm, SimplifiedLayerNorm

__all__ = [
    "ELEMENTWISE",
    "Layer",
    "Network",
    "Params",
    "aliases",
    "called",
    "dense_steps",
    "layout",
    "over_models",
    "require_one_shape",
    "without_hooks",
]

Params = dict[str, Tensor]

_POOLING = ("AvgPool", "AdaptiveAvgPool")
_LINEAR = {
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.Flatten, nn.Unflatten, nn.Identity, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
    *(getattr(nn, f"{kind}{d}d") for kind in _POOLING for d in (1, 2, 3)),
    *(torch.flatten, torch.cat, torch.add, torch.mean, operator.add, operator.iadd, operator.sub, operator.getitem),
    *(F.linear, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.pad),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    *("flatten", "view", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "contiguous"),
    *("mean", "sum", "size"),
}
_PIECEWISE_LINEAR = {
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.Hardtanh, nn.Hardsigmoid),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(F.relu, F.relu6, F.leaky_relu, F.hardtanh, F.hardsigmoid, torch.relu, torch.abs),
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d, "relu", "relu_", "clamp", "abs"),
}
_SMOOTH = {
    *(nn.Tanh, nn.Sigmoid, nn.Softplus, nn.GELU, nn.SiLU, nn.ELU, nn.SELU, nn.Mish, nn.Softmax, nn.LogSoftmax),
    *(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm, nn.InstanceNorm1d, nn.InstanceNorm2d),
    *(SimplifiedBatchNorm, SimplifiedLayerNorm),
    *(torch.tanh, torch.sigmoid, F.tanh, F.sigmoid, F.softplus, F.gelu, F.silu, F.softmax, F.layer_norm),
    *(torch.mul, torch.div, operator.mul, operator.truediv, "tanh", "sigmoid", "softmax"),
}


@dataclass(frozen=True)
class Layer:
    """One operation of a traced network: its name in the module, the operation, and its kind.

    `kind` is `linear`, `piecewise linear`, `smooth` or `unknown`.
    """

    name: str
    operation: nn.Module | Callable | str
    kind: str


@dataclass(frozen=True)
class Network:
    """A module as a pure function f(params, inputs), or a stack of same-shaped ones with a leading model axis.

    `params` and `buffers` are the tensors of the module itself (copies in a stack), detached. `graph` is None where
    torch.fx can't trace the module: measures that need outputs alone still work. `size` is None for one network.
    """

    module: nn.Module
    params: Params
    buffers: Params
    graph: fx.Graph | None
    layers: tuple[Layer, ...]
    size: int | None = None

    @classmethod
    def of(cls, module: "nn.Module | Network") -> "Network":
        """The network of one module. A Network passes through."""
        if isinstance(module, Network):
            return module
        params = {name: p.detach() for name, p in module.named_parameters()}
        buffers = {name: b.detach() for name, b in module.named_buffers()}
        _require_finite(params)
        graph = _trace(module)
        return cls(module, params, buffers, graph, _layers(module, graph))

    @classmethod
    def stack(cls, modules: "Sequence[nn.Module] | Network") -> "Network":
        """The networks of same-shaped modules as one, with a leading model axis on every parameter and buffer."""
        if isinstance(modules, Network):
            return modules
        require_one_shape(modules)
        params, buffers = stack_module_state(list(modules))
        params = {name: p.detach() for name, p in params.items()}
        _require_finite(params)
        skeleton = copy.deepcopy(modules[0])
        graph = _trace(skeleton)
        return cls(skeleton, params, buffers, graph, _layers(skeleton, graph), size=len(modules))

    @property
    def each(self) -> "list[Network]":
        """The networks of a stack one by one, without a copy; of one network itself alone."""
        if self.size is None:
            return [self]
        tensors = [
            tuple({name: tensor[i] for name, tensor in stacked.items()} for stacked in (self.params, self.buffers))
            for i in range(self.size)
        ]
        return [replace(self, params=params, buffers=buffers, size=None) for params, buffers in tensors]

    def shared_copy(self, *, requires_grad: bool = False) -> nn.Module:
        """A module of its own, for hooks that the network's must not see, that holds these very tensors."""
        params = {name: nn.Parameter(p, requires_grad) for name, p in self.params.items()}
        originals = dict(self.module.named_buffers()) | dict(self.module.named_parameters())
        lent = self.buffers | params
        return copy.deepcopy(self.module, {id(tensor): lent[name] for name, tensor in originals.items()})

    @functools.cached_property
    def _names(self) -> dict[str, str]:
        return aliases(self.module)

    @property
    def piecewise_linear(self) -> bool:
        """Whether every operation is known to be linear or piecewise linear in its input."""
        return self.graph is not None and all(layer.kind in ("linear", "piecewise linear") for layer in self.layers)

    def apply(
        self,
        params: Params,
        inputs: Float[Tensor, "..."],
        *,
        buffers: Params | None = None,
        inputs_of_each: bool = False,
    ) -> Float[Tensor, "..."]:
        """Logits [samples, classes] for these parameters; [models, samples, classes] for a stack.

        A stack shares `inputs` [samples, …], or with `inputs_of_each` each network has its own [models, samples, …].
        Cost: one forward pass.
        """
        buffers = self.buffers if buffers is None else buffers
        if self.size is None:
            return called(self.module, self._names, params | buffers, inputs)
        if (steps := dense_steps(self.module)) is not None:
            return _dense_stack(steps, params, inputs, inputs_of_each)
        call = vmap(
            lambda p, b, x: called(self.module, self._names, p | b, x),
            in_dims=(0, 0, 0 if inputs_of_each else None),
            randomness="different",
        )
        return call(params, buffers, inputs)

    def require_eval(self) -> None:
        """Refuse BatchNorm and dropout in training mode: one's output depends on the batch, the other's on chance."""
        for name, module in self.module.named_modules():
            if module.training and isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)):
                kind = "dropout" if isinstance(module, nn.modules.dropout._DropoutNd) else "BatchNorm"
                raise ValueError(f"network: {name} is {kind} in training mode; call module.eval() before measuring")

    def require_known(self) -> None:
        """Refuse a network with an operation that the table of operations doesn't hold, by name."""
        if self.graph is None:
            raise ValueError("network: torch.fx can't trace this module; this measure needs to know its operations")
        if unknown := [layer.name for layer in self.layers if layer.kind == "unknown"]:
            raise ValueError(
                f"network: the operations {', '.join(unknown)} are unknown; this measure needs to know them"
            )


def aliases(module: nn.Module) -> dict[str, str]:
    """Every name under which a parameter or buffer is to be found, and the one that `named_parameters` gives it."""
    own = {id(t): name for name, t in [*module.named_parameters(), *module.named_buffers()]}
    return {
        f"{prefix}.{name}".lstrip("."): own[id(tensor)]
        for prefix, part in module.named_modules()
        for name, tensor in [*part._parameters.items(), *part._buffers.items()]
        if tensor is not None
    }


def called(module: nn.Module, names: dict[str, str], tensors: Params, inputs: Tensor) -> Tensor:
    """The module's output with these tensors in place of its own; `names` are its `aliases`.

    Left to itself torch.func also ties the names of a layer that stands there twice, and puts its weights back wrong.
    """
    lent = {alias: tensors[name] for alias, name in names.items() if name in tensors}
    return functional_call(module, lent, (inputs,), tie_weights=False)


def require_one_shape(modules: Sequence[nn.Module]) -> None:
    """Refuse modules that can't be stacked: none at all, or one that differs from the first in a layer or a shape."""
    if not modules:
        raise ValueError("modules is empty; a stack needs at least one network")
    first = layout(modules[0], modules[0].state_dict())
    for i, module in enumerate(modules):
        if (shapes := layout(module, module.state_dict())) != first:
            odd = next(name for name in {**first, **shapes} if first.get(name) != shapes.get(name))
            raise ValueError(
                f"modules[{i}] differs from modules[0] in {odd} ({shapes.get(odd)} against {first.get(odd)}); "
                "a stack holds networks of one shape: stack each shape by itself"
            )


def without_hooks(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The module's forward pass; of a plain Sequential the layers' own, one after the other.

    For a few small layers torch's search for hooks takes a tenth of the time; where there are any, they run.
    """
    hooked = any(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks for part in module.modules())
    if hooked or type(module) is not nn.Sequential:
        return module
    forwards = [layer.forward for layer in module]

    def forward(x: Tensor) -> Tensor:
        for layer in forwards:
            x = layer(x)
        return x

    return forward


def over_models(values: Tensor, like: Tensor) -> Tensor:
    """One value a model, to be broadcast over a tensor of the stack; a single value as it is."""
    return values.view(-1, *[1] * (like.dim() - 1)) if values.dim() else values


def _require_finite(params: Params) -> None:
    floating = {name: p for name, p in params.items() if p.is_floating_point()}
    if not floating:
        return
    finite = torch.stack([p.isfinite().all() for p in floating.values()]).tolist()  # the one host read
    if bad := [name for name, good in zip(floating, finite, strict=True) if not good]:
        raise ValueError(f"network: the weights of {', '.join(bad)} are not finite; measure it before it diverged")


def layout(module: nn.Module, tensors: Params) -> dict[str, tuple[int, ...] | str]:
    """What networks must share to be handled as one: the module's layers, and the shapes of its tensors."""
    kinds = {f"the module {name!r}": str(m) for name, m in module.named_modules() if not list(m.children())}
    return kinds | {name: tuple(tensor.shape) for name, tensor in tensors.items()}


class _Tracer(fx.Tracer):
    """One that doesn't look into the modules of the table either, besides torch's own."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in _SMOOTH or super().is_leaf_module(m, module_qualified_name)


def _trace(module: nn.Module) -> fx.Graph | None:
    try:
        return _Tracer().trace(module)
    except Exception:  # fx raises whatever the module's own forward raises when it is fed proxies
        return None


def _layers(module: nn.Module, graph: fx.Graph | None) -> tuple[Layer, ...]:
    if graph is None:
        return ()
    modules = dict(module.named_modules())
    calls = [node for node in graph.nodes if node.op in ("call_module", "call_function", "call_method")]
    found = [(str(n.target) if n.op == "call_module" else n.name, modules.get(n.target, n.target)) for n in calls]
    return tuple(Layer(name, operation, _kind(operation)) for name, operation in found)


def _kind(operation: nn.Module | Callable | str) -> str:
    if isinstance(operation, nn.modules.batchnorm._BatchNorm) and operation.training:
        return "smooth"
    key = type(operation) if isinstance(operation, nn.Module) else operation
    tables: Mapping[str, set] = {"linear": _LINEAR, "piecewise linear": _PIECEWISE_LINEAR, "smooth": _SMOOTH}
    return next((kind for kind, table in tables.items() if key in table), "unknown")


ELEMENTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardtanh, nn.Hardsigmoid),
    *(nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Identity),
)


def dense_steps(module: nn.Module) -> list[tuple[str, nn.Module]] | None:
    """The layers of a Sequential of dense layers, each used once, and elementwise ones alone, else None.

    Flattening and dropout out of training are left out.
    """
    if type(module).forward is not nn.Sequential.forward:
        return None
    # Not named_children, which leaves out a layer that it has met before.
    steps = [(name, layer) for name, layer in module._modules.items() if not _changes_nothing(layer)]
    linear = [layer for _, layer in steps if type(layer) is nn.Linear]
    dense = all(type(layer) is nn.Linear or type(layer) in ELEMENTWISE for _, layer in steps)
    return steps if dense and len(set(linear)) == len(linear) else None


def _changes_nothing(layer: nn.Module) -> bool:
    """Whether samples that are flat already pass a layer as they are."""
    whole = type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1)
    return whole or (type(layer) is nn.Dropout and not layer.training)


def _dense_stack(steps: list[tuple[str, nn.Module]], params: Params, inputs: Tensor, inputs_of_each: bool) -> Tensor:
    # Batched products by hand: vmap takes 1.4 times as long for the same ones on small networks. Samples come last, so
    # that the gradients of the weights come out laid out as the weights are.
    models = next(iter(params.values())).shape[0]
    x = inputs if inputs_of_each else inputs.expand(models, *inputs.shape)
    x = x.flatten(2).transpose(1, 2)
    for name, layer in steps:
        if not isinstance(layer, nn.Linear):
            x = layer(x)
        elif layer.bias is None:
            x = params[f"{name}.weight"] @ x
        else:
            x = torch.baddbmm(params[f"{name}.bias"].unsqueeze(2), params[f"{name}.weight"], x)
    return x.transpose(1, 2)
