"""How far training has taken what a network says, in the space of its outputs."""

from jaxtyping import Float
from torch import Tensor, nn

from genlib.network import Network
from genlib.network.losses import logits_of_classes
from genlib.network.objective import Objective, require_finite, stand_ins
from genlib.network.precision import full_precision

__all__ = ["function_distance", "kl_of_logits"]


@full_precision()
def function_distance(
    network: nn.Module | Network, initial: nn.Module | Network, inputs: Tensor, *, chunk_size: int | None = None
) -> Float[Tensor, "*models"]:
    """(1/m) Σ_j KL(p_w(x_j) ‖ p_{w⁰}(x_j)), p the class probabilities of the network and of its start; nats, float64.

    Cost: two forward passes. ValueError: as `sharpness.Objective.of`; other numbers of outputs, outputs that aren't
    finite.
    """
    both = (Objective.of(Network.of(one, name), inputs, stand_ins(inputs), chunk_size=chunk_size).logits()
            for name, one in (("network", network), ("initial", initial)))  # fmt: skip
    return kl_of_logits(*both)


def kl_of_logits(
    logits: Float[Tensor, "*models samples outputs"], others: Float[Tensor, "*models samples others"]
) -> Float[Tensor, "*models"]:
    """The same where both logits are at hand already."""
    if logits.shape != others.shape:
        raise ValueError(
            f"initial gives outputs of the shape {tuple(others.shape)}, network {tuple(logits.shape)}; give the "
            "network's own start"
        )
    log_p, log_q = (logits_of_classes(require_finite(z, "output")).double().log_softmax(-1) for z in (logits, others))
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean(-1)
