r"""The posterior of TARGET-VAE: attention over a lattice of positions t and rotations r.

.. math:: q(z, \theta, t, r | y) = q(t, r | y) \, q(\theta | t, r, y) \, q(z | t, r, y)

The object lies on a lattice position, as published, or deviates from it (`shift_offsets`: one
factor :math:`q(\Delta x | t, r, y)` more, with a prior :math:`p(\Delta x | t)`); its angle
deviates from that of a lattice rotation. With the prior :math:`p(t) p(r) p(\theta | r) p(z)`, the
divergence is

.. math:: KL(q(t, r) || p(t) p(r)) + \sum_{t, r} q(t, r)
          [KL(q(\theta | t, r) || p(\theta | r)) + KL(q(z | t, r) || p(z))],

exactly, as a sum over the lattice. What :math:`p(r) p(\theta | r)` a prior on the angle becomes,
and how near their marginal is to it, is said at its `on_lattice`; of the position, at `between`. A
size, where that is inferred, is so at each point, as z is.

References:
    Unsupervised object representation learning using translation and rotation group equivariant
    VAE (Nasiri and Bepler, 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from svae.distributions import Distribution, Exactly
from svae.geometry import rotate, wrap_angle
from svae.latents import Latents
from svae.lattice import Lattice
from svae.noise import Noise
from svae.posteriors.base import Frame, Look, PosteriorHead
from svae.priors import Prior

__all__ = ["Attention", "AttentionPosterior", "Sampling"]

Priors = Mapping[str, Prior]

#: The logarithm of a weight that counts for nothing.
_NEVER = -1e4


class Sampling(Protocol):
    """How an attention posterior is used; see `svae.posteriors.sampling`."""

    def cuts(self, count: int) -> bool:
        """Whether it leaves out some of `count` points of a lattice."""

    def reported(self, q: AttentionPosterior) -> AttentionPosterior:
        """The posterior that the network stands for: what is evaluated."""

    def trained(self, q: AttentionPosterior, noise: Noise) -> AttentionPosterior:
        """The posterior in the training step number `noise.step`."""


@dataclass(frozen=True)
class AttentionPosterior:
    """Points of a lattice with their probabilities, and what is inferred at each.

    Arguments:
        head: What made it, which knows the lattice.
        log_weights: Log-probabilities of the points, with shape (B, M).
        params: The parameters of the variables at each point, with shape (B, M, n).
        points: Which points of the lattice these are, with shape (B, M); all of them if None.
        frame: How the lattice lies in the image; at its middle, along its axes, if None.
        more: What is added at every point to `z` (B, z_dim) and to the logarithm of the size,
            `scale` (B,); nothing if None.
        sampler: How `rsample` samples, where it does not draw points and then what is at them.
        gives_bound: Whether what `rsample` gives is a sample of the posterior, so that the ELBO
            estimated from it is a bound.
        guidance: What training subtracts beside the divergences (B,), if anything.
        placed: Whether `frame` was chosen by looking at the images (`settled`).
    """

    head: Attention
    log_weights: Tensor
    params: Tensor
    points: Tensor | None = None
    frame: Frame | None = None
    more: Mapping[str, Tensor] | None = None
    sampler: Callable[[AttentionPosterior, int, Noise], tuple[Latents, Tensor]] | None = None
    gives_bound: bool = True
    guidance: Tensor | None = None
    placed: bool = False

    # ---- the lattice

    @property
    def lattice(self) -> Lattice:
        """The poses that the posterior chooses from, before they are moved by `frame`."""
        return self.head.lattice

    @property
    def weights(self) -> Tensor:
        """The probability of every lattice point, with shape (B, P, R); they sum to one."""
        weights = self.log_weights.exp()
        if self.points is not None:
            everywhere = weights.new_zeros(len(weights), len(self.lattice))
            weights = everywhere.scatter(1, self.points, weights)
        return weights.unflatten(1, (len(self.lattice.shifts), len(self.lattice.angles)))

    def truncated(self, columns: Tensor) -> AttentionPosterior:
        """The posterior with some of its points only, renormalised.

        Arguments:
            columns: Which of the M points are kept, with shape (B, k), each once.
        """
        return replace(
            self,
            log_weights=self.log_weights.gather(1, columns).log_softmax(1),
            params=_columns(self.params, columns),
            points=_columns(self.rows(), columns),
        )

    def rows(self) -> Tensor:
        """The numbers of the points among all of the lattice, with shape (B, M)."""
        if self.points is not None:
            return self.points
        return torch.arange(len(self.lattice), device=self.params.device).expand(
            len(self.params), -1
        )

    def at(self, columns: Tensor | None = None) -> dict[str, Distribution]:
        """What is inferred at points: the distribution of each variable, the position among them.

        Arguments:
            columns: Which of the points, with shape (B, m); they may repeat. All by default.

        Returns:
            Distributions of values with shape (B, m, *event); positions, and angles around those
            of the lattice, in its frame, other angles in the image's.
        """
        rows, params = self.rows(), self.params
        if columns is not None:
            rows, params = _columns(rows, columns), _columns(params, columns)
        return self._framed(self.head.conditionals(params, rows, self.more))

    def _framed(self, q: dict[str, Distribution]) -> dict[str, Distribution]:
        """An angle that is no deviation from the lattice's has its prior in the image's frame."""
        if self.frame is None or self.head.deviates or "theta" not in q:
            return q
        return q | {"theta": q["theta"].turned(self.frame[0].unsqueeze(-1))}

    def latents(self, values: Mapping[str, Tensor]) -> Latents:
        """Latents in the image's frame, of values (..., B, *event) as `at` gives them."""
        latents = Latents.of(values)
        if self.frame is None:
            return latents
        angle, centre = self.frame
        theta = latents.theta + angle * self.head.deviates
        return replace(latents, theta=theta, shift=rotate(latents.shift + centre, angle))

    def _as_at(self, latents: Latents) -> Latents:
        """The inverse of `latents`: values as `at` gives them."""
        if self.frame is None:
            return latents
        angle, centre = self.frame
        theta = latents.theta - angle * self.head.deviates
        return replace(latents, theta=theta, shift=rotate(latents.shift, -angle) - centre)

    def spread_of_angles(self) -> tuple[Tensor, Tensor]:
        """Probabilities (B, m) that sum to one, and the angles (B, m) in the image's frame.

        How the angle is spread, without the widths around the lattice's points.
        """
        turn = 0.0 if self.frame is None else self.frame[0].unsqueeze(-1)
        if self.head.deviates:
            return self.weights.sum(1), self.lattice.angles + turn
        return self.log_weights.exp(), self.at()["theta"].mode

    # ---- samples

    def sample_points(self, count: int, noise: Noise) -> Tensor:
        """Independent draws of a point: columns, with shape (B, count)."""
        cumulative = self.log_weights.double().softmax(1).cumsum(1)
        u = noise.uniform("point", count) * cumulative[:, -1:]
        return torch.searchsorted(cumulative, u).clamp(max=cumulative.shape[1] - 1)

    def rsample(self, count: int, noise: Noise) -> tuple[Latents, Tensor]:
        if self.sampler is not None:
            return self.sampler(self, count, noise)
        q = self.at(self.sample_points(count, noise))
        values = {name: d.rsample(1, noise, name)[0].transpose(0, 1) for name, d in q.items()}
        latents = self.latents(values)
        return latents, torch.full_like(latents.theta, 1 / count)

    def enumerate(self, count: int, noise: Noise) -> tuple[Latents, Tensor]:
        """`count` samples at every point (count * M, B), weighted by the points' probabilities."""
        values = {
            name: d.rsample(count, noise, name).transpose(1, 2).flatten(0, 1)
            for name, d in self.at().items()
        }
        latents = self.latents(values)
        return latents, self.log_weights.exp().t().repeat(count, 1) / count

    # ---- summaries

    def _best(self) -> Tensor:
        return self.log_weights.argmax(1, keepdim=True)

    def mode(self) -> Latents:
        """The mode at the most probable lattice point."""
        return self.latents({name: d.mode[:, 0] for name, d in self.at(self._best()).items()})

    def representation(self) -> Tensor:
        z = self.at(self._best())["z"]
        return torch.cat((z.mode, z.stddev), dim=-1).squeeze(1)

    def uncertainty(self) -> Latents:
        r"""Standard deviations over the whole lattice; that of an angle is the circular one.

        .. math:: \sqrt{-2 \log |E e^{i \theta}|}
        """
        weights = self.log_weights.exp()
        q = self.at()
        std = {"z": _spread(weights, q["z"].mode, q["z"].stddev)}
        if "theta" in q:
            loc, part = q["theta"].mode, weights * torch.exp(-0.5 * q["theta"].stddev ** 2)
            resultant = torch.hypot((part * loc.cos()).sum(1), (part * loc.sin()).sum(1))
            std["theta"] = (-2 * resultant.clamp(1e-12, 1).log()).sqrt()
        if "scale" in q:
            parts = (value.unsqueeze(-1) for value in (q["scale"].mode, q["scale"].stddev))
            std["scale"] = _spread(weights, *parts).squeeze(-1)
        shift = q["shift"].mode
        if self.frame is not None:
            shift = rotate(shift, self.frame[0].unsqueeze(-1))
        # As wide along any axis: no frame matters.
        return Latents.of(std | {"shift": _spread(weights, shift, q["shift"].stddev)})

    def turned(self, angle: Tensor) -> AttentionPosterior:
        """The posterior of the latents of the images turned by `angle` (B,).

        The lattice turns with the image, and the prior is put onto the turned lattice.
        """
        if self.frame is None:
            return replace(self, frame=(angle, angle.new_zeros(len(angle), 2)))
        return replace(self, frame=(self.frame[0] + angle, self.frame[1]))

    def shifted(self, by: Tensor) -> AttentionPosterior:
        """The posterior of the latents of the images moved by `by` (B, 2) in grid units."""
        if self.frame is None:
            return replace(self, frame=(by.new_zeros(len(by)), by))
        angle, centre = self.frame
        return replace(self, frame=(angle, centre + rotate(by, -angle)))

    def added(self, z: Tensor, log_scale: Tensor) -> AttentionPosterior:
        """The posterior with `z` (B, z_dim) and `log_scale` (B,) added to its own everywhere."""
        more = {"z": z, "scale": log_scale}
        if self.more is not None:
            more = {name: value + self.more[name] for name, value in more.items()}
        return replace(self, more=more)

    def settled(self) -> AttentionPosterior:
        """The same, of which it is known that the frame was chosen by looking at the images.

        `kl` compares with the prior put onto the lattice where that lies. As a function of the
        image that is no prior, and no bound follows from it: `log_prior` is that of the lattice
        at rest, and `excess` what that makes. Where positions lie on the lattice and nowhere
        between, they have no chance under it, and there is no bound.
        """
        nowhere = len(self.head.shifts) > 1 and not self.head.between
        return replace(self, placed=not nowhere, gives_bound=self.gives_bound and not nowhere)

    # ---- divergences and densities

    def kl(self, priors: Priors) -> dict[str, Tensor]:
        return self._divergences(priors, lambda prior, q: prior.kl(q))

    def optimised_kl(self, priors: Priors) -> dict[str, Tensor]:
        return self._divergences(priors, lambda prior, q: prior.optimised_kl(q))

    def _divergences(
        self, priors: Priors, divergence: Callable[[Prior, Distribution], Tensor]
    ) -> dict[str, Tensor]:
        weights = self.log_weights.exp()
        positions, rotations = self.log_lattice_prior(priors)
        log_prior = (positions.unsqueeze(-1) + rotations.unsqueeze(-2)).flatten(1)
        log_prior = log_prior.expand(len(weights), -1)
        # Divergences of the deviations: to turn or to move both sides changes nothing.
        q = self._framed(self.head.conditionals(self.params, more=self.more))
        around = self.head.around(priors)
        terms = {name: (weights * divergence(around[name], d)).sum(1) for name, d in q.items()}
        excess = self.log_weights - _columns(log_prior, self.rows())
        return terms | {"lattice": (weights * excess).sum(1)}

    def log_lattice_prior(self, priors: Priors) -> tuple[Tensor, Tensor]:
        """Log-probabilities of positions (B or 1, P) and rotations (B or 1, R) under the prior."""
        angles, shifts = self.lattice.angles[None], self.lattice.shifts[None]
        if self.frame is not None:
            angles = wrap_angle(angles + self.frame[0].unsqueeze(-1))
            # The prior of a shift has no preferred direction: turned or not, it is the same.
            shifts = shifts + self.frame[1].unsqueeze(-2)
        return (
            self.head.log_positions(priors, shifts),
            self.head.log_rotations(priors, angles),
        )

    def log_prior(self, latents: Latents, priors: Priors) -> Tensor:
        """Log prior density of content, angle and size, and of the position its density or mass.

        These are the marginals over the lattice of the prior that the divergence has, or, of a
        posterior that is `settled`, that it has of a lattice at rest.
        """
        if self.placed:
            return replace(self, frame=None, placed=False).log_prior(latents, priors)
        around = self.head.around(priors)
        positions, rotations = self.log_lattice_prior(priors)
        log_prob_at = around["shift"].log_prob if "shift" in around else Exactly.log_prob_of

        def of_pose(latents: Latents) -> Tensor:
            back = self._as_at(latents)
            at_each = log_prob_at(back.shift.unsqueeze(-2) - self.lattice.shifts)  # (B, P)
            log_prior = (positions + at_each).logsumexp(-1)
            if "theta" not in priors:
                return log_prior
            deviation = back.theta.unsqueeze(-1) - self.head.offsets
            return log_prior + (rotations + around["theta"].log_prob(deviation)).logsumexp(-1)

        log_prior = _one_by_one(of_pose, latents) + priors["z"].log_prob(latents.z)
        if "scale" in priors:
            log_prior = log_prior + priors["scale"].log_prob(latents.log_scale)
        return log_prior

    def excess(self, latents: Latents, priors: Priors) -> Tensor | None:
        if not self.placed:
            return None
        here = replace(self, placed=False)
        return here.log_prior(latents, priors) - self.log_prior(latents, priors)

    def log_prob(self, latents: Latents) -> Tensor:
        """Log-density, with shape (..., B); of a position that lies on the lattice, log-mass.

        Summed over the lattice; where positions lie on it, minus infinity off them.
        """
        everywhere = None
        if self.points is not None or self.head.between:
            everywhere = self.at()
        return _one_by_one(lambda one: self._log_prob(one, everywhere), latents)

    def _log_prob(self, latents: Latents, q: dict[str, Distribution] | None) -> Tensor:
        """`log_prob` of latents with shape (B, ...), from what `at` gives of all points."""
        back = self._as_at(latents).values()
        log_prob = self.log_weights
        if q is None:
            # Only the points at that position count: its rotations, one after another. Matrix
            # products would lose the last digits of small distances.
            exact = "donot_use_mm_for_euclid_dist"
            distance = torch.cdist(back["shift"], self.lattice.shifts, compute_mode=exact)
            rotations = len(self.lattice.angles)
            first = distance.argmin(-1, keepdim=True) * rotations
            columns = first + torch.arange(rotations, device=first.device)
            q, log_prob = self.at(columns), log_prob.gather(1, columns)
        for name, factor in q.items():
            log_prob = log_prob + factor.log_prob(back[name].unsqueeze(1))
        return log_prob.logsumexp(1)


class Attention(PosteriorHead):
    """The head that turns features at lattice points into an `AttentionPosterior`.

    Arguments:
        in_features: The length of the features of a lattice point.
        priors: The prior of each variable to infer, by its name in the model; `z` among them.
        lattice: The poses that the encoder has features of.
        sampling: How the lattice is sampled: an object of `svae.posteriors.sampling`.
        offsets: Whether the angle at a point is a deviation from that of its rotation. Without,
            it has its whole prior at each of them.
        shift_offsets: Whether the position of a point is a deviation from the lattice's, too.
            Without, it lies on the lattice, as published.
        correct_weights: Whether a second look corrects the weights that the first gives the
            points. Without, it weighs them itself: those of the first hang on how an object lies
            to the lattice, and so do choices between poses in which it looks nearly the same.
    """

    def __init__(
        self,
        in_features: int,
        priors: Priors,
        lattice: Lattice | None,
        sampling: Sampling,
        offsets: bool = True,
        shift_offsets: bool = False,
        correct_weights: bool = True,
    ) -> None:
        if lattice is None:
            raise ValueError(
                "model.posterior: attention needs an encoder with a lattice of poses, such as "
                "model/encoder=group_conv"
            )
        rotations, positions = len(lattice.angles), len(lattice.shifts)
        if rotations > 1 and "theta" not in priors:
            raise ValueError(
                f"group_order: expected 1 where infer_theta is false, got {rotations} rotations"
            )
        if (positions > 1) != ("shift" in priors):
            raise ValueError(
                f"infer_shift: expected {str(positions > 1).lower()} with the {positions} lattice "
                "positions that kernel_size, padding and stride of the encoder leave"
            )
        angles = lattice.angles.float()
        deviates = offsets and rotations > 1
        self.spacing = lattice.spacing * shift_offsets  # zero, too, of one position alone
        around = self._around(priors, angles, deviates)
        sizes = [1, *(prior.num_params for prior in around.values())]
        super().__init__(in_features, sizes, around, terms=[*around, "lattice"])
        # The methods only, as of the families.
        self.corrections = {name: prior.corrected for name, prior in around.items()}
        self.sampling, self.correct_weights = sampling, correct_weights
        self.deviates, self.between = deviates, "shift" in around
        self.shape = lattice.shape
        self.register_buffer("angles", angles, persistent=False)
        self.register_buffer("shifts", lattice.shifts.float(), persistent=False)
        self.register_buffer("offsets", angles * deviates, persistent=False)
        self.angles: Tensor
        self.shifts: Tensor
        self.offsets: Tensor
        # Not a dictionary of modules: the model owns the priors.
        self._priors = dict(priors)
        self.log_positions(priors, self.shifts)

    @property
    def lattice(self) -> Lattice:
        """The poses to choose from."""
        return Lattice(self.angles, self.shifts, self.shape)

    def around(self, priors: Priors) -> dict[str, Prior]:
        """The prior of what is inferred at a point: of `z`, of deviations, and of the size."""
        return self._around(priors, self.angles, self.deviates)

    def _around(self, priors: Priors, angles: Tensor, deviates: bool) -> dict[str, Prior]:
        found = {name: priors[name] for name in ("z", "theta", "scale") if name in priors}
        if deviates:
            deviation = priors["theta"].on_lattice(angles)[1]
            if deviation is None:
                raise ValueError(
                    f"prior.theta: {type(priors['theta']).__name__} leaves nothing between the "
                    "rotations of a lattice; use model.posterior.offsets=false"
                )
            found["theta"] = deviation
        if self.spacing:
            found["shift"] = priors["shift"].between(self.spacing)
        return found

    def log_rotations(self, priors: Priors, angles: Tensor) -> Tensor:
        """Log prior probabilities of rotations by `angles`, with shape (..., R)."""
        if self.deviates:
            return priors["theta"].on_lattice(angles)[0]
        return torch.full_like(angles, 1 / angles.shape[-1]).log()

    def log_positions(self, priors: Priors, shifts: Tensor) -> Tensor:
        """Log prior probabilities of positions `shifts` (..., P, 2), with shape (..., P)."""
        if "shift" not in priors:
            return torch.zeros_like(shifts[..., 0])
        if self.spacing:
            return priors["shift"].between(self.spacing).log_weights(shifts)
        log_weights, around = priors["shift"].on_lattice(shifts)
        if around is not None:
            raise ValueError(
                f"prior.shift: {type(priors['shift']).__name__} does not put a shift onto the "
                "points of a lattice, as attention needs it"
            )
        return log_weights

    def conditionals(
        self,
        params: Tensor,
        rows: Tensor | None = None,
        more: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Distribution]:
        """The distribution of each variable at points.

        Arguments:
            params: Parameters, with shape (B, m, n).
            rows: The numbers of the points, with shape (B, m). Without, angle and position are
                the deviations from theirs, that of the position in the frame of the rotation.
            more: What is added to other variables, with shape (B, *event), by their names.
        """
        parts = params.split(self.sizes[1:], dim=-1)
        pairs = zip(self.families.items(), parts, strict=True)
        around = {name: value.unsqueeze(1) for name, value in (more or {}).items()}
        if rows is None:
            return {name: family(part, around.get(name, 0.0)) for (name, family), part in pairs}
        rotation = rows % len(self.angles)
        around["theta"] = self.offsets[rotation]
        q = {name: family(part, around.get(name, 0.0)) for (name, family), part in pairs}
        place = self.shifts[rows // len(self.angles)]
        if not self.between:
            return q | {"shift": Exactly(place)}
        # Turned with the object, as the filters are that see it.
        return q | {"shift": q["shift"].placed(self.angles[rotation], place)}  # type: ignore[attr-defined]

    def forward(self, params: Tensor, frame: Frame | None = None) -> AttentionPosterior:
        """The posterior of each image, from parameters with shape (B, P, R, n)."""
        return self.sampling.reported(self.whole(params, frame))

    def trained(
        self, params: Tensor, noise: Noise, frame: Frame | None = None
    ) -> AttentionPosterior:
        return self.sampling.trained(self.whole(params, frame), noise)

    @property
    def can_look_again(self) -> bool:
        """Whether the sampling leaves a few points only: each needs a look of its own."""
        return self.sampling.cuts(len(self.angles) * len(self.shifts))

    def looked_again(
        self, params: Tensor, look: Look, noise: Noise | None = None, frame: Frame | None = None
    ) -> AttentionPosterior:
        """The posterior with a new weight of every point, and its contents corrected.

        The pose of each point is a hypothesis of its own, under which a second look sees the
        object as if it lay so. The first look, which decides what points there are, is guided by
        KL(final || first) of their weights.
        """
        q = self(params, frame) if noise is None else self.trained(params, noise, frame)
        found = self._to_look_at(q)
        of_weight, *of_rest = look(found).split(self.sizes, dim=-1)
        # What a point deviates by is counted from its rotation.
        rotation = q.rows() % len(self.angles)
        pose, place = (
            replace(found, theta=found.theta - of[rotation]) for of in (self.offsets, self.angles)
        )
        parts = q.params.split(self.sizes[1:], dim=-1)
        corrected = [
            correct(part, more, place if name == "shift" else pose)
            for (name, correct), part, more in zip(
                self.corrections.items(), parts, of_rest, strict=True
            )
        ]
        before = q.log_weights if self.correct_weights else self._log_rotation(q)
        log_weights = (before + of_weight.squeeze(-1)).log_softmax(1)
        guidance = None
        if noise is not None:
            final = log_weights.detach()
            guidance = (final.exp() * (final - q.log_weights)).sum(1)
        return replace(
            q, log_weights=log_weights, params=torch.cat(corrected, -1), guidance=guidance
        )

    def _to_look_at(self, q: AttentionPosterior) -> Latents:
        """The poses (B, M) of the points, in the images as they are looked at."""
        q = replace(q, frame=None)
        return q.latents({name: factor.mode for name, factor in q.at().items()}).map(Tensor.detach)

    def _log_rotation(self, q: AttentionPosterior) -> Tensor:
        """The log prior probability of the rotation of every point, with shape (B, M).

        It cannot be seen in an object without its pose. That of positions is not for weights that
        looks give: of two poses half a turn apart the origins lie apart too, and which is nearer
        to the image's middle should not decide.
        """
        rotations = q.log_lattice_prior(self._priors)[1]
        return rotations.expand(len(q.params), -1).gather(1, q.rows() % len(self.angles))

    def turned_over(self, q: AttentionPosterior, look: Look) -> AttentionPosterior:
        """What `looked_again` gave, with the odds of an object's two ways up by a third look.

        They are those of the best point of either half of the circle, as a look at the corrected
        poses alone weighs them. The weights within a half stay: what a point has inferred besides,
        and how far from its place on the lattice it had to go for it, cannot be seen there.
        """
        found = self._to_look_at(q)
        seen = self._log_rotation(q) + look(found)[..., 0]
        best = found.theta.gather(1, seen.argmax(1, keepdim=True))
        near = torch.cos(found.theta - best) > 0
        change = torch.zeros_like(seen)
        for half in (near, ~near):
            now, then = (w.masked_fill(~half, _NEVER) for w in (seen, q.log_weights))
            renewed = now.amax(1, keepdim=True) - then.amax(1, keepdim=True)
            change = torch.where(half, renewed, change)
        return replace(q, log_weights=(q.log_weights + change).log_softmax(1))

    def whole(self, params: Tensor, frame: Frame | None = None) -> AttentionPosterior:
        """The posterior over the whole lattice, before `sampling` makes of it what is used.

        Arguments:
            params: Parameters, with shape (B, P, R, n).
            frame: How the lattice lies in the image that the prior is of.
        """
        logits, rest = params.flatten(1, 2).split((1, sum(self.sizes[1:])), dim=-1)
        q = AttentionPosterior(self, logits.squeeze(-1), rest, frame=frame)
        # The network's part is relative to the prior, which a fresh network so is about.
        positions, rotations = q.log_lattice_prior(self._priors)
        prior = (positions.unsqueeze(-1) + rotations.unsqueeze(-2)).flatten(1)
        return replace(q, log_weights=(q.log_weights + prior).log_softmax(1))


def gumbel(noise: Noise, purpose: str, like: Tensor) -> Tensor:
    """Standard Gumbel noise with the shape and type of `like` (B, M)."""
    return -(-noise.uniform(purpose, like.shape[1]).log()).log().to(like)


def _one_by_one(density: Callable[[Latents], Tensor], latents: Latents) -> Tensor:
    """A density (B,) of each of latents (..., B, ...): each needs all of the lattice."""
    *several, batch = latents.theta.shape
    # Not -1 for their number: z may be empty.
    flat = latents.map(
        lambda value: value.reshape(math.prod(several), batch, *value.shape[latents.theta.ndim :])
    )
    return torch.stack([density(flat[i]) for i in range(len(flat))]).reshape(latents.theta.shape)


def _columns(value: Tensor, columns: Tensor) -> Tensor:
    """Of `value` (B, M, ...), the columns (B, m) of each row: (B, m, ...)."""
    index = columns.reshape(*columns.shape, *(1,) * (value.ndim - 2))
    return value.gather(1, index.expand(-1, -1, *value.shape[2:]))


def _spread(weights: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Standard deviations (B, D) of a mixture with weights (B, M), means and stds (B, M, D)."""
    weights = weights.unsqueeze(-1)
    centre = (weights * mean).sum(1, keepdim=True)
    return (weights * (std**2 + (mean - centre) ** 2)).sum(1).sqrt()
