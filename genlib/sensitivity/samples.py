"""The look at inputs before they are varied, and how many of them pass at a time."""

from jaxtyping import Float
from torch import Tensor, nn

from genlib.network import Network, dense_steps
from genlib.network.objective import measurable, stand_ins

__all__ = ["at_once", "measurable_inputs"]


def measurable_inputs(
    network: nn.Module | Network, inputs: Tensor, chunk_size: int | None, what: str = "inputs"
) -> tuple[Network, Float[Tensor, "samples ..."]]:
    if not inputs.is_floating_point():
        raise ValueError(f"{what} is of {inputs.dtype}; sensitivity is about numbers that vary, so make them float")
    if inputs.dim() < 2 or inputs.numel() == 0:
        raise ValueError(f"{what} is empty, or of one axis alone; give at least one sample, [samples, …]")
    return measurable(network, inputs, stand_ins(inputs), chunk_size)


def at_once(network: Network, inputs: Float[Tensor, "samples ..."]) -> int:
    """The samples that pass at a time: of convolutions on a CPU so few that their activations stay in its cache."""
    if inputs.device.type != "cpu" or dense_steps(network.module) is not None:
        return 2048
    return max(32, min(2048, 2**17 // inputs[0].numel()))
