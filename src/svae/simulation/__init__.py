"""Images that are simulated from molecules."""

from svae.simulation.molecule import Molecule, between_structures, two_domains
from svae.simulation.projection import project, resolution_std

__all__ = ["Molecule", "between_structures", "project", "resolution_std", "two_domains"]
