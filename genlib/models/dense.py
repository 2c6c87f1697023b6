"""Dense networks."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from genlib.models.initialization import (
    drawn_from,
    initialized,
    require_at_least,
    require_one_of,
    require_positive,
    require_share,
)
from genlib.network.normalizations import SimplifiedBatchNorm, SimplifiedLayerNorm

__all__ = ["mlp", "two_layer"]

ACTIVATIONS = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardtanh": nn.Hardtanh,
    "hardsigmoid": nn.Hardsigmoid,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
}
NORMALIZATIONS = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


def mlp(
    inputs: int,
    classes: int,
    *,
    width: int = 512,
    depth: int = 1,
    activation: str = "relu",
    normalization: str | None = None,
    dropout: float = 0.0,
    initialization: str = "default",
    init_scale: float = 1.0,
    bias: bool = True,
    seed: int = 0,
) -> nn.Sequential:
    """A dense network with `depth` hidden layers of `width` units; depth 0 is a linear model.

    A hidden layer is Linear, normalization (None, `batch`, `layer`), activation, dropout; images are flattened first.
    `activation`: relu, relu6, hardtanh, hardsigmoid, tanh, softplus. `initialization`: `default`, which is torch's,
    weights and biases uniform in ±1/√fan_in; `xavier` and `he`, normal with zero biases. `init_scale` multiplies
    the weights, not the biases. Inputs [samples, …] with `inputs` numbers a sample; logits [samples, classes].
    """
    require_at_least(1, inputs=inputs, classes=classes, width=width)
    require_at_least(0, depth=depth)
    require_one_of("activation", activation, ACTIVATIONS)
    if normalization is not None:
        require_one_of("normalization", normalization, NORMALIZATIONS)
    require_share("dropout", dropout)
    require_positive(init_scale=init_scale)
    with drawn_from(seed):
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in in [inputs, *[width] * (depth - 1)][:depth]:
            layers.append(nn.Linear(fan_in, width, bias=bias))
            if normalization is not None:
                layers.append(NORMALIZATIONS[normalization](width))
            layers.append(ACTIVATIONS[activation]())
            if dropout:
                layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear(width if depth else inputs, classes, bias=bias))
        return initialized(nn.Sequential(*layers), initialization, init_scale)


def two_layer(
    inputs: int,
    *,
    width: int = 500,
    depth: int = 1,
    bias: bool = True,
    normalization: str | None = None,
    activation: str = "relu",
    outputs: int = 1,
    epsilon: float = 0.01,
    training_inputs: Float[Tensor, "n d"] | None = None,
    first_layer_scale: float = 1.0,
    seed: int = 0,
) -> nn.Sequential:
    """The networks of Wen, Li & Ma (2023), without a bias at the output: W₂ relu(W₁x + b₁), or W₂ relu(W₁x).

    `normalization` of a = relu(W₁x + b₁), and then W₂: `layer`, a / max(‖a‖₂, ε) with `epsilon`; `batch`,
    γ_j a_j(x) / ((1/n) Σ_i a_j(x_i)²)^½ over `training_inputs` x_i, which it keeps. `depth` 2 has three layers, with
    biases in the first alone. `activation` as in `mlp`. `first_layer_scale` multiplies W₁ and b₁: 1/100 where the paper
    normalizes layers. Weights and biases are torch's default, for the paper names no law. With one output, logits
    [samples, 1], label 1 is where they are positive and 0 where they are negative.
    A Sequential: Linear, activation (together the `hidden` of SimplifiedBatchNorm), normalization, Linear.
    Normalization of more than one hidden layer, training inputs missing or of another size: ValueError.
    """
    require_at_least(1, inputs=inputs, width=width, depth=depth, outputs=outputs)
    require_one_of("activation", activation, ACTIVATIONS)
    require_positive(epsilon=epsilon, first_layer_scale=first_layer_scale)
    if normalization is not None:
        require_one_of("normalization", normalization, ("batch", "layer"))
        if depth > 1:
            raise ValueError(f"depth is {depth} with normalization {normalization!r}; it is defined for depth 1")
    if (normalization == "batch") != (training_inputs is not None):
        raise ValueError("training_inputs belong to normalization 'batch'; give both or neither")
    with drawn_from(seed):
        layers: list[nn.Module] = []
        for fan_in in [inputs, *[width] * (depth - 1)]:
            layers += [nn.Linear(fan_in, width, bias=bias and not layers), ACTIVATIONS[activation]()]
        with torch.no_grad():
            for parameter in layers[0].parameters():
                parameter.mul_(first_layer_scale)
        if normalization == "layer":
            layers.append(SimplifiedLayerNorm(epsilon))
        if normalization == "batch":
            if training_inputs.shape[1] != inputs:
                raise ValueError(f"training_inputs have {training_inputs.shape[1]} numbers each; inputs is {inputs}")
            kept = training_inputs.detach().to("cpu", torch.get_default_dtype(), copy=True)
            layers = [SimplifiedBatchNorm(nn.Sequential(*layers), width, kept)]
        return nn.Sequential(*layers, nn.Linear(width, outputs, bias=False))
