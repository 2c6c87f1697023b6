"""What a module holds, bare of wrappers: its weights and what stays, under which names, and copies of it."""

import copy
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from genlib.network.errors import first_line, out_of_memory

__all__ = [
    "Params",
    "aliases",
    "bare",
    "copied",
    "layout",
    "require_equal_attributes",
    "require_equally_trainable",
    "require_one_shape",
    "require_weights",
    "weights_apart",
]

Params = dict[str, Tensor]
_OF_MODULES = vars(nn.Module()).keys()
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def copied(module: nn.Module, memo: dict[int, Tensor] | None = None) -> nn.Module:
    """A deep copy; `memo` gives tensors by their id what stands for them there.

    What a hook computed last, as pruning keeps a weight, is an attribute with a graph, which torch won't copy.
    ValueError: a module with an attribute that can't be copied.
    """
    held = [(name, v) for part in module.modules() for name, v in vars(part).items()]
    own = [v for name, v in held if name not in _OF_MODULES]
    computed = [t for t in tree_leaves(own) if isinstance(t, Tensor) and t.grad_fn]
    # A module has ten empty dicts, each of which deepcopy takes apart and puts together: most of its time.
    empty = {id(v): type(v)() for _, v in held if type(v) in (dict, OrderedDict) and not v}
    try:
        return copy.deepcopy(module, empty | {id(t): t.detach().clone() for t in computed} | (memo or {}))
    except Exception as error:  # whatever an attribute of the module's own raises
        if out_of_memory(error):
            raise
        raise ValueError(
            f"network: it can't be copied ({type(error).__name__}: {first_line(error)}); hold what can't be, as files, "
            "locks and generators, outside of the module"
        ) from error


def bare(module: nn.Module, met: dict[int, nn.Module]) -> nn.Module:
    """The module behind what compiles it or spreads it over devices, with the same tensors; its parts too."""
    while isinstance(module, _PARALLEL) or "_orig_mod" in module._modules:
        module = module._orig_mod if "_orig_mod" in module._modules else module.module
    wrapped = (isinstance(m, _PARALLEL) or "_orig_mod" in m._modules or m._compiled_call_impl for m in module.modules())
    if not any(wrapped):
        return module
    if id(module) not in met:
        met[id(module)] = plain = copy.copy(module)  # which leaves out what was compiled
        plain._modules = {n: None if p is None else bare(p, met) for n, p in module._modules.items()}
    return met[id(module)]


def require_weights(module: nn.Module) -> None:
    """Refuse parameters that have no values yet, or complex ones, by name."""
    for name, p in module.named_parameters():
        if isinstance(p, nn.parameter.UninitializedTensorMixin):
            raise ValueError(f"network: {name} has no shape yet; pass a batch through the module once, then measure it")
        if p.is_complex():
            raise ValueError(
                f"network: {name} is complex; hold its real and imaginary parts as the parameter "
                "(torch.view_as_real), and join them in forward (torch.view_as_complex)"
            )


def weights_apart(params: Params, buffers: Params) -> tuple[Params, Params]:
    """Detached, what can be moved, and what stays: the buffers, and parameters of whole numbers."""
    with torch.inference_mode(False):
        kept = {name: t.detach().clone() if t.is_inference() else t.detach() for name, t in (buffers | params).items()}
    weights = {name: kept[name] for name, p in params.items() if p.is_floating_point()}
    _require_finite(weights)
    return weights, {name: t for name, t in kept.items() if name not in weights}


def aliases(module: nn.Module) -> dict[str, str]:
    """Every name under which a parameter or buffer is to be found, and the one that `named_parameters` gives it."""
    own = {id(t): name for name, t in [*module.named_parameters(), *module.named_buffers()]}
    return {
        f"{prefix}.{name}".lstrip("."): own[id(tensor)]
        for prefix, part in module.named_modules()
        for name, tensor in [*part._parameters.items(), *part._buffers.items()]
        if tensor is not None
    }


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


def require_equally_trainable(modules: Sequence[nn.Module]) -> None:
    """Refuse modules of one shape of which one has a parameter frozen that another trains."""
    for i, module in enumerate(modules):
        pairs = zip(modules[0].named_parameters(), module.parameters(), strict=True)
        if odd := [name for (name, p), q in pairs if p.requires_grad != q.requires_grad]:
            raise ValueError(
                f"modules[{i}] differs from modules[0] in whether {odd[0]} requires a gradient; let it do so in all "
                "networks of a stack, or in none"
            )


def _require_finite(params: Params) -> None:
    if not params or any(p.is_meta for p in params.values()):
        return
    finite = torch.stack([p.isfinite().all() for p in params.values()]).tolist()  # the one host read
    if bad := [name for name, good in zip(params, finite, strict=True) if not good]:
        raise ValueError(f"network: the weights of {', '.join(bad)} are not finite; measure it before it diverged")


def layout(module: nn.Module, tensors: Params) -> dict[str, tuple[int, ...] | str]:
    """What networks must share to be handled as one: the module's layers, and the shapes of its tensors."""
    kinds = {f"the module {name!r}": str(m) for name, m in module.named_modules() if not list(m.children())}
    return kinds | {name: tuple(tensor.shape) for name, tensor in tensors.items() if isinstance(tensor, Tensor)}


def require_equal_attributes(modules: Sequence[nn.Module]) -> None:
    """Refuse networks that differ in more than tensors: a stack would run all of them as the first."""
    first = _attributes(modules[0])
    for i, module in enumerate(modules):
        if (others := _attributes(module)) != first:
            odd = next(name for name in {**first, **others} if first.get(name) != others.get(name))
            raise ValueError(
                f"modules[{i}] differs from modules[0] in {odd}, an attribute that is no parameter or buffer; a stack "
                "would take that of the first for all: make it a buffer, or measure each network alone"
            )


def _attributes(module: nn.Module) -> dict[str, str]:
    """What a module holds beside its weights, buffers and modules, but for what a hook computes anew."""
    own = {id(tensor) for tensor in [*module.parameters(), *module.buffers()]}

    def other(value: object) -> object:
        return type(value) if id(value) in own else value

    return {
        f"{prefix}.{name}".lstrip("."): _described(tree_map(other, value))
        for prefix, part in module.named_modules()
        for name, value in vars(part).items()
        if name not in _OF_MODULES and not (isinstance(value, Tensor) and part._forward_pre_hooks)
    }


def _described(value: object) -> str:
    """An attribute in words that are the same for the same value; of what has no such words its type alone."""
    if isinstance(value, Tensor):
        return f"{value.dtype}{value.tolist()}" if value.numel() <= 2**16 else f"{value.dtype}{tuple(value.shape)}"
    if isinstance(value, str | bytes | int | float | complex | torch.dtype | torch.device | torch.Size | None):
        return repr(value)
    if isinstance(value, tuple | list | dict):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return f"{type(value).__name__}{[(key, _described(one)) for key, one in items]}"
    if (code := getattr(value, "__code__", None)) is not None:  # a function, and what it holds on to
        held = [_described(cell.cell_contents) for cell in value.__closure__ or () if not _is_module(cell)]
        return f"{code}{held}{_described(value.__defaults__)}"
    return getattr(value, "__qualname__", type(value).__qualname__)


def _is_module(cell) -> bool:
    return isinstance(cell.cell_contents, nn.Module)
