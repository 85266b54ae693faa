"""Data sets: one LightningDataModule each, over one shared base."""

from svae.datasets.base import ImageDataModule
from svae.datasets.digits import RotDigits
from svae.datasets.dsprites import DSprites
from svae.datasets.images import Images
from svae.datasets.mnist import MNIST
from svae.datasets.posed import PosedImages
from svae.datasets.sprites import Sprites

__all__ = [
    "MNIST",
    "DSprites",
    "ImageDataModule",
    "Images",
    "PosedImages",
    "RotDigits",
    "Sprites",
]
