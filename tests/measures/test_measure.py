"""Measures of one's own."""

import math

import pytest
import torch

from genlib.measures import CATALOGUE, Measure, evaluate, register_measure


def test_a_measure_of_ones_own(measured, monkeypatch):
    network, _, inputs, labels, _ = measured
    monkeypatch.setattr("genlib.measures.measure.registry", catalogue := dict(CATALOGUE))
    monkeypatch.setattr("genlib.measures.evaluation.CATALOGUE", catalogue)
    own = Measure("largest_weight", r"\max|w|", r"\max_i|w_i|", "mine", (), 0, ("permutation",),
                  lambda s: torch.stack([w.abs().max() for w in s.weights.values()]).max())  # fmt: skip
    register_measure(own)
    assert evaluate(network, (inputs, labels), names=["largest_weight"]).loc[
        "largest_weight", "value"
    ] == pytest.approx(max(p.abs().max().item() for p in network.parameters()))
    with pytest.raises(ValueError, match="already"):
        register_measure(own)


@pytest.mark.parametrize("field", ["needs", "invariances"])
def test_a_measure_with_an_unknown_word_is_refused(field):
    words = {"needs": (), "invariances": ()} | {field: ("luck",)}
    with pytest.raises(ValueError, match=f"{field} of odd holds .*luck"):
        Measure("odd", "", "", "mine", words["needs"], 0, words["invariances"], lambda s: s.square)


def test_a_measure_that_is_silently_no_number_is_our_fault(measured, monkeypatch):
    network, _, inputs, labels, _ = measured
    broken = Measure("broken", "", "", "mine", (), 0, (), lambda s: s.number(math.nan))
    monkeypatch.setattr("genlib.measures.evaluation.CATALOGUE", {"broken": broken})
    with pytest.raises(FloatingPointError, match="broken"):
        evaluate(network, (inputs, labels))
