"""What measures of recent years ask of one network: of its outputs, its features, its spectra, and of its training."""

import torch
from jaxtyping import Float
from torch import Tensor

from genlib import features, norms, pac_bayes, sensitivity
from genlib.estimates import Estimate
from genlib.measures.once import quantity
from genlib.network.losses import logits_of_classes
from genlib.network.objective import Objective, stand_ins

__all__ = ["FunctionQuantities"]

_NEIGHBOURHOODS, _AGAIN = 64, 16  # samples around which pieces are counted, and how many of them twice


class FunctionQuantities:
    """Of a network with data and `logits`, a start, a run, and a `sigma` of the noise that it bears."""

    @property
    def confidence(self) -> Float[Tensor, ""]:
        """1 - p of the likeliest class, on average, as the sum of the others: p may be 1 to the last digit."""
        self.require_classes()
        p = logits_of_classes(self.logits).softmax(-1)
        return p.scatter(-1, p.argmax(-1, keepdim=True), 0).double().sum(-1).mean()

    @quantity
    def initial_logits(self) -> Float[Tensor, "samples classes"]:
        inputs = self.unlabelled.inputs
        found = Objective.of(self.initial, inputs, stand_ins(inputs), **self._at_once).logits()
        self.passes += 1
        return found

    @property
    def function_distance(self) -> Float[Tensor, ""]:
        self.require_classes()
        return pac_bayes.kl_of_logits(self.logits, self.initial_logits)

    @quantity
    def last_features(self) -> Float[Tensor, "samples features"]:
        inputs = self.unlabelled.inputs
        self.passes += 1  # before it is refused, too
        return features.last_features(self.network, inputs, **self._at_once)

    @property
    def feature_rank(self) -> Float[Tensor, ""]:
        return features.effective_rank(self.last_features)

    @property
    def class_separation(self) -> Float[Tensor, ""]:
        labels = self.labels
        return features.class_separation(self.last_features, labels)

    @quantity
    def mixup(self) -> Estimate:
        labels = self.labels
        found = sensitivity.mixup_error(
            self.network, self._varied, labels, generator=self._generator(), **self._at_once
        )
        self.passes += 1
        return found

    @quantity
    def local_complexity(self) -> Estimate:
        """Units that change piece near a sample, on average over 64 of them; 16 a second time, for the directions."""
        inputs, generator = self._varied, self._generator()
        chosen = torch.randperm(self.samples, generator=generator, device=self._device)[:_NEIGHBOURHOODS]
        near = inputs[chosen.to(inputs.device)]
        radius, twice = sensitivity.typical_radius(near), near[:_AGAIN]
        found = sensitivity.local_complexity(
            self.network, torch.cat([near, twice]), radius=radius, generator=generator, **self._at_once
        ).double()
        first, again = found.split([len(near), len(twice)])
        self.passes += 2 * min(25, near[0].numel()) * len(found) / self.samples
        share, of_directions = len(near) / self.samples, (first[: len(twice)] - again).square().mean() / 2
        variance = ((1 - share) * first.var() + share * of_directions) / len(near)
        return Estimate(first.mean(), variance.sqrt(), 0.0)

    @property
    def training_area(self) -> Float[Tensor, ""]:
        """The area under the training loss over steps: trapezoids between checks, before the first a rectangle."""
        steps, losses = (self.run.history[name].to_numpy(float) for name in ("step", "loss"))
        area = steps[0] * losses[0] + ((losses[1:] + losses[:-1]) / 2 * (steps[1:] - steps[:-1])).sum()
        if not abs(area) < float("inf"):
            raise ValueError("run: its training loss is not finite at all checks; measure a run that did not diverge")
        return self.number(area)

    @property
    def spectral_alpha(self) -> Estimate:
        """The mean over the layers of the exponents of their tails."""
        found = norms.tail_exponents(self.network, input_shape=self.input_shape, exclude=self.unknown)
        values, errors = (torch.stack([getattr(tail, field) for tail in found.values()])
                          for field in ("value", "standard_error"))  # fmt: skip
        return Estimate(values.mean(), torch.linalg.vector_norm(errors) / len(errors), 0.0)

    @property
    def log_lipschitz(self) -> Float[Tensor, ""]:
        return norms.log_lipschitz_bound(self.network)

    @property
    def rescaled_kl(self) -> Estimate:
        """At the deviation of `flatness`, with the error that it brings."""
        sigma = self.sigma("isotropic")

        def least(std: Tensor) -> Float[Tensor, ""]:
            return pac_bayes.rescaled_kl(self._moved, std)

        value = least(sigma.value)
        return Estimate(value, (least(sigma.value + sigma.standard_error) - value).abs(), 0.0)
