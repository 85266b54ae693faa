"""Squares, ellipses and hearts like those of dSprites, drawn here at any place, angle and size."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from svae.checks import at_least, not_negative, one_of, positive
from svae.datasets.base import Batch, ImageDataModule
from svae.datasets.posed import RandomAngles
from svae.geometry import pixel_grid, pixel_size, to_object_frame
from svae.noise import Noise

__all__ = ["SHAPES", "Shape", "Sprites", "draw_sprites"]

#: Lengths at scale 1, in units of the image's side. Sizes are those of dSprites, whose squares
#: cover 368 of 64x64 pixels, ellipses 288 with axes as 16 to 9, and hearts 225, 20 wide, 17 high.
SQUARE_SIDE = 0.3
ELLIPSE_SEMI_AXES = (0.2, 0.1125)
#: The discs of a heart: their radius, how far their centres are from the axis, and how far below
#: these the heart's centre of mass is.
DISC_RADIUS, DISC_OFF_AXIS, MASS_BELOW = 0.084, 0.07, 0.02607

#: How many images are drawn at once, for the memory of their coordinates.
CHUNK = 256


class Shape(NamedTuple):
    """A shape whose centre of mass is at the origin.

    Arguments:
        distance: From points (..., 2), in units of the image's side over the scale, to how far
            they are from the outline (...), negative inside.
        symmetry: The number of turns of a circle's equal parts that leave it the same.
    """

    distance: Callable[[Tensor], Tensor]
    symmetry: int


def _square(points: Tensor) -> Tensor:
    beyond = points.abs() - SQUARE_SIDE / 2
    return beyond.clamp(min=0).norm(dim=-1) + beyond.amax(-1).clamp(max=0)


def _ellipse(points: Tensor) -> Tensor:
    # To first order, which is enough within a pixel of the outline: f is 1 there, and the distance
    # is (f - 1) / |grad f|.
    semi_axes = points.new_tensor(ELLIPSE_SEMI_AXES)
    f = (points / semi_axes).norm(dim=-1)
    inverse_gradient = f / (points / semi_axes**2).norm(dim=-1).clamp(min=1e-6)
    # It is between the semi-axes everywhere; at the centre, it would be 0/0.
    return (f - 1) * inverse_gradient.clamp(min=min(ELLIPSE_SEMI_AXES))


def _heart(points: Tensor) -> Tensor:
    """Two discs that overlap, side by side, over a tip with a right angle."""
    r, a = DISC_RADIUS, DISC_OFF_AXIS
    x, y = points[..., 0].abs(), points[..., 1] - MASS_BELOW
    disc = torch.hypot(x - a, y) - r
    # The tip ends at the disc's tangent, and where the disc goes on: at the chord from the tangent
    # to the notch between the discs.
    tangent = (x - a - y) / math.sqrt(2) - r
    notch, touch = math.sqrt(r * r - a * a), r / math.sqrt(2)
    across, up = notch + touch, a + touch
    chord = (across * x + up * (y - notch)) / math.hypot(across, up)
    return torch.minimum(disc, torch.maximum(tangent, chord))


#: In dSprites' order.
SHAPES = {
    "square": Shape(_square, 4),
    "ellipse": Shape(_ellipse, 2),
    "heart": Shape(_heart, 1),
}


def draw_sprites(
    shape: str, scale: Tensor, theta: Tensor, shift: Tensor, image_size: int
) -> Tensor:
    """White sprites of one shape on black; a pixel that the outline crosses is grey.

    Arguments:
        shape: One of `SHAPES`.
        scale: Their sizes, with shape (B,); 1 is the largest of dSprites.
        theta: Their angles in radians, with shape (B,).
        shift: Their centres of mass in grid units, with shape (B, 2).
        image_size: The side of the images in pixels.

    Returns:
        The images, with shape (B, 1, image_size, image_size), float32 from 0 to 1.
    """
    grid = pixel_grid(image_size, image_size).float()
    images = torch.empty(len(scale), 1, image_size, image_size)
    for rows in torch.arange(len(scale)).split(CHUNK):
        points = to_object_frame(grid, theta[rows].float(), shift[rows].float())
        side_px = image_size * scale[rows].float().unsqueeze(-1)
        side = side_px.unsqueeze(-1) * pixel_size(image_size, image_size)
        distance_px = SHAPES[shape].distance(points / side) * side_px
        images[rows] = (0.5 - distance_px).clamp(0, 1).reshape(-1, *images.shape[1:])
    return images


class Sprites(ImageDataModule):
    """Images of the family of dSprites, generated: one white shape on black.

    Each image is a function of the seed and its index. Shapes are drawn where they are, not
    resampled. Upright, a square and an ellipse lie along the horizontal axis and a heart has its
    notch up; the shift is that of the centre of mass.

    A batch holds beside `image` and `index`: `label`, the place of the shape in `shapes` (where
    there are several), `theta` and `shift` where they vary, `scale` (B,), and `symmetry` (B,), how
    many different turns leave the shape the same. Where the pose varies, the test split also
    holds `untransformed` (N, 1, H, W): the same sprites upright and centred.

    References:
        dSprites: disentanglement testing sprites dataset (Matthey et al., 2017).

    Arguments:
        shapes: Some of `square`, `ellipse` and `heart`.
        scale_min: The smallest size; at scale 1 a square's side is 0.3 of the image's.
        scale_max: The largest size.
        scales: How many sizes there are, evenly spaced from the smallest to the largest (one
            alone: the smallest); None for any size between the two.
        image_size: The side of the square images in pixels.
        theta_distribution: `normal` or `uniform` (over the whole circle).
        theta_std_deg: The standard deviation of a normal angle in degrees.
        shift_max_px: The shift is uniform between minus and plus this along each axis, in pixels.
        train_images: The number of training images.
        val_images: The number of validation images.
        test_images: The number of test images.
        batch_size: As in `ImageDataModule`.
        eval_batch_size: As in `ImageDataModule`.
        seed: As in `ImageDataModule`.
    """

    def __init__(
        self,
        shapes: Sequence[str] = tuple(SHAPES),
        scale_min: float = 0.5,
        scale_max: float = 1.0,
        scales: int | None = 6,
        image_size: int = 64,
        theta_distribution: str = "uniform",
        theta_std_deg: float = 45.0,
        shift_max_px: float = 16.0,
        train_images: int = 50_000,
        val_images: int = 5_000,
        test_images: int = 10_000,
        batch_size: int = 100,
        eval_batch_size: int = 500,
        seed: int = 1,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed)
        if isinstance(shapes, str) or not shapes or len(set(shapes)) < len(shapes):
            raise ValueError(
                f"shapes: expected a list of different ones of {', '.join(SHAPES)}, got {shapes!r}"
            )
        self.shapes = [one_of("shapes", shape, tuple(SHAPES)) for shape in shapes]
        if len(shapes) > 1:
            self.num_labels, self.label_names = len(shapes), self.shapes
        self.scale_min = positive("scale_min", scale_min)
        self.scale_max = positive("scale_max", scale_max)
        if scale_max < scale_min:
            raise ValueError(
                f"scale_max: expected at least scale_min ({scale_min!r}), got {scale_max!r}"
            )
        self.scales = None if scales is None else at_least("scales", scales, 1)
        self.image_size = at_least("image_size", image_size, 2)
        self.angles = RandomAngles(theta_distribution, theta_std_deg)
        self.shift_max = not_negative("shift_max_px", shift_max_px)
        self.shift_max *= pixel_size(image_size, image_size)
        self.counts = {
            "train": at_least("train_images", train_images, 1),
            "val": at_least("val_images", val_images, 1),
            "test": at_least("test_images", test_images, 1),
        }

    def read(self) -> dict[str, Batch]:
        index = torch.arange(sum(self.counts.values()))
        parts = index.split(list(self.counts.values()))
        return {
            name: self._images(rows, untransformed=name == "test")
            for name, rows in zip(self.counts, parts, strict=True)
        }

    def _images(self, index: Tensor, untransformed: bool) -> Batch:
        noise = Noise(self.seed, "sprites", index)
        kind = (noise.uniform("shape") * len(self.shapes)).long()
        share = noise.uniform("scale")
        if self.scales is not None:
            share = (share * self.scales).floor() / max(self.scales - 1, 1)
        scale = self.scale_min + share * (self.scale_max - self.scale_min)
        theta = self.angles.draw(noise)
        shift = (noise.uniform("pose shift", 2) * 2 - 1) * self.shift_max
        symmetries = torch.tensor([SHAPES[shape].symmetry for shape in self.shapes])
        batch = {
            "image": self._draw(kind, scale, theta, shift),
            "index": index,
            "scale": scale.float(),
            "symmetry": symmetries[kind],
        }
        # What all images share tells nothing.
        if len(self.shapes) > 1:
            batch["label"] = kind
        if self.angles.varied:
            batch["theta"] = theta.float()
        if self.shift_max:
            batch["shift"] = shift.float()
        if untransformed and (self.angles.varied or self.shift_max):
            batch["untransformed"] = self._draw(kind, scale, theta * 0, shift * 0)
        return batch

    def _draw(self, kind: Tensor, scale: Tensor, theta: Tensor, shift: Tensor) -> Tensor:
        images = torch.empty(len(kind), 1, self.image_size, self.image_size)
        for number, shape in enumerate(self.shapes):
            rows = (kind == number).nonzero().squeeze(-1)
            images[rows] = draw_sprites(
                shape, scale[rows], theta[rows], shift[rows], self.image_size
            )
        return images
