"""Running statistics, as those of BatchNorm, are kept through a pass that isn't to count."""

import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

__all__ = ["kept", "kept_wherever", "unchanged"]

_Held = list[tuple[dict, str, Tensor | int | float]]


@contextmanager
def unchanged(tensors: Iterable[Tensor]) -> Iterator[None]:
    """What these tensors hold now they hold afterwards."""
    before = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    finally:
        _fill(before)


@contextmanager
def kept(module: nn.Module) -> Iterator[None]:
    """What the parts of a module hold beside parameters, changed in place or replaced, they hold again afterwards."""
    held = _held(module)
    try:
        with unchanged(_tensors(held)):
            yield
    finally:
        _hold(held)


@contextmanager
def kept_wherever() -> Iterator[None]:
    """The same for every module that runs here. What is compiled runs eagerly: within it no module is seen to run."""
    runs: dict[nn.Module, _Held] = {}  # of the outermost modules
    inner, before = set(), []

    def enter(module: nn.Module, _) -> None:
        if module not in inner:
            inner.update(part for part in module.modules() if part is not module)
            runs[module] = _held(module)
            before.extend((tensor, tensor.detach().clone()) for tensor in _tensors(runs[module]))

    def leave(module: nn.Module, *_) -> None:
        _hold(runs.get(module, []))

    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
    try:
        with _eagerly():
            yield
    finally:
        for handle in handles:
            handle.remove()
        # Not before, for the backward pass still has use of them; the first values last, where a module ran twice.
        _fill(reversed(before))


def _held(module: nn.Module) -> _Held:
    return [
        (store, name, value)
        for part in module.modules()
        for store in (part._buffers, vars(part))
        for name, value in store.items()
        if isinstance(value, Tensor | int | float)
    ]


def _tensors(held: _Held) -> list[Tensor]:
    return [value for *_, value in held if isinstance(value, Tensor) and not value.requires_grad]


def _hold(held: _Held) -> None:
    for store, name, value in held:
        store[name] = value


@torch.no_grad()
def _fill(values: Iterable[tuple[Tensor, Tensor]]) -> None:
    for tensor, value in values:
        tensor.copy_(value)


@contextmanager
def _eagerly() -> Iterator[None]:
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):  # from torch 2.6
        yield
        return
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        warnings.filterwarnings("ignore", message=".*when there are global hooks on")
        yield
