"""A second look at every image, in the pose that the first has found.

An encoder that sees an image once has to know every shape in every pose. What it says of the pose
is enough to undo it; of an object that always stands and lies alike, more can be seen: what it
is, and what is still wrong about its pose.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from svae.geometry import remove_pose
from svae.latents import Latents
from svae.networks import precise_linear
from svae.posteriors.mean_field import MeanFieldPosterior

__all__ = ["SecondLook", "guidance"]

#: The part of its unit that an angle or a position counts as known to for `guidance`.
_SHARPEST = 0.05


class SecondLook(nn.Module):
    """An encoder of its own that corrects what a first look has found.

    The posterior stays a function of the image alone, so that bounds stay bounds. No gradient goes
    through the pose in which the image is seen. Outside of the turned image are zeros: where the
    background is something else, its corners tell the pose, and z may take it.

    Arguments:
        image_shape: The shape of the images, (C, H, W).
        encoder: From `image_shape` to a network with `out_features`, as the model's own.
        num_params: How many parameters the posterior of an image has.
    """

    def __init__(
        self, image_shape: Sequence[int], encoder: Callable[..., nn.Module], num_params: int
    ) -> None:
        super().__init__()
        self.encoder = encoder(image_shape=image_shape)
        features: int = self.encoder.out_features  # type: ignore[assignment]
        self.head = nn.Linear(features, num_params)

    def forward(self, image: Tensor, found: Latents) -> Tensor:
        """Corrections of the posterior's parameters, in the object's frame: (B, num_params).

        Arguments:
            image: Images, with shape (B, C, H, W).
            found: What the first look has found, batch (B,), without a gradient.
        """
        upright = remove_pose(image, *found.pose)
        return precise_linear(self.encoder(upright), self.head)


def guidance(
    first: MeanFieldPosterior, final: MeanFieldPosterior, units: dict[str, float]
) -> Tensor:
    """How far the pose of the first look is from the final one, with shape (B,).

    Subtracted from what training maximises, it has the first look learn to say at once what the
    second then corrects it to. Without it nothing does: any first pose will do if the second
    corrects it, and the images seen at the second look stay in as many poses as before. Of each
    variable it is sqrt(1 + d^2) - 1 of their distance d in standard deviations of the final one.

    Arguments:
        first: The posterior at the first look.
        final: That after the second, of which the correction alone may have a gradient: so the
            correction shrinks as the first look follows. If it did not, or with d^2 / 2, both
            would run off, one after the other.
        units: The unit of each part of the pose, by its name.
    """
    apart = []
    for name, unit in units.items():
        found = first.factors[name].mode
        apart.append(torch.sqrt(1 + final.factors[name].distance(found, _SHARPEST * unit)) - 1)
    return torch.stack(apart).sum(0)
