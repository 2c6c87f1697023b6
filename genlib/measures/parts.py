"""What the costly quantities cost that measures share, before they are computed: forward passes, and memory."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from genlib.measures.measure import Measure
from genlib.sharpness.sigma import STEPS

__all__ = ["PARTS", "Part", "Passes", "Size", "parts", "unseen"]

_MAX_PRODUCTS = 2000  # with the Hessian, of Lanczos' method


@dataclass(frozen=True)
class Size:
    """What a cost hangs on; the defaults are those of the numbers in the catalogue.

    `piecewise`: whether the network is known to be piecewise linear. `exact_trace`: the passes of
    `curvature.exact_trace_passes`, None where the trace takes random vectors.
    """

    samples: int = 1024
    classes: int = 10
    parameters: int = 10_000
    chunks: int = 1
    piecewise: bool = True
    exact_trace: float | None = 11.0

    # What searches took as a rule in 30 small networks, half of them piecewise linear.

    @property
    def eigenpairs(self) -> int:
        """Products with the Hessian until Lanczos' method has ten eigenvalues: 19 to 29."""
        return min(21 if self.piecewise else 24, self.parameters)

    @property
    def sigma(self) -> float:
        """Passes of a search for a deviation: 15 to 41."""
        return 23.0 if self.piecewise else 27.0

    @property
    def radii(self) -> float:
        """Radii that a search for one tries: 1 to 7."""
        return 2.5 if self.piecewise else 3.0

    def products(self, count: float | int) -> float:
        """Those of so many products with the Hessian."""
        return 3.0 + 6 * count if self.chunks == 1 else 9.0 * count


@dataclass(frozen=True)
class Part:
    """A quantity of `Shared`: its forward passes as a rule and at most, and the peak of its memory.

    The memory is so many times the parameters, and so many times what a forward pass of one chunk writes. `kept`: as
    many times the parameters stay until the table is done. `of_moved_inputs`: not to be had of whole numbers;
    `of_jacobians` and `of_draws`: takes the Jacobians of a chunk, or several draws' weights, besides.
    """

    passes: Callable[[Size], float]
    parameters: int
    activations: int
    at_most: Callable[[Size], float] | None = None
    kept: int = 0
    of_moved_inputs: bool = False
    of_jacobians: bool = False
    of_draws: bool = False


def _search(most: float) -> Part:
    return Part(lambda size: size.sigma, 4, 1, lambda size: most, of_draws=True)


def _ascents() -> Part:
    return Part(lambda size: 4 + 58 * size.radii, 7, 2, lambda size: 4.0 + 58 * STEPS)


PARTS = {
    "logits": Part(lambda size: 1, 2, 1),
    "input_margins": Part(lambda size: 2, 3, 1, of_moved_inputs=True),
    "jacobian_norms": Part(lambda size: 1 + size.classes, 3, 3, of_moved_inputs=True, of_jacobians=True),
    "transitions": Part(
        lambda size: -(-size.samples // 64) * 256 / size.samples if size.piecewise else 0, 2, 1, of_moved_inputs=True
    ),
    "trace": Part(lambda size: size.products(30) if size.exact_trace is None else size.exact_trace, 24, 4),
    "eigenpairs": Part(
        lambda size: size.products(size.eigenpairs),
        30,
        4,
        lambda size: size.products(_MAX_PRODUCTS),
        kept=10,
    ),
    "hessian_norm": Part(lambda size: size.products(6), 20, 4),
    **dict.fromkeys(("gradient_variance", "first_gradient_variance"), Part(lambda size: 3, 4, 4)),
    "fisher_rao": Part(lambda size: 5, 8, 4),
    **dict.fromkeys(("keskar", "worst_case"), Part(lambda size: 61, 6, 2)),
    "sam": Part(lambda size: 4, 4, 2),
    **{f"sigma {kind}": _search(5.0 + 12 * STEPS) for kind in ("isotropic", "magnitude", "displacement")},
    "scaled_kl": _search(5.0 + 12 * STEPS),
    **{f"radius {kind}": _ascents() for kind in ("isotropic", "magnitude", "displacement")},
}


class Passes(float):
    """A measure's forward passes, of ten classes and when nothing is shared, and the `parts` of `PARTS` they are of."""

    parts: tuple[str, ...]

    def __new__(cls, *parts: str) -> "Passes":
        found = super().__new__(cls, sum(PARTS[part].passes(Size()) for part in parts))
        found.parts = parts
        return found


def parts(measure: Measure) -> list[Part]:
    """Those of a measure of the catalogue; of one's own none is known."""
    return [PARTS[name] for name in _names(measure)]


def unseen(measures: Iterable[Measure]) -> Iterator[tuple[Measure, list[Part]]]:
    """Each measure with its parts that none before it has asked for."""
    seen = set()
    for measure in measures:
        yield measure, [PARTS[name] for name in _names(measure) if name not in seen]
        seen.update(_names(measure))


def _names(measure: Measure) -> tuple[str, ...]:
    return measure.passes.parts if isinstance(measure.passes, Passes) else ()
