"""The simplified normalizations of Wen, Li & Ma (2023)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["SimplifiedBatchNorm", "SimplifiedLayerNorm"]


class SimplifiedLayerNorm(nn.Module):
    """a / max(‖a‖₂, ε), a the units of one sample: no mean is subtracted, nothing is learned."""

    def __init__(self, epsilon: float):
        super().__init__()
        self.epsilon = epsilon

    def forward(self, a: Float[Tensor, "... units"]) -> Float[Tensor, "... units"]:
        # Not the norm itself, whose second derivative at zero is not a number.
        return a / a.square().sum(-1, keepdim=True).clamp_min(self.epsilon**2).sqrt()

    def extra_repr(self) -> str:
        return f"epsilon={self.epsilon}"


class SimplifiedBatchNorm(nn.Module):
    """γ_j a_j(x) / ((1/n) Σ_i a_j(x_i)²)^½, a = `hidden` and x_i the `training_inputs`; γ is `weight`.

    No mean is subtracted, and the scale is a function of the weights, not of the batch: gradients flow through it.
    A unit that is silent on all training inputs is silent everywhere. Cost: `hidden` runs over the training inputs too.
    """

    def __init__(self, hidden: nn.Module, units: int, training_inputs: Float[Tensor, "n inputs"]):
        super().__init__()
        self.hidden = hidden
        self.weight = nn.Parameter(torch.ones(units))
        self.register_buffer("training_inputs", training_inputs)

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... units"]:
        mean_square = self.hidden(self.training_inputs).square().mean(0)
        return self.weight * self.hidden(x) / mean_square.masked_fill(mean_square == 0, torch.inf).sqrt()
