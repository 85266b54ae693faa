"""A second look at every image, in the pose that the first has found.

An encoder that sees an image once has to know every shape in every pose. What it says of the pose
is enough to undo it; of an object that always stands and lies alike, more can be seen: what it
is, and what is still wrong about its pose.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from svae.checks import declared, image_shape_of
from svae.geometry import windows_on
from svae.latents import Latents
from svae.networks import precise_linear

__all__ = ["SecondLook"]


class SecondLook(nn.Module):
    """An encoder of its own that corrects what a first look has found.

    The posterior stays a function of the image alone, so that bounds stay bounds. No gradient goes
    through the pose in which the image is seen. Outside of the turned image are zeros: where the
    background is something else, its corners tell the pose, and z may take it.

    Arguments:
        image_shape: The shape of the images, (C, H, W).
        encoder: From `image_shape` to a network with `out_features`, a vector for each image.
        num_params: How many parameters the posterior has for each pose.
        window: The height and width in pixels of what is seen around the object, at most those of
            the image; the whole image if None.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        encoder: Callable[..., nn.Module],
        num_params: int,
        window: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        channels, *shape = image_shape_of(image_shape)
        self.window = (shape[0], shape[1]) if window is None else window
        self.encoder = encoder(image_shape=(channels, *self.window))
        if getattr(self.encoder, "lattice", None) is not None:
            raise ValueError(
                "second_encoder: expected one vector of features for each image, as of "
                f"model/encoder=mlp or cnn, and {type(self.encoder).__name__} has them at "
                f"{len(self.encoder.lattice)} lattice points"  # type: ignore[arg-type]
            )
        features = declared("model.second_encoder", self.encoder, "out_features")
        self.head = nn.Linear(features, num_params)

    def forward(self, image: Tensor, found: Latents) -> Tensor:
        """Corrections of the posterior's parameters, in the object's frame: (B, K, num_params).

        Arguments:
            image: Images, with shape (B, C, H, W).
            found: The poses that the first look has found, batch (B, K), without a gradient.
        """
        upright = windows_on(image, *found.pose, self.window)
        features = self.encoder(upright.flatten(0, 1))
        return precise_linear(features, self.head).unflatten(0, upright.shape[:2])
