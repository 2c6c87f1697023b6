"""Whether a stack of networks trains each as it would be trained alone, seen on a few samples."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from genlib.data import Dataset
from genlib.network import Network, copied, dense_steps, plainly_called
from genlib.network.errors import first_line
from genlib.train.door import few, gradients, normal

__all__ = ["stack_fails"]


def stack_fails(modules: Sequence[nn.Module], datasets: Sequence[Dataset]) -> str | None:
    """Why a stack of these doesn't train each as it would be alone, or None; outputs, gradients and buffers compared.

    On a few samples, in both modes, each network passes forward and back. Dense networks need no comparison.
    """
    kinds = [[(p.dtype, p.requires_grad) for p in module.parameters()] for module in modules]
    if any(kind != kinds[0] for kind in kinds):
        return "its networks differ in the precision of a parameter, or in whether it is trained"
    if len({dataset.input_shape for dataset in datasets}) > 1:
        return "its data sets have inputs of different shapes"
    if any(p.is_complex() or p._backward_hooks for module in modules for p in module.parameters()):
        return "its weights are complex, or have hooks"
    if all(_plainly_dense(module) for module in modules):
        return None
    device = datasets[0].device
    data = [few(dataset)[0] for dataset in datasets]
    smallest = min(len(x) for x in data)
    inputs = torch.stack([normal(x[:smallest]) for x in data])
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            stack = Network.stack([copied(module) for module in modules])
            stack = replace(stack, params=_on(stack.params, device), buffers=_on(stack.buffers, device))
            stack.module.to(device)
            named = {name for module in modules for name, _ in [*module.named_parameters(), *module.named_buffers()]}
            if named != {*stack.params, *stack.buffers}:
                return "its networks have parts in DataParallel or torch.compile"
            plain = [
                (vars(part), n, t)
                for part in stack.module.modules()
                for n, t in vars(part).items()
                if isinstance(t, Tensor)
            ]
            alone = [copied(module).to(device) for module in modules]
            again = copied(modules[0]).to(device)
            compared = [_alike(stack, alone, again, inputs, training) for training in (False, True)]
            if all(compared):  # with what a pass of training has left behind
                compared.append(_alike(stack, alone, again, inputs, False))
            if any(now[name] is not tensor for now, name, tensor in plain):
                return "it replaces a tensor that is a plain attribute; make that a buffer"
        except Exception as error:  # vmap raises much, in words of its own
            return f"its forward pass can't be stacked ({type(error).__name__}: {first_line(error)})"
    if False in compared:
        return "the outputs, gradients or buffers of the stack are not those of its networks"
    return None if True in compared else "it draws random numbers in evaluation mode, so that nothing can be compared"


def _alike(stack: Network, alone: list[nn.Module], again: nn.Module, inputs: Tensor, training: bool) -> bool | None:
    """Whether the stack does what its networks do; None where chance decides, dropout layers apart."""
    for module in (stack.module, again, *alone):
        module.train(training)
        for part in module.modules():
            if isinstance(part, nn.modules.dropout._DropoutNd):
                part.eval()
    held = dict(alone[0].named_buffers())
    each = [_pass(module, inputs[i].clone()) for i, module in enumerate(alone)]
    if not _close(each[0], _pass(again, inputs[0].clone())):
        # A buffer that is changed in place is changed in a stack; one that is replaced is lost there.
        return None if all(buffer is held.get(name) for name, buffer in alone[0].named_buffers()) else False
    trains = {name for name, p in stack.module.named_parameters() if p.requires_grad}
    params = {name: p.detach().requires_grad_(name in trains) for name, p in stack.params.items()}
    outputs = stack.apply(params, inputs.clone(), buffers=stack.buffers, inputs_of_each=True)
    found = gradients(_weighted(outputs), [params[name] for name in params if name in trains])
    together = outputs.detach(), found, [stack.buffers[name] for name, _ in stack.module.named_buffers()]
    rows = [tree_map(lambda t, i=i: None if t is None else t[i], together) for i in range(len(each))]
    return all(_close(row, one) for row, one in zip(rows, each, strict=True))


_Pass = tuple[Tensor, list[Tensor | None], list[Tensor]]  # outputs, gradients, buffers afterwards


def _pass(module: nn.Module, inputs: Tensor) -> _Pass:
    outputs = module(inputs)
    found = gradients(_weighted(outputs), [p for p in module.parameters() if p.requires_grad])
    return outputs.detach(), found, [buffer.detach().clone() for buffer in module.buffers()]


def _weighted(outputs: Tensor) -> Tensor:
    """A sum in which every class counts differently, so that a softmax's has a gradient, too."""
    weights = torch.arange(1, outputs.shape[-1] + 1, device=outputs.device, dtype=outputs.dtype)
    return (outputs * weights.cos()).sum()


def _close(one: _Pass, other: _Pass) -> bool:
    pairs = list(zip(one[1], other[1], strict=True))
    present = [(a, b) for a, b in pairs if a is not None and b is not None]
    zero = all(not (a if b is None else b).any() for a, b in pairs if (a is None) != (b is None))
    # Gradients against the largest of all: that of a bias before BatchNorm, for one, is nothing but rounding.
    largest = max((a.nan_to_num().abs().max().item() for a, _ in present if a.numel()), default=0.0)
    return (
        zero
        and _near(one[0], other[0])
        and all(_near(a, b, largest) for a, b in present)
        and all(_near(a, b) for a, b in zip(one[2], other[2], strict=True))
    )


def _near(one: Tensor, other: Tensor, largest: float | None = None) -> bool:
    if one.numel() == 0 or not one.is_floating_point():
        return torch.equal(one, other)
    tolerance = torch.finfo(one.dtype).eps ** 0.4  # 2e-3 in float32: beyond the rounding of other sums
    scale = one.nan_to_num().abs().max().item() if largest is None else largest
    return torch.allclose(one, other, rtol=0, atol=tolerance * max(scale, torch.finfo(one.dtype).tiny), equal_nan=True)


def _plainly_dense(module: nn.Module) -> bool:
    """Whether a network is what `dense_steps` says, with no weights and no operations beside those layers'."""
    steps = dense_steps(module)
    if steps is None or not plainly_called(module):
        return False
    covered = {f"{name}.{own}" for name, layer in steps for own, p in layer._parameters.items() if p is not None}
    return covered == {name for name, _ in module.named_parameters()} and not any(True for _ in module.buffers())


def _on(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.detach().to(device) for name, tensor in tensors.items()}
