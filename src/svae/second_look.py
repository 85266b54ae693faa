r"""A second look at every image, in the pose that the first has found.

An encoder that sees an image once has to know every shape in every pose. What it says of the pose
is enough to undo it; of an object that always stands and lies alike, more can be seen: what it
is, and what is still wrong about its pose.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from svae.geometry import remove_pose
from svae.networks import precise_linear
from svae.posteriors.mean_field import MeanField, MeanFieldPosterior

__all__ = ["SecondLook", "guidance"]

#: The part of its unit that an angle or a position counts as known to for `guidance`.
_SHARPEST = 0.05


class SecondLook(nn.Module):
    """An encoder of its own that corrects what a first look has found.

    The posterior stays a function of the image alone, so that bounds stay bounds. No gradient goes
    through the pose in which the image is seen.

    Arguments:
        image_shape: The shape of the images, (C, H, W).
        encoder: From `image_shape` to a network with `out_features`, as the model's own.
        head: What turns parameters into the posterior.
    """

    def __init__(
        self, image_shape: Sequence[int], encoder: Callable[..., nn.Module], head: MeanField
    ) -> None:
        super().__init__()
        self.encoder = encoder(image_shape=image_shape)
        features: int = self.encoder.out_features  # type: ignore[assignment]
        self.head = nn.Linear(features, sum(head.sizes))

    def forward(self, image: Tensor, first: MeanFieldPosterior) -> Tensor:
        """Corrections of the posterior's parameters, in the object's frame, with shape (B, n).

        Arguments:
            image: Images, with shape (B, C, H, W).
            first: Their posterior at the first look.
        """
        with torch.no_grad():
            upright = remove_pose(image, *first.mode().pose)
        return precise_linear(self.encoder(upright), self.head)


def guidance(
    first: MeanFieldPosterior, final: MeanFieldPosterior, units: dict[str, float]
) -> Tensor:
    """How far the pose of the first look is from the final one, with shape (B,).

    Subtracted from what training maximises, it has the first look learn to say at once what the
    second then corrects it to. Without it nothing does: any first pose will do if the second
    corrects it, and the images seen at the second look stay in as many poses as before. Only the
    first look has a gradient. Of each variable it is sqrt(1 + d^2) - 1 of their distance d in
    standard deviations of the final one; as d^2 / 2, where one runs after the other, both run off.

    Arguments:
        first, final: The posteriors at the first look and after the second.
        units: The unit of each part of the pose, by its name.
    """
    apart = []
    for name, unit in units.items():
        found = first.factors[name].mode
        apart.append(torch.sqrt(1 + final.factors[name].distance(found, _SHARPEST * unit)) - 1)
    return torch.stack(apart).sum(0)
