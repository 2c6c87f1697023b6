"""What the costly quantities cost that measures share, before they are computed: forward passes, and memory."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from genlib.curvature import batch_passes
from genlib.measures.criteria import GRAM_ROWS, GRAM_SAMPLES
from genlib.measures.measure import Measure
from genlib.sharpness.sigma import STEPS

__all__ = ["PARTS", "Part", "Passes", "Room", "Size", "parts", "times", "unseen"]

_BLOCK = 64 * 2**20  # bytes of the Jacobians, or the gradients, of as many samples as lie side by side
_MAX_PRODUCTS = 2000  # with the Hessian, of Lanczos' method


@dataclass(frozen=True)
class Size:
    """What a cost hangs on; the defaults are those of the numbers in the catalogue.

    `varied`: whether the inputs can be, as indices can't. `piecewise`: whether the network is known to be piecewise
    linear. `k`: eigenvalues. `numbers`: of a sample. `exact_trace`: the passes of `curvature.exact_trace_passes`, None
    where the trace takes random vectors. `gram`: those of `criteria.gram_passes`.
    """

    samples: int = 1024
    classes: int = 10
    parameters: int = 10_000
    chunks: int = 1
    varied: bool = True
    piecewise: bool = True
    k: int = 10
    exact_trace: float | None = 11.0
    numbers: int = 25
    gram: float = 12.0 * GRAM_SAMPLES / 1024

    # What searches took as a rule in 30 small networks, half of them piecewise linear.

    @property
    def eigenpairs(self) -> int:
        """Products with the Hessian until Lanczos' method has k eigenvalues: of ten 18 to 29."""
        rule = 8 + 1.3 * self.k if self.k <= 10 else 2.6 * self.k
        return min(round(rule if self.piecewise else 1.15 * rule), self.parameters)

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
class Room:
    """What a peak of memory hangs on: the bytes of all weights, and of what a forward pass of a chunk writes.

    `of_sample`, what it writes for one; `row`, the bytes of an input; `draws`, how many weights share a pass.
    """

    weights: int
    of_sample: float = 0.0
    row: int = 0
    samples: int = 0
    chunk: int = 0
    classes: int = 0
    draws: int = 1
    k: int = 10

    @property
    def written(self) -> float:
        return self.chunk * self.of_sample

    @property
    def jacobians(self) -> int:
        """Of a chunk, of logits and probabilities."""
        return 2 * min(_BLOCK, self.chunk * self.classes * self.row)

    @property
    def paths(self) -> float:
        """The points of the ellipses that are made together, with what is written of those that pass together."""
        points = 256 * min(-(-self.samples // 64), max(1, self.chunk // 256, min(8, 2**16 // max(1, self.row))))
        return 2 * points * self.row + min(points, 2 * 2048) * self.of_sample

    @property
    def gram(self) -> float:
        """A Gram matrix and its factors in float64, the gradients of its rows in one layer, and all cotangents."""
        count = min(self.samples, GRAM_SAMPLES, GRAM_ROWS // max(1, self.classes))
        rows = count * self.classes
        return 40 * rows**2 + 4 * rows * self.weights + 4 * rows * self.of_sample

    @property
    def gradients(self) -> int:
        """Of as many samples as lie side by side."""
        return min(_BLOCK, self.chunk * self.weights)


@dataclass(frozen=True)
class Part:
    """A quantity of `Shared`: its forward passes as a rule and at most, and the peak of its memory in bytes.

    A part that takes no passes is refused. `kept`: as many times the parameters stay until the table is done.
    `on_request`: rows that take it are computed only when named.
    """

    passes: Callable[[Size], float]
    peak: Callable[[Room], float]
    at_most: Callable[[Size], float] | None = None
    kept: int = 0
    on_request: bool = False


def times(parameters: int, activations: int) -> Callable[[Room], float]:
    """So many times the parameters and what a chunk writes, by the bounds to which the tests hold the kernels."""
    return lambda room: parameters * room.weights + activations * room.written


def _search() -> Part:
    return Part(
        lambda size: size.sigma,
        lambda room: times(4, 1)(room) + (room.draws - 1) * (room.weights + room.written),
        lambda size: 5.0 + 12 * STEPS,
    )


def _ascents() -> Part:
    return Part(lambda size: 4 + 58 * size.radii, times(8, 2), lambda size: 4.0 + 58 * STEPS)


def _variance() -> Part:
    return Part(lambda size: 3, lambda room: times(4, 4)(room) + 3 * room.gradients)


PARTS = {
    "logits": Part(lambda size: 1, times(2, 1)),
    "input_margins": Part(lambda size: 2 * size.varied, times(4, 2)),
    "jacobian_norms": Part(
        lambda size: (1 + size.classes) * size.varied, lambda room: times(3, 3)(room) + room.jacobians
    ),
    "transitions": Part(
        lambda size: -(-size.samples // 64) * 256 / size.samples * (size.varied and size.piecewise),
        lambda room: times(2, 1)(room) + room.paths,
    ),
    **dict.fromkeys(("initial_logits", "last_features"), Part(lambda size: 1, times(3, 1))),
    "mixup": Part(lambda size: size.varied, lambda room: times(2, 1)(room) + 4 * room.samples * room.row),
    "local_complexity": Part(
        lambda size: (
            2
            * min(25, size.numbers)
            * (min(64, size.samples) + min(16, size.samples))
            / size.samples
            * (size.varied and size.piecewise)
        ),
        lambda room: times(2, 1)(room) + 80 * 4 * 50 * room.row + 2048 * room.of_sample,
    ),
    "trace": Part(
        lambda size: size.products(min(30, size.parameters)) if size.exact_trace is None else size.exact_trace,
        times(34, 4),
    ),
    "eigenpairs": Part(
        lambda size: size.products(size.eigenpairs),
        lambda room: times(10 + 2 * room.k, 4)(room) + 60 * min(room.weights, 2**16),  # 2¹³ columns are combined
        lambda size: size.products(_MAX_PRODUCTS),
        kept=10,
        on_request=True,
    ),
    "hessian_norm": Part(lambda size: size.products(6), times(20, 4)),
    "gradient_variance": _variance(),
    "first_gradient_variance": _variance(),
    "fisher_rao": Part(lambda size: 5, times(8, 4)),
    "information_criteria": Part(lambda size: size.gram, lambda room: times(8, 4)(room) + room.gram, on_request=True),
    "batch_sharpness": Part(lambda size: batch_passes(size.samples), times(8, 4)),
    "relative_flatness": Part(lambda size: 1, times(3, 1)),
    "learning_coefficient": Part(  # 4 chains of 500 draws, after 32 steps as a rule, and 17 eigenvalues
        lambda size: 12 * 533 + 17 * size.products(5), times(36, 8), lambda size: math.inf, on_request=True
    ),
    **dict.fromkeys(("keskar", "worst_case"), Part(lambda size: 61, times(6, 2))),
    "sam": Part(lambda size: 4, times(4, 2)),
    **{f"sigma {kind}": _search() for kind in ("isotropic", "magnitude", "displacement")},
    "scaled_kl": _search(),
    **{f"radius {kind}": _ascents() for kind in ("isotropic", "magnitude", "displacement")},
}


class Passes(float):
    """A measure's forward passes, of ten classes and when nothing is shared, and the `parts` of `PARTS` they are of."""

    parts: tuple[str, ...]
    on_request: bool

    def __new__(cls, *parts: str) -> "Passes":
        found = super().__new__(cls, sum(PARTS[part].passes(Size()) for part in parts))
        found.parts = parts
        found.on_request = any(PARTS[part].on_request for part in parts)
        return found

    def __getnewargs__(self) -> tuple[str, ...]:
        return self.parts  # of a copy, and where it is unpickled


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
