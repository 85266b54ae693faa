"""What was inferred from images, beside what is known of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from svae.ctf import CTF
from svae.latents import Latents
from svae.model import SpatialVAE
from svae.posteriors import Posterior

__all__ = ["Inferred", "infer_batch", "representation"]

_TRUTH = ("label", "theta", "shift", "scale", "symmetry", "conformation")
_MORE = ("representation", "reference_theta", "centre", "peak", "upright")
_LATENTS = tuple(f"inferred_{field.name}" for field in fields(Latents))


@dataclass(frozen=True)
class Inferred:
    """The latents of B images, and the truth where a data set knows it.

    Arguments:
        index: The images' index, with shape (B,).
        latents: The posterior's mode or what is refined from it, with shape (B, ...).
        log_likelihood: Of each image, in nats, with shape (B,).
        label: With shape (B,).
        theta: The true angle in radians, with shape (B,).
        shift: The true centre in grid units, with shape (B, 2).
        scale: The true relative size, a factor, with shape (B,).
        symmetry: The order of the object's rotational symmetry (1 none, 2 an ellipse, 4 a
            square), with shape (B,).
        conformation: The true conformation from 0 to 1, with shape (B,).
        representation: z and its standard deviation at the mode, with shape (B, 2 z_dim).
        reference_theta: The angle inferred from the same object upright and centred, in radians,
            with shape (B,).
        centre: The centre of mass of the decoded object in the image, in grid units, with shape
            (B, 2).
        peak: The probability of the most probable pose among those of a lattice, with shape (B,).
        upright: The images with their pose removed, small (`svae.metrics.small_upright`), with
            shape (B, D).
    """

    index: Tensor
    latents: Latents
    log_likelihood: Tensor
    label: Tensor | None = None
    theta: Tensor | None = None
    shift: Tensor | None = None
    scale: Tensor | None = None
    symmetry: Tensor | None = None
    conformation: Tensor | None = None
    representation: Tensor | None = None
    reference_theta: Tensor | None = None
    centre: Tensor | None = None
    peak: Tensor | None = None
    upright: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: Tensor | slice) -> Inferred:
        return Inferred.from_tensors({name: t[rows] for name, t in self.tensors().items()})

    @staticmethod
    def names_in(
        batch: Mapping[str, Tensor],
        infers_theta: bool = True,
        centre: bool = False,
        upright: bool = False,
    ) -> list[str]:
        """The names of `tensors` for batches with the keys of this one, all of it inferred.

        Arguments:
            batch: Of whatever is known. Where it has `untransformed`, the same objects upright
                and centred, there is an angle inferred from those.
            infers_theta: Whether the model infers angles.
            centre: Whether centres of mass are found.
            upright: Whether the images are kept with their pose removed.
        """
        names = [*_LATENTS, "index", "log_likelihood", "representation"]
        names += ["reference_theta"] * (infers_theta and "untransformed" in batch)
        names += ["centre"] * centre + ["upright"] * upright
        return [*names, *(name for name in _TRUTH if name in batch)]

    @staticmethod
    def from_batch(
        batch: Mapping[str, Tensor],
        latents: Latents,
        log_likelihood: Tensor,
        representation: Tensor | None = None,
        reference_theta: Tensor | None = None,
        centre: Tensor | None = None,
        peak: Tensor | None = None,
        upright: Tensor | None = None,
    ) -> Inferred:
        """What a batch says of its images, with what was inferred from them."""
        truth = {name: batch[name] for name in _TRUTH if name in batch}
        return Inferred(
            batch["index"],
            latents,
            log_likelihood,
            representation=representation,
            reference_theta=reference_theta,
            centre=centre,
            peak=peak,
            upright=upright,
            **truth,
        )

    def isfinite(self) -> bool:
        """Whether every number of the poses and the content is finite."""
        more = (getattr(self, name) for name in _MORE)
        return self.latents.isfinite() and all(
            bool(value.isfinite().all()) for value in more if value is not None
        )

    def tensors(self) -> dict[str, Tensor]:
        """All of it as named tensors with shape (B, ...)."""
        named = {"index": self.index, "log_likelihood": self.log_likelihood}
        named |= dict(zip(_LATENTS, self.latents.tensors(), strict=True))
        known = {name: getattr(self, name) for name in (*_TRUTH, *_MORE)}
        return named | {name: value for name, value in known.items() if value is not None}

    @staticmethod
    def from_tensors(named: Mapping[str, Tensor]) -> Inferred:
        """From what `tensors` gave."""
        latents = Latents(*(named[name] for name in _LATENTS))
        more = {name: named.get(name) for name in _MORE}
        return Inferred.from_batch(named, latents, named["log_likelihood"], **more)


def representation(q: Posterior, latents: Latents) -> Tensor:
    """That of a posterior, with the z of `latents` in the place of its own: (B, 2 z_dim)."""
    return torch.cat((latents.z, q.representation()[:, latents.z.shape[1] :]), dim=1)


@torch.no_grad()
def infer_batch(model: SpatialVAE, batch: Mapping[str, Tensor]) -> tuple[Inferred, Latents]:
    """The model's estimate for every image of a batch, and the posterior's standard deviations.

    Arguments:
        model: The model.
        batch: `image` (B, C, H, W), `index` (B,) and what else is known, such as `ctf`; on any
            device.

    Returns:
        The estimate with the log-likelihood there, and the standard deviations; both on the CPU.
        The same objects upright, which a batch may have, are not looked at.
    """
    image, ctf = batch["image"].to(model.grid), CTF.of(batch)
    ctf = None if ctf is None else ctf.to(image.device)
    q = model.infer(image, ctf=ctf)
    best, std = model.estimate(image, q, ctf=ctf), q.uncertainty()
    log_likelihood = model.log_likelihood(image, best[None], ctf=ctf).squeeze(0)
    log_weights = getattr(q, "log_weights", None)  # of a posterior that has a lattice
    found = Inferred.from_batch(
        batch,
        best.map(Tensor.cpu),
        log_likelihood.cpu(),
        representation(q, best).cpu(),
        centre=model.centre(best).cpu() if "shift" in model.priors else None,
        peak=None if log_weights is None else log_weights.exp().amax(1).cpu(),
    )
    return found, std.map(Tensor.cpu)
