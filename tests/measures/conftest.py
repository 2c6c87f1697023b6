"""A network that everything is measured of once."""

import pytest
from cases import WHOLE
from measures_cases import dense, inputs_of, own_labels

from genlib.measures import evaluate


@pytest.fixture(scope="session")
def measured():
    """A network, its start, data, and the table of all that is drawn from no generator."""
    network, initial = dense((5, 6, 4, 3)), dense((5, 6, 4, 3), seed=9)
    inputs = inputs_of(network)
    labels = own_labels(network, inputs)
    return (
        network,
        initial,
        inputs,
        labels,
        evaluate(network, (inputs, labels), initial=initial, first_epoch=initial, names=WHOLE),
    )
