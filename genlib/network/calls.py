"""Whether to call a module is to run the forward pass of its class, and nothing else."""

from torch import nn
from torch.nn.modules.module import _has_any_global_hook

__all__ = ["plainly_called"]

_BESIDE = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_compiled_call_impl")


def plainly_called(module: nn.Module) -> bool:
    """Whether no part has hooks, a call or a forward of its own, or is compiled."""
    return not _has_any_global_hook() and all(
        type(part).__call__ is nn.Module.__call__
        and "forward" not in vars(part)
        and not any(getattr(part, name) for name in _BESIDE)
        for part in module.modules()
    )
