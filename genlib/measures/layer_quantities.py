"""What the measures of one network ask of its layers: their norms, shapes and distances from the start."""

import math

from jaxtyping import Float
from torch import Tensor

from genlib import norms
from genlib.measures.once import once, quantity
from genlib.network.parts import above

__all__ = ["LayerQuantities"]


class LayerQuantities:
    """The quantities of the layers that norms know, of a `network` with an `initial` one and an `input_shape`."""

    @quantity
    def unknown(self) -> dict[str, str]:
        """The parts that no norm of layers knows, and that are left out of all quantities of layers."""
        return norms.unknown_parts(self.network)

    @property
    def part(self) -> str:
        """Over which part of the network the quantities of layers are, if not over all of it."""
        if not self.unknown:
            return ""
        named = [f"{name} ({kind})" for name, kind in self.unknown.items()]
        more = [f"{len(named) - 3} more"] if len(named) > 3 else []
        *first, last = [*named[:3], *more]
        sizes = {name: w.numel() for name, w in self.network.params.items()}
        share = sum(size for name, size in sizes.items() if self.unknown.keys() & {*above(name), name})
        return (
            f"over part of the network, without {', '.join(first)}{' and ' * bool(first)}{last}, which no norm of "
            f"layers knows: {100 * share / sum(sizes.values()):.3g} % of its parameters"
        )

    @quantity
    def shapes(self) -> list[norms.LayerShape]:
        """Outputs, inputs and taps of each layer, of a convolution its channels and the places of its kernel."""
        return norms.layer_shapes(self.network, exclude=self.unknown)

    @property
    def depth(self) -> int:
        return len(self.shapes)

    @property
    def log_outputs(self) -> float:
        return sum(math.log(shape.outputs) for shape in self.shapes)

    @quantity
    def frobenius(self) -> Float[Tensor, " layers"]:
        return norms.frobenius_norms(self.network, exclude=self.unknown).double()

    @quantity
    def spectral(self) -> Float[Tensor, " layers"]:
        shape = self.input_shape
        return norms.require_nonzero(
            norms.spectral_norms(self.network, input_shape=shape, exclude=self.unknown).double()
        )

    @property
    def stable_ranks(self) -> Float[Tensor, " layers"]:
        spectral = self.spectral
        frobenius = norms.operator_frobenius_norms(self.network, input_shape=self.input_shape, exclude=self.unknown)
        return (frobenius / spectral).square()

    @property
    def log_frobenius(self) -> Float[Tensor, ""]:
        return norms.log_product(self.frobenius)

    @property
    def log_spectral(self) -> Float[Tensor, ""]:
        return norms.log_product(self.spectral)

    @once
    def log_groups(self, p: float | int, q: float | int) -> Float[Tensor, ""]:
        return norms.log_product(norms.group_norms(self.network, p, q, exclude=self.unknown))

    @once
    def log_path(self, p: int) -> Float[Tensor, ""]:
        return norms.log_path_norm(self.network, input_shape=self.input_shape, p=p)

    @quantity
    def frobenius_distance(self) -> Float[Tensor, " layers"]:
        return self._distances("frobenius")

    @quantity
    def row_distance(self) -> Float[Tensor, " layers"]:
        return self._distances((2, 1))

    @quantity
    def spectral_distance(self) -> Float[Tensor, " layers"]:
        return self._distances("spectral")

    def _distances(self, norm: str | tuple[int, int]) -> Float[Tensor, " layers"]:
        shape = self.input_shape if norm == "spectral" else None
        found = norms.distances(self.network, self.initial, norm=norm, input_shape=shape, exclude=self.unknown)
        return found.double()
