"""Which numbers might predict generalization? Compared in chapter 7, "Predicting generalization".

The catalogue: every measure of the book under one name, larger where it predicts a larger gap, and the table of all
of them for one network.
"""

from genlib.measures.by_layer import layers
from genlib.measures.costs import cost
from genlib.measures.evaluation import evaluate
from genlib.measures.measure import CATALOGUE, INVARIANCES, Measure, register_measure

__all__ = ["CATALOGUE", "INVARIANCES", "Measure", "cost", "evaluate", "layers", "register_measure"]
