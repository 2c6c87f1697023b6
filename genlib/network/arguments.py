"""Forward passes that take several tensors, or one by its name: looked up by the number of the sample."""

import inspect
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["Arguments", "arguments_of", "parameters_of_forward"]


@dataclass(frozen=True)
class Arguments:
    """What a forward pass takes: tensors [samples, …] by place and by name.

    The inputs are the numbers of the samples then, one tensor, which is split, stacked and mapped over as any other;
    where the module is called, the numbers are replaced by what they stand for.
    """

    args: tuple
    kwargs: dict

    def of(self, samples: Int[Tensor, " n"], params: dict[str, Tensor]) -> tuple[tuple, dict]:
        """Those of these samples, in the precision of the parameters."""
        dtype = next((w.dtype for w in params.values() if w.is_floating_point()), None)

        def looked_up(tensor: Tensor) -> Tensor:
            found = tensor[samples]
            return found.to(dtype) if found.is_floating_point() else found

        return tree_map(looked_up, self.args), tree_map(looked_up, self.kwargs)

    @property
    def numbers(self) -> int:
        """How many there are of a sample."""
        return sum(leaf[0].numel() for leaf in tree_leaves((self.args, self.kwargs)))


def arguments_of(module: nn.Module, inputs: tuple | dict, axes: int = 1) -> tuple[Tensor, Arguments | None]:
    """The inputs as one tensor, and what to look up by it; of one tensor that forward takes first, itself and nothing.

    `axes` are in front of a sample: [samples], or [models, samples]. Tensors of other numbers of samples: ValueError.
    """
    args, kwargs = (inputs, {}) if isinstance(inputs, tuple) else ((), inputs)
    if (alone := _taken_first(module, args, kwargs)) is not None:
        return alone, None
    first, *more = tree_leaves((args, kwargs))
    if odd := [leaf for leaf in more if leaf.shape[:axes] != first.shape[:axes]]:
        raise ValueError(
            f"data has inputs of the shapes {tuple(first.shape)} and {tuple(odd[0].shape)}; give each a row a sample, "
            "and leave what all samples share to the network, as a buffer"
        )
    numbers = torch.arange(first.shape[:axes].numel(), device=first.device).view(first.shape[:axes])
    return numbers, Arguments(*tree_map(lambda leaf: leaf.detach().flatten(0, axes - 1), (args, kwargs)))


def _taken_first(module: nn.Module, args: tuple, kwargs: dict) -> Tensor | None:
    """The one tensor that is all there is, where it comes first, or has a name of the data's own."""
    takes = parameters_of_forward(module)
    first = next((p.name for p in takes if p.kind <= p.POSITIONAL_OR_KEYWORD), None)
    [value], name = [*args, *kwargs.values()][:1], next(iter(kwargs), first)
    by_name = any(p.name == name or p.kind is p.VAR_KEYWORD for p in takes)
    one = isinstance(value, Tensor) and len(args) + len(kwargs) == 1
    return value if one and (name == first or not by_name) else None


def parameters_of_forward(module: nn.Module) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):  # of a scripted module
        return []
