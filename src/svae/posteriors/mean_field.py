r"""The mean-field posterior: every latent variable on its own.

.. math:: q(z, \theta, \Delta x | y) = q(z | y) \, q(\theta | y) \, q(\Delta x | y)

and, where sizes are inferred, times :math:`q(\log s | y)`.

References:
    Explicitly disentangling image content from translation and rotation with spatial-VAE
    (Bepler et al., 2019), section 2.2 and equation 4.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from svae.distributions import Distribution
from svae.geometry import rotate
from svae.latents import Latents
from svae.lattice import Lattice
from svae.noise import Noise
from svae.posteriors.base import Frame, Look, PosteriorHead
from svae.priors import Prior

__all__ = ["MeanField", "MeanFieldPosterior", "guidance"]

#: The part of its unit that an angle or a position counts as known to for `guidance`.
_SHARPEST = 0.05


class MeanFieldPosterior:
    """Independent factors. A pose variable without a factor is fixed at zero (eq. 5).

    Arguments:
        factors: The posterior of each inferred variable, by the name of its prior.
        frame: The angle (B,) by which the axes of the shift's factor are turned against the
            image's, counter-clockwise; not at all if None.
        guidance: What training subtracts beside the divergences (B,), if anything.
    """

    gives_bound = True

    def __init__(
        self,
        factors: Mapping[str, Distribution],
        frame: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> None:
        self.factors, self.frame, self.guidance = factors, frame, guidance

    def _latents(self, values: Mapping[str, Tensor]) -> Latents:
        latents = Latents.of(values)
        if self.frame is None:
            return latents
        return replace(latents, shift=rotate(latents.shift, self.frame))

    def turned(self, angle: Tensor) -> "MeanFieldPosterior":
        """The posterior of the latents of the images turned by `angle` (B,)."""
        factors = dict(self.factors)
        if "theta" in factors:
            factors["theta"] = factors["theta"].turned(angle)
        frame = angle if self.frame is None else self.frame + angle
        return MeanFieldPosterior(factors, frame, self.guidance)

    def rsample(self, count: int, noise: Noise) -> tuple[Latents, Tensor]:
        samples = {name: q.rsample(count, noise, name) for name, q in self.factors.items()}
        latents = self._latents(samples)
        return latents, torch.full_like(latents.theta, 1 / count)

    def mode(self) -> Latents:
        return self._latents({name: q.mode for name, q in self.factors.items()})

    def uncertainty(self) -> Latents:
        std = MeanFieldPosterior({}, None)._latents(
            {name: q.stddev for name, q in self.factors.items()}
        )
        if self.frame is None:
            return std
        # The variances along the image's axes of a covariance that is diagonal in others.
        weights = torch.stack((self.frame.cos(), self.frame.sin()), -1) ** 2
        variance = std.shift**2
        along = [(weights * v).sum(-1) for v in (variance, variance.flip(-1))]
        return replace(std, shift=torch.stack(along, -1).sqrt())

    def representation(self) -> Tensor:
        return torch.cat((self.factors["z"].mode, self.factors["z"].stddev), dim=-1)

    def kl(self, priors: Mapping[str, Prior]) -> dict[str, Tensor]:
        # The prior of the shift has no preferred direction, so that its frame does not matter.
        return {name: priors[name].kl(q) for name, q in self.factors.items()}

    def optimised_kl(self, priors: Mapping[str, Prior]) -> dict[str, Tensor]:
        return {name: priors[name].optimised_kl(q) for name, q in self.factors.items()}

    def log_prior(self, latents: Latents, priors: Mapping[str, Prior]) -> Tensor:
        values = latents.values()
        return torch.stack([priors[k].log_prob(values[k]) for k in self.factors]).sum(0)

    def excess(self, latents: Latents, priors: Mapping[str, Prior]) -> None:
        return None

    def log_prob(self, latents: Latents) -> Tensor:
        values = latents.values()
        if self.frame is not None:
            values["shift"] = rotate(values["shift"], -self.frame)
        terms = [q.log_prob(values[name]) for name, q in self.factors.items()]
        return torch.stack(terms).sum(0)


class MeanField(PosteriorHead):
    """The head that turns features into a `MeanFieldPosterior`.

    Arguments:
        in_features: The length of the feature vector.
        priors: The prior of each variable to infer, by its name in the model; `z` among them.
        lattice: None: an encoder's features must be one vector for each image.
    """

    def __init__(
        self, in_features: int, priors: Mapping[str, Prior], lattice: Lattice | None = None
    ) -> None:
        if "z" not in priors or not set(priors) <= {"z", "theta", "shift", "scale"}:
            raise ValueError(
                f"priors: expected z, and theta, shift or scale, got {sorted(priors)}"
            )
        if lattice is not None:
            raise ValueError(
                "model.posterior: mean_field takes one vector of features for each image, and the "
                f"encoder has them at {len(lattice)} lattice points; use model/posterior=attention"
            )
        sizes = [prior.num_params for prior in priors.values()]
        super().__init__(in_features, sizes, priors, terms=list(priors))
        # The methods only, as of the families.
        self.corrections = {name: prior.corrected for name, prior in priors.items()}
        self.units = {name: prior.unit for name, prior in priors.items() if name != "z"}

    def forward(self, params: Tensor, frame: Frame | None = None) -> MeanFieldPosterior:
        """The posterior of each image, from parameters with shape (B, n).

        The centre of a frame has to be zero: those that are asked for are of turned images.
        """
        parts = params.split(self.sizes, dim=-1)
        pairs = zip(self.families.items(), parts, strict=True)
        q = MeanFieldPosterior({name: family(part) for (name, family), part in pairs})
        return q if frame is None else q.turned(frame[0])

    @property
    def can_look_again(self) -> bool:
        return True

    def looked_again(
        self, params: Tensor, look: Look, noise: Noise | None = None, frame: Frame | None = None
    ) -> MeanFieldPosterior:
        first = self(params)
        found = first.mode().map(Tensor.detach)
        correction = look(found.map(lambda value: value.unsqueeze(1))).squeeze(1)
        final = self(self.corrected(params, correction, found), frame)
        if noise is not None:
            alone = self(self.corrected(params.detach(), correction, found))
            final.guidance = guidance(first, alone, self.units)
        return final

    def corrected(self, params: Tensor, correction: Tensor, pose: Latents) -> Tensor:
        """Parameters (B, n) with a correction (B, n) that was found in an object's frame.

        Arguments:
            params: Parameters of posteriors.
            correction: What is added to them.
            pose: How that frame is turned and sized in the image; batch (B,).
        """
        parts = zip(
            self.corrections.values(),
            params.split(self.sizes, dim=-1),
            correction.split(self.sizes, dim=-1),
            strict=True,
        )
        return torch.cat([correct(part, more, pose) for correct, part, more in parts], dim=-1)


def guidance(
    first: MeanFieldPosterior, final: MeanFieldPosterior, units: Mapping[str, float]
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
