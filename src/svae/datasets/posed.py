"""Images of upright, centred objects, posed at random, with the truth in the batch."""

import math
from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import pad

from svae.checks import at_least, not_negative, one_of
from svae.datasets.base import Batch, ImageDataModule
from svae.geometry import pixel_size, transform_image
from svae.noise import Noise

__all__ = ["PosedImages", "RandomAngles"]


class RandomAngles:
    """The angles of poses.

    Arguments:
        theta_distribution: `normal` or `uniform` (over the whole circle).
        theta_std_deg: The standard deviation of a normal angle in degrees.
    """

    def __init__(self, theta_distribution: str, theta_std_deg: float) -> None:
        one_of("theta_distribution", theta_distribution, ("normal", "uniform"))
        self.uniform = theta_distribution == "uniform"
        self.std = math.radians(not_negative("theta_std_deg", theta_std_deg))
        #: Whether there is more than one.
        self.varied = self.uniform or self.std > 0

    def draw(self, noise: Noise) -> Tensor:
        """An angle in radians for each image, float64, with shape (B,)."""
        if self.uniform:
            return (noise.uniform("pose theta") * 2 - 1) * math.pi
        return noise.normal("pose theta") * self.std


class PosedImages(ImageDataModule):
    """Objects with labels, each put into one or more random poses.

    The poses are a function of the seed, the object and the copy; resampling is bilinear. A
    subclass reads the objects and says which of them belong to which split. Where poses vary, the
    test split also holds `untransformed` (N, C, H, W): the object of each image upright, centred
    and in the size it was read in, against which a model's own zero of the angle can be told.

    Arguments:
        image_size: The side of the square images in pixels; smaller objects get a black margin.
        theta_distribution: `normal` or `uniform` (over the whole circle).
        theta_std_deg: The standard deviation of a normal angle in degrees.
        shift_std_px: The standard deviation of the shift along each axis in pixels.
        scale_std: The standard deviation of the logarithm of the size, by which objects are
            resized before they are turned; 0.2 is about 20 %.
        train_copies: How many poses each object of the training split is shown in.
        eval_copies: The same for each object of the validation and test splits.
        batch_size: As in `ImageDataModule`.
        eval_batch_size: As in `ImageDataModule`.
        seed: As in `ImageDataModule`.
    """

    def __init__(
        self,
        image_size: int = 28,
        theta_distribution: str = "normal",
        theta_std_deg: float = 45.0,
        shift_std_px: float = 1.4,
        scale_std: float = 0.0,
        train_copies: int = 1,
        eval_copies: int = 1,
        batch_size: int = 100,
        eval_batch_size: int = 500,
        seed: int = 1,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed)
        self.image_size = at_least("image_size", image_size, 2)
        self.angles = RandomAngles(theta_distribution, theta_std_deg)
        self.shift_std = not_negative("shift_std_px", shift_std_px)
        self.shift_std *= pixel_size(image_size, image_size)
        self.scale_std = not_negative("scale_std", scale_std)
        self.train_copies = at_least("train_copies", train_copies, 1)
        self.eval_copies = at_least("eval_copies", eval_copies, 1)

    @abstractmethod
    def objects(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Upright objects (M, C, h, w) from 0 to 1, labels (M,), and the rows of each split."""

    def read(self) -> dict[str, Batch]:
        objects, labels, rows = self.objects()
        objects = self.on_canvas(objects)
        copies = {"train": self.train_copies, "val": self.eval_copies, "test": self.eval_copies}
        splits = {
            split: self._posed(objects[index], labels[index], index, copies[split], len(objects))
            for split, index in rows.items()
        }
        if self.angles.varied or self.shift_std or self.scale_std:
            upright = objects[rows["test"]]
            splits["test"]["untransformed"] = upright.repeat(self.eval_copies, 1, 1, 1)
        return splits

    def on_canvas(self, objects: Tensor) -> Tensor:
        """Objects (M, C, h, w) in the middle of square images, with black around them."""
        height, width = objects.shape[-2:]
        if self.image_size < max(height, width):
            raise ValueError(
                f"image_size: expected at least the {max(height, width)} pixels of an object, "
                f"got {self.image_size}"
            )
        top, left = (self.image_size - height) // 2, (self.image_size - width) // 2
        bottom, right = self.image_size - height - top, self.image_size - width - left
        return pad(objects, (left, right, top, bottom))

    def _posed(
        self, objects: Tensor, labels: Tensor, index: Tensor, copies: int, total: int
    ) -> Batch:
        """The copies of one split's objects, with an index of their own each."""
        parts: list[Batch] = []
        for copy in range(copies):
            noise = Noise(self.seed, copy, index)
            theta = self.angles.draw(noise)
            shift = noise.normal("pose shift", 2) * self.shift_std
            log_scale = noise.normal("pose scale") * self.scale_std
            part = {"label": labels, "index": index + copy * total}
            # A pose that nobody varied is no truth to compare with.
            if self.angles.varied:
                part["theta"] = theta.float()
            if self.shift_std:
                part["shift"] = shift.float()
            if self.scale_std:
                part["scale"] = log_scale.exp().float()
            image = objects
            if part.keys() & {"theta", "shift", "scale"}:
                # Rounding in the bilinear weights may leave [0, 1] by one part in ten million.
                image = transform_image(objects, theta, shift, log_scale).clamp(0, 1)
            part["image"] = image
            parts.append(part)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
