"""The catalogue: every measure of the book under one name, larger where it predicts a larger gap."""

from genlib.measures.evaluation import evaluate
from genlib.measures.measure import CATALOGUE, INVARIANCES, Measure, register_measure

__all__ = ["CATALOGUE", "INVARIANCES", "Measure", "evaluate", "register_measure"]
