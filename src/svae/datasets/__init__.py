"""Data sets: one LightningDataModule each, over one shared base."""

from svae.datasets.base import ImageDataModule
from svae.datasets.digits import RotDigits
from svae.datasets.dsprites import DSprites
from svae.datasets.galaxy_zoo import GalaxyZoo
from svae.datasets.hinge import Hinge
from svae.datasets.images import Images
from svae.datasets.mnist import MNIST
from svae.datasets.particles import Particles
from svae.datasets.posed import PosedImages
from svae.datasets.published import EMPIAR10025, PublishedArrays
from svae.datasets.sprites import Sprites

__all__ = [
    "EMPIAR10025",
    "MNIST",
    "DSprites",
    "GalaxyZoo",
    "Hinge",
    "ImageDataModule",
    "Images",
    "Particles",
    "PosedImages",
    "PublishedArrays",
    "RotDigits",
    "Sprites",
]
