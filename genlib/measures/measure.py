"""What a measure is, and the registry of all."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from jaxtyping import Float
from torch import Tensor

from genlib.estimates import Estimate
from genlib.measures.searches import Shared

__all__ = [
    "CATALOGUE",
    "DINH_LAYERS",
    "DINH_UNITS",
    "INVARIANCES",
    "LAYERS",
    "UNITS",
    "Measure",
    "register_measure",
    "registry",
]

LAYERS, DINH_LAYERS, DINH_UNITS, UNITS = "layer scaling", "Dinh per layer", "Dinh per neuron", "permutation"
INVARIANCES = (LAYERS, DINH_LAYERS, DINH_UNITS, UNITS)
NEEDS = ("data", "labels", "classes", "layers", "margin", "initial", "first_epoch", "run")


@dataclass(frozen=True)
class Measure:
    """One measure: what it is called and written, who proposed it, what it needs, costs, and is blind to.

    `needs`: `data`; `labels` with them; `classes`, labels that are; `layers`, those of known types; `margin`, a
    positive 10th (or 5th) percentile of the margins; `initial`, the weights at the start; `first_epoch`, those after an
    epoch; `run`, the history of the training. `passes` is the cost in forward passes over the data, of ten classes,
    when nothing is shared; `cost` tells that of a network. `invariances`: what may be done to the network alone, its
    start left as it is, without a change: every layer times a constant; one layer times a constant and the next divided
    by it; the same for single neurons; the neurons of a layer in another order. `compute` takes what the measures of
    one network share: the quantities of `measures/quantities.py`, the searches of `searches.py`.
    """

    name: str
    symbol: str
    formula: str
    citation: str
    needs: tuple[str, ...]
    passes: float | int
    invariances: tuple[str, ...]
    compute: Callable[[Shared], Estimate | Float[Tensor, ""]]

    @property
    def on_request(self) -> bool:
        """Whether `evaluate` computes it only when it is named, since it may take longer than all others together."""
        return getattr(self.passes, "on_request", False)

    def __post_init__(self):
        if unknown := set(self.needs) - set(NEEDS):
            raise ValueError(f"needs of {self.name} holds {sorted(unknown)}; choose among {', '.join(NEEDS)}")
        if unknown := set(self.invariances) - set(INVARIANCES):
            raise ValueError(f"invariances of {self.name} holds {sorted(unknown)}; choose among {INVARIANCES}")


registry: dict[str, Measure] = {}
CATALOGUE: Mapping[str, Measure] = MappingProxyType(registry)


def register_measure(measure: Measure) -> Measure:
    """Add a measure of one's own to the catalogue; `evaluate` then computes it with the others."""
    if measure.name in registry:
        raise ValueError(f"the catalogue has a measure {measure.name!r} already; give yours another name")
    registry[measure.name] = measure
    return measure
