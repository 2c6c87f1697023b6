"""What the measures of one network ask of its curvature since 2020: criteria of information, of batches, of a layer."""

import torch
from jaxtyping import Float
from torch import Tensor

from genlib import curvature
from genlib.curvature import InformationCriteria
from genlib.estimates import Estimate
from genlib.measures.once import quantity
from genlib.network.losses import Loss
from genlib.network.objective import Objective

__all__ = ["GRAM_ROWS", "GRAM_SAMPLES", "Criteria", "gram_passes"]

GRAM_SAMPLES, GRAM_ROWS = 300, 3000  # at most; a row is one output of a sample


def _gram_samples(objective: Objective) -> int:
    return min(objective.samples, GRAM_SAMPLES, max(1, GRAM_ROWS // objective.outputs))


def gram_passes(objective: Objective, loss: Loss) -> float:
    """The forward passes over the data of `information_criteria`; none where it is refused."""
    if curvature.unknown_rows(objective, loss):
        return 0.0
    return (2 + objective.outputs) * _gram_samples(objective) / objective.samples


class Criteria:
    """The quantities of `Shared` of which there is a kernel in `curvature` that draws samples or looks at a layer."""

    @quantity
    def information_criteria(self) -> InformationCriteria:
        """Soft rank, TIC and evidence of 300 samples, or as many as have 3,000 outputs: drawn by the seed, if fewer."""
        network, inputs, labels = self._data
        count = _gram_samples(self.objective)
        if count < self.samples:
            chosen = (
                torch.randperm(self.samples, generator=self._generator(), device=self._device)[:count].sort().values
            )
            inputs, labels = inputs[chosen.to(inputs.device)], labels[chosen.to(labels.device)]
        found = curvature.information_criteria(network, inputs, labels, **self._options)
        self.passes += gram_passes(self.objective, self._loss)
        return found

    @quantity
    def batch_sharpness(self) -> Estimate:
        found = curvature.batch_sharpness(*self._data, **self._options, generator=self._generator())
        self.passes += found.passes
        return found

    @quantity
    def relative_flatness(self) -> Float[Tensor, ""]:
        self.require_classes()
        found = curvature.relative_flatness(self.network, self.unlabelled.inputs, **self._at_once).double()
        self.passes += 1
        return found

    @property
    def loss_curvature(self) -> Float[Tensor, ""]:
        """The mean trace of the Gauss-Newton part of the cross-entropy's Hessian in the inputs."""
        self.require_classes()
        return self.jacobian_norms["cross_entropy"].double().square().mean()
