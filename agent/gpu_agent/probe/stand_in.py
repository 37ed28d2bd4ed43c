"""The stand-in UUID of a GPU that was lost before the driver could identify it.

The NVML child, the parser of its answers and the health tracker recognize such a GPU by it. Nothing is
imported here: the child loads this module.
"""

UNIDENTIFIED = "unidentified-"
"""Begins a stand-in UUID; the GPU's index in the driver's list follows."""
