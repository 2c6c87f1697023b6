"""How many directions of the weights do the data hold? Lau et al. (2023); a row of the catalogue.

Draws from the posterior around a trained network, and its local learning coefficient.
"""

from genlib.bayes.coefficient import LearningCoefficient, learning_coefficient

__all__ = ["LearningCoefficient", "learning_coefficient"]
