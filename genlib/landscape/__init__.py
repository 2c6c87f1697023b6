"""What does the loss look like away from a network? Explained in chapter 5, "Basins of attraction".

The loss on lines and planes through several networks, on random planes, and how far a basin goes.
"""

from genlib.landscape.basins import BasinRadius, basin_radius
from genlib.landscape.grids import Surface
from genlib.landscape.interpolation import Line, line, plane
from genlib.landscape.slices import filter_normalized_directions, surface

__all__ = ["BasinRadius", "Line", "Surface", "basin_radius", "filter_normalized_directions", "line", "plane", "surface"]
