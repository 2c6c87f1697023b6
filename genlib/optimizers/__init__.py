"""Training that looks for flat minima. Explained in chapter 6, "Flatness counterexamples".

SAM, the mean of 1-SAM over a batch, and noise on the labels.
"""

from genlib.optimizers.one_sam import MeanSAM
from genlib.optimizers.recipes import SAM, Ascent, LabelNoise, OneSAM, Recipe, one_sam_gradient, project_first_layer
from genlib.optimizers.statistics import kept, unchanged

__all__ = [
    "SAM",
    "Ascent",
    "LabelNoise",
    "MeanSAM",
    "OneSAM",
    "Recipe",
    "kept",
    "one_sam_gradient",
    "project_first_layer",
    "unchanged",
]
