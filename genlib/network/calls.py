"""Whether to call a module is to run the forward pass of its class, and nothing else."""

from torch import nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks, _has_any_global_hook

__all__ = ["altered", "in_sequence", "plainly_called"]

_BESIDE = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_compiled_call_impl")


def plainly_called(module: nn.Module) -> bool:
    """Whether no part has hooks, a call or a forward of its own, or is compiled."""
    return not _has_any_global_hook() and all(
        type(part).__call__ is nn.Module.__call__
        and "forward" not in vars(part)
        and not any(getattr(part, name) for name in _BESIDE)
        for part in module.modules()
    )


def in_sequence(module: nn.Module) -> bool:
    """Whether the module runs its layers one after the other, and dense ones hold their weights as parameters.

    A weight may have been made a buffer or a plain tensor, with which the layer runs as before.
    """
    if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
        return False
    dense = [layer for layer in module.children() if isinstance(layer, nn.Linear)]
    held = all(layer._parameters.keys() == {"weight", "bias"} for layer in dense)
    return held and type(module).__iter__ is nn.Sequential.__iter__


def altered(module: nn.Module) -> str | None:
    """What makes the module do other than its type says: a hook, or a forward of its own, with its name."""
    for name, part in module.named_modules():
        where = name or "the module itself"
        if part._forward_hooks or part._forward_pre_hooks:
            return f"{where} has a forward hook"
        if "forward" in vars(part):
            return f"{where} has been given another forward"
        if type(part).__call__ is not nn.Module.__call__:
            return f"{where} has a __call__ of its own"
    return "every module has a global forward hook" if _global_forward_hooks or _global_forward_pre_hooks else None
