"""What `svae.encode` writes of particles: poses and classes for RELION and cryoSPARC, averages."""

from svae.particle_outputs.align import align
from svae.particle_outputs.averages import Averages, squared_ctf
from svae.particle_outputs.groups import Groups
from svae.particle_outputs.tables import Found, check_units, cs_table, model_classes, star_table
from svae.particle_outputs.write import ParticleOutputs

__all__ = [
    "Averages",
    "Found",
    "Groups",
    "ParticleOutputs",
    "align",
    "check_units",
    "cs_table",
    "model_classes",
    "squared_ctf",
    "star_table",
]
