"""The learning coefficient against devinterp's SGLD, in time and in time to one standard error."""

import contextlib
import io
import os
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from networks import MLP, digits, trained_mlp
from timing import Row, medians
from torch import Tensor, nn

from genlib import data, models
from genlib.bayes import LearningCoefficient, learning_coefficient
from genlib.train import Stop, fit

__all__ = ["rows"]

STEP = 0.5  # of 1/κ, κ the largest curvature that our chains saw: at 1/κ SGLD's coefficient is 5 % too large, at 1/4κ
# its chains have not forgotten their start after 250 steps; their variance is 2.5, 8 and 17 times ours


def rows() -> list[Row]:
    """All rows of this file; none, and said so, where devinterp is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its imports
            os.environ["TQDM_DISABLE"] = "1"
            import devinterp.slt.llc  # noqa: F401
    except ImportError:
        print("devinterp is not installed: no rows against it")
        return []
    dataset = data.load("mnist1d", train=500)
    small = fit(models.mlp(40, 10, width=64, depth=2), dataset, lr=0.05, batch_size=64, stop=Stop(0.01, epochs=2000))
    chosen = digits(1000)
    return [
        _row(small.module, dataset.inputs, dataset.labels, "MLP 40-64-64-10", 500, 12.0),
        _row(trained_mlp(), chosen.inputs[:500], chosen.labels[:500], MLP, 250, 1.5),
    ]


def _row(network: nn.Module, inputs: Tensor, labels: Tensor, name: str, draws: int, at_least: float) -> Row:
    """Both at γ = 100 for the small network, and at our own γ for the other, whose weights are small."""
    localization = 100.0 if name != MLP else None
    found: list[LearningCoefficient] = []
    traces: list[Tensor] = []

    def ours() -> None:
        generator = torch.Generator(inputs.device).manual_seed(len(found))
        options = {"draws": draws, "localization": localization, "generator": generator}
        found.append(learning_coefficient(network, inputs, labels, **options))

    ours()
    theirs_run = _devinterp(network, inputs, labels, draws, found[0])
    repeats = 8 if name != MLP else 3
    theirs, own, once = medians(
        lambda: traces.append(theirs_run()), ours, torch.no_grad()(lambda: network(inputs)), repeats=repeats, warm_up=0
    )
    # A standard error from four chains is known to 40 %: that of theirs comes of the spread of all runs' chains.
    after = torch.cat([trace[:, draws // 2 :].mean(1) for trace in traces]) * found[0].inverse_temperature
    spread = after.var().item() / torch.cat([one.chains for one in found]).var().item()
    case = f"{name}, {len(labels)} samples, 4 chains of {draws} draws, equal standard error"
    baseline = f"devinterp, {theirs / own:.1f} times the time"
    limit = 3.0 * 4 * (draws + found[0].burn_in.item())
    return Row("learning_coefficient", case, baseline, theirs / own * spread, at_least, own / once, limit)


def _devinterp(
    network: nn.Module, inputs: Tensor, labels: Tensor, draws: int, found: LearningCoefficient
) -> Callable[[], Tensor]:
    """Its losses [chains, draws]; tokens are what it knows, so that a sequence of two says which sample it is."""
    from datasets import Dataset
    from devinterp.slt.llc import llc

    samples = Dataset.from_dict({"input_ids": [[i, i] for i in range(len(labels))]}).with_format("torch")

    def losses(module: nn.Module, tokens: Tensor) -> Tensor:
        chosen = tokens[:, 0]
        return F.cross_entropy(module(inputs[chosen]), labels[chosen], reduction="none")[:, None]

    def run() -> Tensor:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            table = llc(
                network,
                samples,
                {},
                lr=STEP * (found.step.item() / 0.7) ** 2,
                n_beta=found.inverse_temperature,
                loss_fn=losses,
                batch_size=len(labels),
                num_chains=4,
                num_draws=draws,
                localization=found.localization.item(),
                num_init_loss_batches=1,
                init_seed=int(torch.randint(2**31, ())),
            )
        return torch.as_tensor(table.loss_trace.values)

    return run
