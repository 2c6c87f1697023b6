"""A module as a pure function of its parameters, alone or in a stack."""

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._pytree import tree_leaves

from genlib.network.operations import Layer, dense_steps, layers_of, traced

__all__ = [
    "Network",
    "Params",
    "aliases",
    "called",
    "copied",
    "layout",
    "over_models",
    "plainly_called",
    "require_one_shape",
    "without_hooks",
]

Params = dict[str, Tensor]


@dataclass(frozen=True)
class Network:
    """A module as a pure function f(params, inputs), or a stack of same-shaped ones with a leading model axis.

    `params` and `buffers` are the tensors of the module itself (copies in a stack), detached. `graph` is None where
    torch.fx can't trace the module: measures that need outputs alone still work. `size` is None for one network.
    `admitted` once it has passed the door (`network/door.py`), which also finds whether it writes into its inputs.
    """

    module: nn.Module
    params: Params
    buffers: Params
    graph: fx.Graph | None
    layers: tuple[Layer, ...]
    size: int | None = None
    admitted: bool = False
    writes_inputs: bool = False

    @classmethod
    def of(cls, module: "nn.Module | Network") -> "Network":
        """The network of one module. A Network passes through."""
        if isinstance(module, Network):
            return module
        params = {name: p.detach() for name, p in module.named_parameters()}
        buffers = {name: b.detach() for name, b in module.named_buffers()}
        _require_finite(params)
        graph = traced(module)
        return cls(module, params, buffers, graph, layers_of(module, graph))

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
        graph = traced(skeleton)
        return cls(skeleton, params, buffers, graph, layers_of(skeleton, graph), size=len(modules))

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
        module = copy.deepcopy(self.module, {id(tensor): lent[name] for name, tensor in originals.items()})
        if self.writes_inputs:
            module.register_forward_pre_hook(lambda _, inputs: tuple(x.clone() for x in inputs))
        return module

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
        inputs = inputs.clone() if self.writes_inputs else inputs
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
    found = functional_call(module, lent, (inputs,), tie_weights=False)
    if not isinstance(found, Tensor):
        raise ValueError(
            f"network: its output is a {type(found).__name__}; wrap it in a module that returns the logits alone"
        )
    return found


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
    if type(module) is not nn.Sequential or not plainly_called(module):
        return module
    forwards = [layer.forward for layer in module]

    def forward(x: Tensor) -> Tensor:
        for layer in forwards:
            x = layer(x)
        return x

    return forward


def plainly_called(module: nn.Module) -> bool:
    """Whether to call a part is to run its class's forward: no hooks, no call or forward of its own, not compiled."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_compiled_call_impl")
    return not _has_any_global_hook() and all(
        type(part).__call__ is nn.Module.__call__
        and "forward" not in vars(part)
        and not any(getattr(part, kind) for kind in hooks)
        for part in module.modules()
    )


def copied(module: nn.Module) -> nn.Module:
    """A deep copy; what hooks computed from the weights and left as an attribute is copied without its graph.

    ValueError where a part can't be copied.
    """
    attributes = tree_leaves([vars(part) for part in module.modules()])
    computed = [t for t in attributes if isinstance(t, Tensor) and not t.is_leaf]
    try:
        return copy.deepcopy(module, {id(t): t.detach().clone() for t in computed})
    except Exception as error:  # whatever an attribute of the module's own raises
        raise ValueError(
            f"network: it can't be copied ({type(error).__name__}: {error}); hold what can't be copied, as files, "
            "locks and generators, outside of the module"
        ) from error


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
    return kinds | {name: tuple(tensor.shape) for name, tensor in tensors.items() if isinstance(tensor, Tensor)}


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
