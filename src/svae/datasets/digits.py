"""Real handwritten digits that need no download: the ones that come with scikit-learn."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import interpolate

from svae.checks import at_least
from svae.datasets.posed import PosedImages
from svae.geometry import pixel_grid, transform_image

__all__ = ["RotDigits"]


class RotDigits(PosedImages):
    """1797 digits of 8x8 pixels, enlarged and centred, then turned and moved.

    As in MNIST, a digit's centre of mass lies at the centre of its image, which gives the shift a
    meaning, and a margin keeps turned digits within the image.

    References:
        Optical recognition of handwritten digits (Alpaydin and Kaynak, UCI, 1998), test part.

    Arguments:
        digit_size: The side in pixels that the digits are enlarged to; at most `image_size`.
        centre: Whether each digit's centre of mass is put at the centre of the image.
        image_size: As in `PosedImages`, like all that follow.
        theta_distribution: `normal` or `uniform`.
        theta_std_deg: The standard deviation of a normal angle in degrees.
        shift_std_px: The standard deviation of the shift along each axis in pixels.
        scale_std: The standard deviation of the logarithm of the size.
        train_copies: How many poses each training digit is shown in.
        eval_copies: The same for each validation and test digit.
        batch_size: As in `ImageDataModule`.
        eval_batch_size: As in `ImageDataModule`.
        seed: As in `ImageDataModule`; it also decides which digit is in which split.
    """

    num_labels = 10

    def __init__(
        self,
        digit_size: int = 24,
        centre: bool = True,
        image_size: int = 28,
        theta_distribution: str = "normal",
        theta_std_deg: float = 45.0,
        shift_std_px: float = 1.4,
        scale_std: float = 0.0,
        train_copies: int = 10,
        eval_copies: int = 5,
        batch_size: int = 100,
        eval_batch_size: int = 500,
        seed: int = 1,
    ) -> None:
        super().__init__(
            image_size,
            theta_distribution,
            theta_std_deg,
            shift_std_px,
            scale_std,
            train_copies,
            eval_copies,
            batch_size,
            eval_batch_size,
            seed,
        )
        self.digit_size = at_least("digit_size", digit_size, 8)
        self.centre = centre

    def objects(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        digits = load_digits()
        small = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
        side = (self.digit_size, self.digit_size)
        # Bicubic, because bilinear enlargement shows the 8x8 lattice; it overshoots a little.
        objects = interpolate(small, side, mode="bicubic", align_corners=False).clamp(0, 1)
        objects = self.on_canvas(objects)
        if self.centre:
            # The grid is symmetric about the centre, so that the mean coordinate is the offset.
            weights = objects.flatten(1) / objects.sum((1, 2, 3)).unsqueeze(1)
            offset = weights @ pixel_grid(self.image_size, self.image_size).float()
            objects = transform_image(objects, torch.zeros(len(objects)), -offset)
        labels = torch.from_numpy(digits.target).long()
        # Split by digit, so that all copies of one are on the same side: 70, 10 and 20 percent.
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(self.seed))
        train, val = int(0.7 * len(labels)), int(0.8 * len(labels))
        rows = {"train": order[:train], "val": order[train:val], "test": order[val:]}
        return objects, labels, rows
