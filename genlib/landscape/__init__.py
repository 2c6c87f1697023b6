"""The loss away from a network: on lines and planes through several, on random planes, and how far its basin goes."""

from genlib.landscape.basins import BasinRadius, basin_radius
from genlib.landscape.grids import Surface
from genlib.landscape.interpolation import Line, line, plane
from genlib.landscape.slices import filter_normalized_directions, surface

__all__ = ["BasinRadius", "Line", "Surface", "basin_radius", "filter_normalized_directions", "line", "plane", "surface"]
