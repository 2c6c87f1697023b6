"""The catalogue: every measure of the book under one name, larger where it predicts a larger gap."""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader

from genlib._noise import FLOOR
from genlib._precision import full_precision
from genlib._quantities import total
from genlib._shared import Shared
from genlib.data import Dataset
from genlib.estimates import Estimate
from genlib.network import Network, Params
from genlib.norms import log_frobenius_complexity_of, log_spectral_complexity_of
from genlib.train import Run

__all__ = ["CATALOGUE", "Measure", "evaluate", "register_measure"]

LAYERS, DINH_LAYERS, DINH_UNITS, UNITS = "layer scaling", "Dinh per layer", "Dinh per neuron", "permutation"
INVARIANCES = (LAYERS, DINH_LAYERS, DINH_UNITS, UNITS)
NEEDS = ("data", "layers", "margin", "initial", "first_epoch", "run")


@dataclass(frozen=True)
class Measure:
    """One measure: what it is called and written, who proposed it, what it needs, costs, and is blind to.

    `needs`: `data`; `layers`, all of known types; `margin`, a positive 10th (or 5th) percentile of the margins;
    `initial`, the weights at the start; `first_epoch`, those after an epoch; `run`, the history of the training.
    `passes` is the cost in forward passes over the data when nothing is shared. `invariances`: what may be done to the
    network alone, its start left as it is, without a change: every layer times a constant; one layer times a constant
    and the next divided by it; the same for single neurons; the neurons of a layer in another order. `compute` takes
    what the measures of one network share (`network`, `objective`, `frobenius`, …: see `genlib._shared.Shared`).
    """

    name: str
    symbol: str
    formula: str
    citation: str
    needs: tuple[str, ...]
    passes: float | int
    invariances: tuple[str, ...]
    compute: Callable[[Shared], Estimate | Float[Tensor, ""]]

    def __post_init__(self):
        if unknown := set(self.needs) - set(NEEDS):
            raise ValueError(f"needs of {self.name} holds {sorted(unknown)}; choose among {', '.join(NEEDS)}")
        if unknown := set(self.invariances) - set(INVARIANCES):
            raise ValueError(f"invariances of {self.name} holds {sorted(unknown)}; choose among {INVARIANCES}")


_catalogue: dict[str, Measure] = {}
CATALOGUE: Mapping[str, Measure] = MappingProxyType(_catalogue)


def register_measure(measure: Measure) -> Measure:
    """Add a measure of one's own to the catalogue; `evaluate` then computes it with the others."""
    if measure.name in _catalogue:
        raise ValueError(f"the catalogue has a measure {measure.name!r} already; give yours another name")
    _catalogue[measure.name] = measure
    return measure


@full_precision()
def evaluate(
    network: nn.Module | Network,
    data: Dataset | tuple[Tensor, Tensor] | DataLoader,
    *,
    initial: nn.Module | Network | None = None,
    first_epoch: nn.Module | Network | None = None,
    run: Run | Sequence[Run] | None = None,
    names: Iterable[str] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Measures of one network by name, all that apply unless `names` are given: one row each, in their order.

    `value`, larger where it predicts a larger gap; `standard_error`, 0 where the value is exact; `passes`, the forward
    passes over the data that the row added, for what several measures need is computed once; `reason`, why a measure
    does not apply, with no value. `data`: the training samples of a Dataset, inputs and labels, or a loader, which is
    read into memory. `initial`, `first_epoch`: the network before training (with a `run`, its start), and after an
    epoch. A stack, whose networks may have data of their own ([models, samples, …]) and a run each: an index level
    `network` in front. Small dense networks search together, so `passes` is then that of the longest search.
    ValueError: a name that isn't in the catalogue, data or a network that no measure could take.
    """
    measures = [_named(name) for name in (CATALOGUE if names is None else names)]
    inputs, labels = _tensors(data)
    network = Network.of(network)
    if network.size is None:
        others = {
            "initial": run.initial if initial is None and run is not None else initial,
            "first_epoch": first_epoch,
        }
        others = {name: None if other is None else Network.of(other) for name, other in others.items()}
        return _rows(Shared(network, inputs, labels, run=run, seed=seed, **others), measures)
    if run is not None and initial is None:
        initial = Network.stack([one.initial for one in run])
    for name, other in (("initial", initial), ("first_epoch", first_epoch)):
        if other is not None and (size := Network.of(other).size) != network.size:
            raise ValueError(f"{name} holds {size} networks, network {network.size}; give each network its own")
    if run is not None and len(run) != network.size:
        raise ValueError(f"run holds {len(run)} runs, network {network.size} networks; give each network its own")
    each = Shared.of_each(network, inputs, labels, initial=initial, first_epoch=first_epoch, run=run, seed=seed)
    return pd.concat({i: _rows(shared, measures) for i, shared in enumerate(each)}, names=["network"])


def _rows(shared: Shared, measures: list[Measure]) -> pd.DataFrame:
    rows, numbers = [], []
    for measure in measures:
        before = shared.passes
        found, reason = _measured(measure, shared)
        rows.append((measure.name, shared.passes - before, reason))
        numbers.append(torch.stack([found.value.double(), found.standard_error.double()]))
    table = pd.DataFrame(rows, columns=["measure", "passes", "reason"]).set_index("measure")
    values = torch.stack(numbers).tolist() if numbers else []  # the one read of all values
    table[["value", "standard_error"]] = np.array(values).reshape(-1, 2)
    if silent := table.index[table["value"].isna() & (table["reason"] == "")].tolist():
        raise FloatingPointError(f"{', '.join(silent)}: not a number, without a reason; please report it")
    return table[["value", "standard_error", "passes", "reason"]]


def _measured(measure: Measure, shared: Shared) -> tuple[Estimate, str]:
    nothing = shared.number(math.nan)
    try:
        found = measure.compute(shared)
    except ValueError as refusal:
        return Estimate(nothing, nothing, 0.0), str(refusal)
    return (found if isinstance(found, Estimate) else Estimate(found, torch.zeros_like(found), 0.0)), ""


def _named(name: str) -> Measure:
    if name not in CATALOGUE:
        near = difflib.get_close_matches(str(name), CATALOGUE, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "see measures.CATALOGUE"
        raise ValueError(f"names holds {name!r}, which is not in the catalogue; {hint}")
    return CATALOGUE[name]


def _tensors(data: Dataset | tuple[Tensor, Tensor] | DataLoader) -> tuple[Tensor, Tensor]:
    if isinstance(data, Dataset):
        if not isinstance(data.inputs, Tensor):
            raise ValueError("data are streamed from files; take as many samples as fit in memory first (subset)")
        return data.inputs, data.labels
    if isinstance(data, DataLoader):
        inputs, labels = zip(*data, strict=True)
        return torch.cat(inputs), torch.cat(labels)
    inputs, labels = data
    return inputs, labels


def _divided(log_value: Float[Tensor, ""], shared: Shared, percent: int = 10) -> Float[Tensor, ""]:
    """A logarithm of a squared norm less that of the squared margin."""
    return log_value - 2 * shared.log_margin(percent)


def _mean_of_layers(log_product: Float[Tensor, ""], shared: Shared) -> Float[Tensor, ""]:
    """d times the geometric mean over d layers."""
    return shared.depth * (log_product / shared.depth).exp()


def _isotropic(square: Float[Tensor, ""], sigma: Estimate, shared: Shared) -> Estimate:
    """‖v‖²/4σ² + ln(m/σ) + 10, with the error that σ brings."""
    value = square / (4 * sigma.value**2) + (shared.samples / sigma.value).log() + 10
    slope = square / (2 * sigma.value**3) + 1 / sigma.value
    return Estimate(value, slope * sigma.standard_error, 0.0)


def _magnitude(v: Params, sigma: Estimate, shared: Shared, c: float = 1.0) -> Estimate:
    """¼ Σ_i ln[(ε² + (σ² + c) ‖v‖²/ω) / (ε² + σ² v_i²)] + ln(m √c/σ) + 10, with the error that σ brings."""
    squares = [tensor.double().square() for tensor in v.values()]

    def bound(s: Tensor) -> Tensor:
        above = (FLOOR**2 + (s**2 + c) * total(squares) / shared.parameters).log() * shared.parameters
        below = total((FLOOR**2 + s**2 * square).log() for square in squares)
        return (above - below) / 4 + (shared.samples * c**0.5 / s).log() + 10

    value = bound(sigma.value.double())
    return Estimate(value, (bound(sigma.value.double() + sigma.standard_error) - value).abs(), 0.0)


def _sharp(square: Float[Tensor, ""], radius: Estimate, shared: Shared) -> Estimate:
    """‖v‖² ln 2ω/4α² + ln(m/σ) + 10: the noise of σ = α/(ln 2ω)^½ stays in the box."""
    sigma = radius.value / math.log(2 * shared.parameters) ** 0.5
    return _isotropic(square, Estimate(sigma, radius.standard_error, 0.0), shared)


def _sharp_magnitude(v: Params, radius: Estimate, shared: Shared) -> Estimate:
    """The same of a box's radius α: its noise, of σ = α/c^½, c = 4 ln(2ω/δ), stays in the box."""
    return _magnitude(v, radius, shared, c=4 * math.log(2 * shared.parameters / _DELTA))


def _spectral_factor(shared: Shared) -> Float[Tensor, ""]:
    """ln (84 B √h + √ln(4h²d))², B the longest input, h the widest layer."""
    longest = torch.linalg.vector_norm(shared.objective.inputs.flatten(1), dim=1).max().double()
    widest = max(shared.outputs)
    return 2 * (84 * longest * widest**0.5 + math.log(4 * widest**2 * shared.depth) ** 0.5).log()


def _inverse_square(sigma: Estimate) -> Estimate:
    return Estimate(sigma.value**-2, 2 * sigma.standard_error / sigma.value**3, 0.0)


_FUNCTION = (DINH_LAYERS, DINH_UNITS, UNITS)  # what leaves the function as it is
_PRODUCT = (DINH_LAYERS, UNITS)
_RATIO = (LAYERS, DINH_LAYERS, UNITS)
_DATA, _WEIGHTS, _BOTH = ("data",), ("layers",), ("data", "layers", "margin")
_SEARCH = 25.0  # forward passes of a search for a deviation, as a rule
_RADIUS = 60.0  # and for a radius
_LANCZOS = 180.0  # of ten eigenvalues
_DELTA = 0.05

# fmt: off
for _row in (
    ("parameters", r"\omega", r"\text{the number of parameters}",
        "neyshabur2017", (), 0, INVARIANCES, lambda s: s.number(s.parameters)),
    ("vc_dimension", r"\omega d\ln\omega", r"\omega d\ln\omega",
        "bartlett2019", _WEIGHTS, 0, INVARIANCES, lambda s: s.number(s.parameters).log() * s.parameters * s.depth),

    # The size of the weights
    ("l2", r"\|w\|_2", r"\big(\sum_i w_i^2\big)^{1/2}",
        "jiang2020", (), 0, (UNITS,), lambda s: s.square.sqrt()),
    ("l2_distance", r"\|w-w^0\|_2", r"\big(\sum_i (w_i-w_i^0)^2\big)^{1/2}",
        "jiang2020", ("initial",), 0, (), lambda s: s.square_distance.sqrt()),
    ("parameter_norm", r"\sum\|W_i\|_F^2", r"\sum_i\|W_i\|_F^2",
        "jiang2020", _WEIGHTS, 0, (UNITS,), lambda s: s.frobenius.square().sum()),
    ("frobenius_distance", r"\sum\|W_i-W_i^0\|_F^2", r"\sum_i\|W_i-W_i^0\|_F^2",
        "jiang2020", ("layers", "initial"), 0, (), lambda s: s.frobenius_distance.square().sum()),
    ("spectral_distance", r"\sum\|W_i-W_i^0\|_2^2", r"\sum_i\|W_i-W_i^0\|_2^2",
        "jiang2020", ("layers", "initial"), 0, (), lambda s: s.spectral_distance.square().sum()),
    ("product_frobenius", r"\prod\|W_i\|_F^2", r"\ln\prod_i\|W_i\|_F^2",
        "jiang2020", _WEIGHTS, 0, _PRODUCT, lambda s: 2 * s.log_frobenius),
    ("product_spectral", r"\prod\|W_i\|_2^2", r"\ln\prod_i\|W_i\|_2^2",
        "jiang2020", _WEIGHTS, 0, _PRODUCT, lambda s: 2 * s.log_spectral),
    ("sum_frobenius", r"d\big(\prod\|W_i\|_F^2\big)^{1/d}", r"d\big(\prod_i\|W_i\|_F^2\big)^{1/d}",
        "jiang2020", _WEIGHTS, 0, _PRODUCT, lambda s: _mean_of_layers(2 * s.log_frobenius, s)),
    ("sum_spectral", r"d\big(\prod\|W_i\|_2^2\big)^{1/d}", r"d\big(\prod_i\|W_i\|_2^2\big)^{1/d}",
        "jiang2020", _WEIGHTS, 0, _PRODUCT, lambda s: _mean_of_layers(2 * s.log_spectral, s)),
    ("stable_rank", r"\sum\|A_i\|_F^2/\|A_i\|_2^2", r"\sum_i\|A_i\|_F^2/\|A_i\|_2^2,\ A_i\text{ the map of layer }i",
        "neyshabur2018", _WEIGHTS, 0, _RATIO, lambda s: s.stable_ranks.sum()),
    ("path", r"\sum_p\prod w^2", r"\ln\sum_p\prod_{i\in p} w_i^2,\ p\text{ a path from input or bias to output}",
        "neyshabur2015", _WEIGHTS, 0, _FUNCTION, lambda s: s.log_path(2)),
    ("l1_path", r"\big(\sum_p\prod|w|\big)^2", r"\ln\big(\sum_p\prod_{i\in p}|w_i|\big)^2",
        "neyshabur2015", _WEIGHTS, 0, _FUNCTION, lambda s: 2 * s.log_path(1)),

    # The same against the margin
    ("inverse_margin", r"1/\gamma^2", r"1/\gamma^2,\ \gamma\text{ the 10th percentile of the margins}",
        "jiang2020", ("data", "margin"), 1, _FUNCTION, lambda s: (-2 * s.log_margin(10)).exp()),
    ("product_frobenius_margin", r"\prod\|W_i\|_F^2/\gamma^2", r"\ln\gamma^{-2}\prod_i\|W_i\|_F^2",
        "jiang2020", _BOTH, 1, _RATIO, lambda s: _divided(2 * s.log_frobenius, s)),
    ("product_spectral_margin", r"\prod\|W_i\|_2^2/\gamma^2", r"\ln\gamma^{-2}\prod_i\|W_i\|_2^2",
        "jiang2020", _BOTH, 1, _RATIO, lambda s: _divided(2 * s.log_spectral, s)),
    ("sum_frobenius_margin", r"d\big(\prod\|W_i\|_F^2/\gamma^2\big)^{1/d}",
        r"d\big(\gamma^{-2}\prod_i\|W_i\|_F^2\big)^{1/d}", "jiang2020", _BOTH, 1, _RATIO,
        lambda s: _mean_of_layers(_divided(2 * s.log_frobenius, s), s)),
    ("sum_spectral_margin", r"d\big(\prod\|W_i\|_2^2/\gamma^2\big)^{1/d}",
        r"d\big(\gamma^{-2}\prod_i\|W_i\|_2^2\big)^{1/d}", "jiang2020", _BOTH, 1, _RATIO,
        lambda s: _mean_of_layers(_divided(2 * s.log_spectral, s), s)),
    ("spectral_from_origin", r"\tfrac{\prod\|W_i\|_2^2}{\gamma^2}\sum\tfrac{\|W_i\|_F^2}{\|W_i\|_2^2}",
        r"\ln\gamma^{-2}\prod_i\|W_i\|_2^2\sum_i\|W_i\|_F^2/\|W_i\|_2^2", "neyshabur2018", _BOTH, 1, _RATIO,
        lambda s: _divided(2 * s.log_spectral, s) + (s.frobenius / s.spectral).square().sum().log()),
    ("spectral_from_start", r"\tfrac{\prod\|W_i\|_2^2}{\gamma^2}\sum\tfrac{\|W_i-W_i^0\|_F^2}{\|W_i\|_2^2}",
        r"\ln\gamma^{-2}\prod_i\|W_i\|_2^2\sum_i\|W_i-W_i^0\|_F^2/\|W_i\|_2^2", "jiang2020", (*_BOTH, "initial"), 1, (),
        lambda s: _divided(2 * s.log_spectral, s) + (s.frobenius_distance / s.spectral).square().sum().log()),
    ("spectral_origin", r"\mu_{\text{spec-orig}}",
        r"\ln\tfrac{(84B\sqrt h+\sqrt{\ln(4h^2d)})^2}{\gamma^2}\prod_i\|W_i\|_2^2\sum_i\|W_i\|_F^2/\|W_i\|_2^2",
        "jiang2020", _BOTH, 1, _RATIO, lambda s: CATALOGUE["spectral_from_origin"].compute(s) + _spectral_factor(s)),
    ("spectral_start", r"\mu_{\text{spec-init}}", r"\text{the same with }\|W_i-W_i^0\|_F^2",
        "jiang2020", (*_BOTH, "initial"), 1, (),
        lambda s: CATALOGUE["spectral_from_start"].compute(s) + _spectral_factor(s)),
    ("path_margin", r"\sum_p\prod w^2/\gamma^2", r"\ln\gamma^{-2}\sum_p\prod_{i\in p} w_i^2",
        "jiang2020", _BOTH, 1, INVARIANCES, lambda s: _divided(s.log_path(2), s)),
    ("l1_path_margin", r"\big(\sum_p\prod|w|\big)^2/\gamma^2", r"\ln\gamma^{-2}\big(\sum_p\prod_{i\in p}|w_i|\big)^2",
        "neyshabur2015", _BOTH, 1, INVARIANCES, lambda s: _divided(2 * s.log_path(1), s)),
    ("l1_max_margin", r"\prod\|W_i\|_{1,\infty}^2/\gamma^2", r"\ln\gamma^{-2}\prod_i\|W_i\|_{1,\infty}^2",
        "bartlett2002", _BOTH, 1, _RATIO, lambda s: _divided(2 * s.log_groups(1, math.inf), s)),
    ("l3_margin", r"\prod\|W_i\|_{3,1.5}^2/\gamma^2", r"\ln\gamma^{-2}\prod_i\|W_i\|_{3,1.5}^2",
        "neyshabur2015", _BOTH, 1, _RATIO, lambda s: _divided(2 * s.log_groups(3, 1.5), s)),
    ("neyshabur_l2", r"\mathcal C_{\ell_2}", r"\ln\gamma^{-2}\prod_i 4\|W_i\|_F^2,\ \gamma\text{ the 5th percentile}",
        "neyshabur2017", _BOTH, 1, _RATIO, lambda s: _divided(2 * s.log_frobenius + s.depth * math.log(4), s, 5)),
    ("neyshabur_l1_path", r"\mathcal C_{\ell_1\text{-path}}", r"\ln\gamma^{-2}\big(\sum_p\prod_{i\in p}2|w_i|\big)^2",
        "neyshabur2017", _BOTH, 1, INVARIANCES, lambda s: _divided(2 * s.log_path(1) + s.depth * math.log(4), s, 5)),
    ("neyshabur_l2_path", r"\mathcal C_{\ell_2\text{-path}}", r"\ln\gamma^{-2}\sum_p\prod_{i\in p}4h_iw_i^2",
        "neyshabur2017", _BOTH, 1, INVARIANCES,
        lambda s: _divided(s.log_path(2) + s.depth * math.log(4) + s.log_outputs, s, 5)),
    ("neyshabur_spectral", r"\mathcal C_{\text{spectral}}", r"\ln\gamma^{-2}\prod_i h_i\|W_i\|_2^2",
        "neyshabur2017", _BOTH, 1, _RATIO, lambda s: _divided(2 * s.log_spectral + s.log_outputs, s, 5)),
    ("spectral_complexity", r"R_W\|X\|_F/m\gamma",
        r"\ln\tfrac{\|X\|_F}{m\gamma}\prod_i\|W_i\|_2\big(\sum_i(\|W_i-W_i^0\|_{2,1}/\|W_i\|_2)^{2/3}\big)^{3/2}",
        "bartlett2017", (*_BOTH, "initial"), 1, (),
        lambda s: log_spectral_complexity_of(s.spectral, s.row_distance)
        + s.log_inputs - math.log(s.samples) - s.log_margin(10)),
    ("frobenius_complexity", r"R_F/\gamma\sqrt m",
        r"\ln\tfrac{d}{\gamma\sqrt m}\prod_i\|W_i\|_2\big(\sum_i h_i\|W_i-W_i^0\|_F^2/\|W_i\|_2^2\big)^{1/2}",
        "neyshabur2018", (*_BOTH, "initial"), 1, (),
        lambda s: log_frobenius_complexity_of(s.spectral, s.frobenius_distance, s.outputs)
        - math.log(s.samples) / 2 - s.log_margin(10)),

    # Outputs
    ("cross_entropy", r"\hat L", r"\tfrac1m\sum_j-\ln p(y_j|x_j)",
        "jiang2020", _DATA, 1, _FUNCTION, lambda s: s.cross_entropy),
    ("negative_entropy", r"-H(p)", r"\tfrac1m\sum_j\sum_k p(k|x_j)\ln p(k|x_j)",
        "jiang2020", _DATA, 1, _FUNCTION, lambda s: s.negative_entropy),

    ("input_margin", r"1/\gamma_x^2", r"1/\gamma_x^2,\ \gamma_x\text{ the 10th percentile of }"
        r"(f_y-f_k)/\|\nabla_x(f_y-f_k)\|_2,\ k\ne y\text{ the largest}",
        "elsayed2018", ("data", "margin"), 2, INVARIANCES, lambda s: s.percentile(s.input_margins) ** -2),

    # How it hangs on the inputs
    ("jacobian_norm", r"\|J\|_F", r"\tfrac1m\sum_j\|\partial p(x_j)/\partial x\|_F",
        "novak2018", _DATA, 11, _FUNCTION, lambda s: s.jacobian_norms["probabilities"].double().mean()),
    ("input_gradient", r"\|\nabla_xf\|^2", r"\tfrac1m\sum_j\|\partial f(x_j)/\partial x\|_F^2",
        "wu2017", _DATA, 11, _FUNCTION, lambda s: s.jacobian_norms["logits"].double().square().mean()),
    ("transitions", r"t", r"\text{changes of a linear piece along an ellipse through three samples, on average}",
        "novak2018", _DATA, 4, INVARIANCES, lambda s: s.transitions),

    # How the loss rises when the weights move
    ("hessian_trace", r"\operatorname{tr}H", r"\operatorname{tr}\nabla_w^2\hat L",
        "wen2023", _DATA, 11, (UNITS,), lambda s: s.trace),
    ("top_eigenvalue", r"\lambda_1", r"\lambda_1,\text{ the largest eigenvalue of }\nabla_w^2\hat L",
        "keskar2017", _DATA, _LANCZOS, (UNITS,), lambda s: s.eigenpairs.values[0]),
    ("hessian_norm", r"\|H\|_F", r"\|\nabla_w^2\hat L\|_F",
        "wu2017", _DATA, _LANCZOS, (UNITS,), lambda s: s.hessian_norm),
    ("log_volume", r"-\ln V", r"\sum_{i\le10}\ln\lambda_i",
        "wu2017", _DATA, _LANCZOS, (UNITS,), lambda s: s.log_eigenvalues.sum()),
    ("gradient_variance", r"\operatorname{Var}\nabla\ell", r"\tfrac1m\sum_j\|\nabla_w\ell_j-\nabla_w\hat L\|_2^2",
        "jiang2020", _DATA, 3, (UNITS,), lambda s: s.gradient_variance),
    ("first_gradient_variance", r"\operatorname{Var}\nabla\ell", r"\text{the same after the first epoch}",
        "jiang2020", ("data", "first_epoch"), 3, INVARIANCES, lambda s: s.first_gradient_variance),
    ("keskar_sharpness", r"\phi",
        r"100\,\frac{\max_\nu\hat L(w+\nu)-\hat L(w)}{1+\hat L(w)},\ |\nu_i|\le5\cdot10^{-4}(|w_i|+1)",
        "keskar2017", _DATA, 61, (UNITS,), lambda s: s.keskar().value),
    ("worst_case_sharpness", r"\Delta_{\max}",
        r"\max_\nu\hat L(w+\nu)-\hat L(w),\ |\nu_i|\le2\cdot10^{-3}(|w_i|+1)",
        "keskar2017", _DATA, 61, (UNITS,), lambda s: s.worst_case().value),
    ("sam_sharpness", r"\Delta_\rho", r"\hat L(w+\rho\nabla\hat L/\|\nabla\hat L\|_2)-\hat L(w),\ \rho=0.05",
        "foret2021", _DATA, 4, (UNITS,), lambda s: s.sam()),
    ("flatness", r"1/\sigma^2", r"1/\sigma^2,\ \mathbb E\hat R(w+\nu)-\hat R(w)=0.1,\ \nu_i\sim N(0,\sigma^2)",
        "jiang2020", _DATA, _SEARCH, (UNITS,), lambda s: _inverse_square(s.sigma("isotropic"))),
    ("flatness_magnitude", r"1/\sigma'^2", r"1/\sigma'^2,\ \text{as above, }\nu_i\sim N(0,\sigma'^2w_i^2+\epsilon^2)",
        "jiang2020", _DATA, _SEARCH, (UNITS,), lambda s: _inverse_square(s.sigma("magnitude"))),
    ("pac_bayes_origin", r"\|w\|^2/4\sigma^2", r"\|w\|_2^2/4\sigma^2+\ln(m/\sigma)+10",
        "jiang2020", _DATA, _SEARCH, (UNITS,), lambda s: _isotropic(s.square, s.sigma("isotropic"), s)),
    ("pac_bayes_start", r"\|w-w^0\|^2/4\sigma^2", r"\|w-w^0\|_2^2/4\sigma^2+\ln(m/\sigma)+10",
        "jiang2020", ("data", "initial"), _SEARCH, (),
        lambda s: _isotropic(s.square_distance, s.sigma("isotropic"), s)),
    ("pac_bayes_magnitude_origin", r"\mathrm{KL}_{\sigma'}(w)",
        r"\tfrac14\sum_i\ln\frac{\epsilon^2+(\sigma'^2+1)\|w\|_2^2/\omega}{\epsilon^2+\sigma'^2w_i^2}"
        r"+\ln\frac m{\sigma'}+10", "jiang2020", _DATA, _SEARCH, (UNITS,),
        lambda s: _magnitude(s.weights, s.sigma("magnitude"), s)),
    ("pac_bayes_magnitude_start", r"\mathrm{KL}_{\sigma'}(w-w^0)",
        r"\text{as above with }w-w^0\text{ for }w,\text{ in the noise too}",
        "jiang2020", ("data", "initial"), _SEARCH, (),
        lambda s: _magnitude(s.displacement, s.sigma("displacement"), s)),
    ("pac_bayes_scaled", r"\mathrm{KL}_\alpha",
        r"\tfrac12\sum_i(w_i/\sigma_i)^2,\ \sigma_i=\alpha(10|w_i|+1),\ \mathbb E\hat L(w+\nu)-\hat L(w)=\tfrac12",
        "neyshabur2017", _DATA, _SEARCH, (UNITS,), lambda s: s.scaled_kl),
    ("sharpness_flatness", r"1/\alpha^2", r"1/\alpha^2,\ \max_\nu\hat R(w+\nu)-\hat R(w)=0.1,\ |\nu_i|\le\alpha",
        "jiang2020", _DATA, _RADIUS, (UNITS,), lambda s: _inverse_square(s.radius("isotropic"))),
    ("sharpness_flatness_magnitude", r"1/\alpha'^2",
        r"1/\alpha'^2,\ \text{as above, }|\nu_i|\le(\alpha'^2w_i^2+\epsilon^2)^{1/2}",
        "jiang2020", _DATA, _RADIUS, (UNITS,), lambda s: _inverse_square(s.radius("magnitude"))),
    ("sharpness_origin", r"\|w\|^2/4\alpha^2", r"\|w\|_2^2\ln(2\omega)/4\alpha^2+\ln(m/\sigma)+10,"
        r"\ \sigma=\alpha/\sqrt{\ln2\omega}", "jiang2020", _DATA, _RADIUS, (UNITS,),
        lambda s: _sharp(s.square, s.radius("isotropic"), s)),
    ("sharpness_start", r"\|w-w^0\|^2/4\alpha^2",
        r"\|w-w^0\|_2^2\ln(2\omega)/4\alpha^2+\ln(m/\sigma)+10", "jiang2020", ("data", "initial"), _RADIUS, (),
        lambda s: _sharp(s.square_distance, s.radius("isotropic"), s)),
    ("sharpness_magnitude_origin", r"\mathrm{KL}_{\alpha'}(w)",
        r"\tfrac14\sum_i\ln\frac{\epsilon^2+(\alpha'^2+c)\|w\|_2^2/\omega}{\epsilon^2+\alpha'^2w_i^2}"
        r"+\ln\frac{m\sqrt c}{\alpha'}+10,\ c=4\ln\frac{2\omega}\delta", "jiang2020", _DATA, _RADIUS, (UNITS,),
        lambda s: _sharp_magnitude(s.weights, s.radius("magnitude"), s)),
    ("sharpness_magnitude_start", r"\mathrm{KL}_{\alpha'}(w-w^0)",
        r"\text{as above with }w-w^0\text{ for }w,\text{ in the box too}",
        "jiang2020", ("data", "initial"), _RADIUS, (),
        lambda s: _sharp_magnitude(s.displacement, s.radius("displacement"), s)),

    # How the training went
    ("steps", r"T", r"\text{steps of the optimizer}",
        "jiang2020", ("run",), 0, INVARIANCES, lambda s: s.number(s.run.steps)),
    ("first_steps", r"T_{0.1}", r"\text{steps until }\hat L\le0.1",
        "jiang2020", ("run",), 0, INVARIANCES, lambda s: s.number(s.steps_to(0.1))),
    ("last_steps", r"T_{0.01}-T_{0.1}", r"\text{steps from }\hat L\le0.1\text{ to }\hat L\le0.01",
        "jiang2020", ("run",), 0, INVARIANCES, lambda s: s.number(s.steps_to(0.01) - s.steps_to(0.1))),
):
    register_measure(Measure(*_row))
# fmt: on
