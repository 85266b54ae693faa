r"""The spatial variational autoencoder: encoder, posterior, generator and likelihood put together.

.. math:: \mathrm{ELBO}(y) = E_{q(z, \theta, \Delta x | y)}[\log p(y | z, \theta, \Delta x)]
          - KL(q(z, \theta, \Delta x | y) || p(z, \theta, \Delta x))

References:
    Explicitly disentangling image content from translation and rotation with spatial-VAE
    (Bepler et al., 2019), equation 4; equation 5 where no pose is inferred.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from svae.agreement import most_agreed, poses_between
from svae.checks import at_least, declared, image_shape_of, positive
from svae.ctf import CTF
from svae.elbo import ELBO
from svae.encoders import MLP
from svae.engine import log_likelihood_in_chunks
from svae.geometry import (
    centre_of_mass,
    centre_of_points,
    pixel_grid,
    pixel_size,
    rotate,
    rotate_image,
    to_object_frame,
    transform_image,
    wrap_angle,
)
from svae.latents import Latents
from svae.likelihoods import AdditiveNoise, Likelihood
from svae.noise import Noise
from svae.pixels import Pixels, draw_pixels, every_few_pixels
from svae.posteriors import Attention, AttentionPosterior, Frame, Posterior, PosteriorHead
from svae.priors import Prior
from svae.refinement import refine
from svae.second_look import SecondLook

__all__ = ["SpatialVAE"]

_PIXELS_AT_ONCE = 4_000_000

_WITH_CTF = "where images come with a CTF (dataset.ctf=forward, or dataset.defocus_A)"

#: The part of the pixels that tells poses apart that differ by a large part of a circle, and that
#: directions for small steps can be taken from.
_FEW = 1 / 6
_FEWEST = 128

#: Of how many images in a step the decoded objects are held in the middle, one in so many, and at
#: how many points along a side these are looked at.
_HELD, _ACROSS = 8, 16


class SpatialVAE(nn.Module):
    """A variational autoencoder with content, angle and position as latent variables.

    The parts come as factories, because each needs sizes that the others decide.

    Arguments:
        image_shape: The shape of the images, (C, H, W).
        z_dim: The length of the content; may be 0.
        prior: The prior of each latent variable, named `z`, `theta`, `shift` and `scale`.
        encoder: From `image_shape` to a network with `out_features`.
        posterior: From `in_features`, `priors` and the encoder's `lattice` (None where it has
            none) to a `PosteriorHead`.
        generator: From `image_shape`, `z_dim` and `out_features` to a network from coordinates
            and content to pixel parameters.
        likelihood: From `image_shape` to a `Likelihood`.
        infer_theta: Whether the angle is inferred; otherwise it is zero (eq. 5).
        infer_shift: Whether the position is inferred; otherwise it is zero (eq. 5).
        infer_scale: Whether the size is inferred; otherwise it is 1, as in the papers.
        beta: The weight of the divergences in the training objective (beta-VAE; 1 for the bound);
            or that of some of them, by the names of the posterior's terms.
        pixels_per_image: How many random pixels of each image a training step scores; all of them
            if null. The estimate of the objective is unbiased; evaluation scores every pixel.
        pixel_focus: The part of them that is drawn by local contrast instead of anywhere.
        augment_rotation: Whether training turns the encoder's input at random (section 4.3).
        augment_mirror: Whether training takes each image or its mirror image, at random: for
            objects whose mirror images occur too, as galaxies and particles seen from behind.
        z_delay_epochs: For how many epochs training holds z at zero (section 4.3).
        centre_std_px: How far from the origin, the point whose place in the image is the shift,
            training expects the centres of mass of decoded objects, in pixels: the standard
            deviation of a normal distribution, whose negative logarithm is subtracted from the
            objective. The bound hardly minds where in an object its origin lies: it may be
            elsewhere in each kind of object, and in each training. None: nothing is subtracted.
        pose_candidates: In how many poses each image is shown to the encoder outside of training;
            more than one mends poses half a turn off (`infer`). Where no angle is inferred, one.
        refinement_steps: How many steps towards the most probable latents `estimate` takes from
            the posterior's mode; 0 for none. No bound and no training depends on it.
        group_order: The number of rotations of a group-equivariant encoder; null for another.
        second_look: Whether a second encoder, which sees each image with the pose removed that
            the first has found, corrects what that says (`SecondLook`); None: if the posterior
            finds few poses (`can_look_again`). Where no pose is inferred, none does.
        third_look: Whether outside of training that encoder looks once more, at the poses as
            corrected, to tell which way up the object is: at a posterior of several poses only.
            None: if there is a second look and such a posterior, and angles are inferred.
        second_encoder: From `image_shape` to that encoder, of one vector for each image; one like
            `encoder` if None, or an `MLP` where that has a lattice. It sees as much around the
            object as `encoder` has a `window` for, or all.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        z_dim: int,
        prior: Mapping[str, Prior],
        encoder: Callable[..., nn.Module],
        posterior: Callable[..., PosteriorHead],
        generator: Callable[..., nn.Module],
        likelihood: Callable[..., Likelihood],
        infer_theta: bool = True,
        infer_shift: bool = True,
        infer_scale: bool = False,
        beta: float | Mapping[str, float] = 1.0,
        pixels_per_image: int | None = None,
        pixel_focus: float = 0.0,
        augment_rotation: bool = False,
        augment_mirror: bool = False,
        z_delay_epochs: int = 0,
        centre_std_px: float | None = None,
        pose_candidates: int = 1,
        refinement_steps: int = 0,
        group_order: int | None = None,
        second_look: bool | None = False,
        third_look: bool | None = False,
        second_encoder: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.image_shape = image_shape_of(image_shape)
        self.z_dim = at_least("z_dim", z_dim, 0)
        self.pixels_per_image = pixels_per_image
        self.augment_rotation, self.augment_mirror = augment_rotation, augment_mirror
        self.z_delay_epochs = at_least("z_delay_epochs", z_delay_epochs, 0)
        infers = {"theta": infer_theta, "shift": infer_shift, "scale": infer_scale}
        wanted = ["z", *(name for name, asked in infers.items() if asked)]
        if missing := [name for name in wanted if name not in prior]:
            raise ValueError(f"prior: expected one for {', '.join(missing)}, got {list(prior)}")
        dims = getattr(prior["z"], "dims", z_dim)
        if dims != z_dim:
            raise ValueError(f"prior: expected one on the {z_dim} components of z, got {dims}")
        self._priors = nn.ModuleDict({name: prior[name] for name in wanted})
        for name in wanted:
            declared(f"prior.{name}", prior[name], "num_params", 0)
        self.likelihood = likelihood(image_shape=self.image_shape)
        declared("model.likelihood", self.likelihood, "params_per_channel")
        if not hasattr(self.likelihood, "scored_pixels"):
            raise ValueError(
                f"model.likelihood: {type(self.likelihood).__name__} has no scored_pixels; "
                "expected a constructor that calls super().__init__(image_shape, mask_radius_px)"
            )
        self.encoder = encoder(image_shape=self.image_shape)
        found = getattr(self.encoder, "group_order", None)
        if group_order not in (None, found):
            raise ValueError(
                f"group_order: expected that of the encoder, {found or 'null'}, got {group_order}"
            )
        self.posterior = posterior(
            in_features=declared("model.encoder", self.encoder, "out_features"),
            priors=self.priors,
            lattice=getattr(self.encoder, "lattice", None),
        )
        self.beta = _weights(beta, self.posterior.terms)
        self.generator = generator(
            image_shape=self.image_shape,
            z_dim=z_dim,
            out_features=self.likelihood.out_features,
        )
        self.second_look = None
        if not (second_encoder is None or callable(second_encoder)):
            raise ValueError(
                "second_encoder: expected an encoder, as "
                f"+model/encoder@model.second_encoder=cnn gives one, got {second_encoder!r}"
            )
        if second_look is None:
            second_look = self.posterior.can_look_again
        if second_look and len(wanted) > 1:
            if not self.posterior.can_look_again:
                raise ValueError(
                    "second_look: expected false where the posterior has contents at all points "
                    "of its lattice; with model/posterior/sampling=truncated they are few"
                )
            if second_encoder is None:
                second_encoder = MLP if hasattr(self.encoder, "lattice") else encoder
            self.second_look = SecondLook(
                self.image_shape,
                second_encoder,
                sum(self.posterior.sizes),
                getattr(self.encoder, "window", None),
            )
        twice = self.second_look is not None
        several = twice and infer_theta and isinstance(self.posterior, Attention)
        if third_look and not several:
            raise ValueError(
                "third_look: expected false where no second look chooses from several angles, as "
                "one of model/posterior=attention does"
            )
        self.third_look = several if third_look is None else third_look
        if len(wanted) > 1 and not self.generator.coordinate_based:
            raise ValueError(
                "infer_theta, infer_shift, infer_scale: expected false, because the generator "
                f"{type(self.generator).__name__} has no coordinates that a pose could move"
            )
        if pixels_per_image is not None:
            at_least("pixels_per_image", pixels_per_image, 1)
            if not self.generator.coordinate_based:
                raise ValueError(
                    f"pixels_per_image: expected null for {type(self.generator).__name__}, "
                    "which generates all pixels at once"
                )
        if not 0 <= pixel_focus < 1:
            raise ValueError(f"pixel_focus: expected a fraction below 1, got {pixel_focus!r}")
        self.pixel_focus = pixel_focus
        self.pose_candidates = at_least("pose_candidates", pose_candidates, 1)
        self.refinement_steps = at_least("refinement_steps", refinement_steps, 0)
        if centre_std_px is not None and not infer_shift:
            raise ValueError("centre_std_px: expected null where infer_shift is false")
        self.centre_std_px = (
            None if centre_std_px is None else positive("centre_std_px", centre_std_px)
        )
        if augment_rotation and not infer_theta:
            raise ValueError("augment_rotation: expected false where infer_theta is false")
        # Not a parameter: it follows from the image shape, and stays out of checkpoints.
        grid = pixel_grid(*self.image_shape[1:]).float()
        self.register_buffer("grid", grid, persistent=False)
        self.grid: Tensor
        sparse = every_few_pixels(*self.image_shape[1:], _ACROSS, self.likelihood.scored_pixels)
        self.register_buffer("_sparse", sparse, persistent=False)
        self._sparse: Tensor

    @property
    def priors(self) -> dict[str, Prior]:
        """The prior of each inferred variable, named `z`, `theta`, `shift` and `scale`."""
        return cast(dict[str, Prior], dict(self._priors.items()))

    def compile(self, *args: Any, **options: Any) -> None:
        """`torch.compile` the networks, at their first use; the rest is little beside them.

        Arguments:
            args, options: Those of `torch.compile`.
        """
        self.encoder.compile(*args, **options)
        if self.second_look is not None:
            self.second_look.encoder.compile(*args, **options)
        self.generator.compile(*args, **options)

    def check_ctf(self) -> None:
        """Raise ValueError if the model cannot be trained on images that come with a CTF.

        What is decoded is filtered as a whole, so that no pixel has a mean of its own, and noise
        has to be added to the mean.
        """
        self._check_additive()
        if self.pixels_per_image is not None:
            raise ValueError(
                f"model.pixels_per_image: expected null {_WITH_CTF}, which takes all pixels of an "
                f"image, got {self.pixels_per_image}"
            )

    def _check_additive(self) -> None:
        if not isinstance(self.likelihood, AdditiveNoise):
            raise ValueError(
                f"model/likelihood: expected gaussian or gaussian_per_pixel {_WITH_CTF}, got "
                f"{type(self.likelihood).__name__}"
            )

    def infer(
        self, image: Tensor, candidates: int | None = None, *, ctf: CTF | None = None
    ) -> Posterior:
        """The approximate posterior of images with shape (B, C, H, W).

        With more than one candidate, every image is also encoded in other poses, these are removed
        from the posterior again, and one posterior is kept. Of an encoder without a lattice, the
        poses are equal parts of a circle, and the best bound at the mode is kept: its one guess
        of an angle is often half a turn off, and the generator can tell. Of one with a lattice,
        which has seen all turns, they lie between its points, and that is kept whose angle most
        agree on: what remains wrong is the choice between two angles at which an object looks
        nearly the same, and there it is the interpolation of the image that decides. Bounds stay
        bounds, except for positions that lie on a lattice (`AttentionPosterior.settled`).

        Arguments:
            image: Images, with shape (B, C, H, W).
            candidates: The number of poses; by default the model's `pose_candidates`.
            ctf: As in `log_likelihood`, for the bound of the candidates.
        """
        self._check_shape(image)
        candidates = self.pose_candidates if candidates is None else candidates
        if candidates == 1 or "theta" not in self.priors:
            return self._posterior(image)
        if isinstance(self.posterior, Attention):
            return self._infer_by_agreement(image, self.posterior, candidates)
        turns = torch.arange(candidates, device=image.device) * (2 * torch.pi / candidates)
        with torch.no_grad():
            # The same pixels of an image whichever batch it comes in.
            noise = Noise(0, "candidates", turns.new_zeros(len(image), dtype=torch.long))
            pixels = self._some_pixels(image, noise, self._few_pixels(ctf), 0.5)
            scores = [
                self._bound_at_mode(image, turn.expand(len(image)), pixels, ctf) for turn in turns
            ]
        return self._infer_turned(image, turns[torch.stack(scores).argmax(0)])

    def _infer_by_agreement(self, image: Tensor, head: Attention, candidates: int) -> Posterior:
        """The posterior of the image in one of several poses: of that which most agree with.

        It is moved as a whole to the mean of those that agree.
        """
        count = len(image)
        turns, shifts = (move.to(image) for move in poses_between(head.lattice, candidates))
        modes, spreads = [], []
        with torch.no_grad():
            for turn, shift in zip(turns, shifts, strict=True):
                turn, shift = turn.expand(count), shift.expand(count, 2)
                seen, frame = transform_image(image, turn, shift), (-turn, -shift)
                if self.second_look is None:
                    q = head.whole(self._params(seen), frame)  # a second look is at a few points
                else:
                    q = cast(AttentionPosterior, self._posterior(seen, frame=frame))
                modes.append(q.mode())
                spreads.append(q.spread_of_angles())
            agreed = most_agreed(Latents.stack(modes), spreads, head.lattice)
        turn, shift = turns[agreed.number], shifts[agreed.number]
        found = self._posterior(transform_image(image, turn, shift), frame=(-turn, -shift))
        q = cast(AttentionPosterior, found)
        moved = q.turned(agreed.turn).shifted(agreed.move).added(agreed.z, agreed.log_scale)
        return moved.settled()

    def _params(self, image: Tensor) -> Tensor:
        """The parameters of the posterior of images."""
        # An encoder of patches needs many times the memory of its images.
        decide = getattr(self.encoder, "images_at_once", None)
        parts = [image] if decide is None else image.split(decide(image.device))
        return torch.cat([self.posterior.params(self.encoder(part)) for part in parts])

    def _posterior(
        self, image: Tensor, noise: Noise | None = None, frame: Frame | None = None
    ) -> Posterior:
        """The posterior of images; that of a training step where its noise is given.

        Arguments:
            image: What is encoded.
            noise: That of the training step.
            frame: How it lies in the image of which the posterior is, if that is another.
        """
        params = self._params(image)
        if self.second_look is not None:
            look = partial(self.second_look, image)
            q = self.posterior.looked_again(params, look, noise, frame)
            if self.third_look and noise is None:
                return cast(Attention, self.posterior).turned_over(
                    cast(AttentionPosterior, q), look
                )
            return q
        if noise is None:
            return self.posterior(params, frame)
        return self.posterior.trained(params, noise, frame)

    def _infer_turned(self, image: Tensor, turn: Tensor, noise: Noise | None = None) -> Posterior:
        """The posterior from the images turned by `turn` (B,), the turn removed again."""
        frame = -turn, turn.new_zeros(len(turn), 2)
        return self._posterior(rotate_image(image, turn), noise, frame)

    def _few_pixels(self, ctf: CTF | None) -> int | None:
        """How many pixels are enough for what needs no exact number; None for all."""
        if ctf is not None or not self.generator.coordinate_based:
            return None
        return max(int(len(self.likelihood.scored_pixels) * _FEW), _FEWEST)

    def _some_pixels(
        self, image: Tensor, noise: Noise, count: int | None, focus: float
    ) -> Pixels | None:
        """Some of the scored pixels of each image; None for all."""
        scored = self.likelihood.scored_pixels
        if count is None or count >= len(scored):
            return None
        return draw_pixels(image, noise, scored, count, focus)

    def _bound_at_mode(
        self,
        image: Tensor,
        turn: Tensor,
        pixels: Pixels | None = None,
        ctf: CTF | None = None,
    ) -> Tensor:
        """Log-likelihood at the posterior's mode less the divergences, with shape (B,)."""
        q = self._infer_turned(image, turn)
        kl = torch.stack(list(q.kl(self.priors).values())).sum(0)
        return self._score(ctf)(image, q.mode()[None], pixels).squeeze(0) - kl

    def elbo(
        self,
        image: Tensor,
        noise: Noise,
        *,
        q: Posterior | None = None,
        samples: int = 1,
        pixels: int | None = None,
        hold_z: bool = False,
        centred: bool = False,
        ctf: CTF | None = None,
    ) -> ELBO:
        """The bound of every image, estimated from posterior samples (spatial-VAE eq. 4).

        Arguments:
            image: Images, with shape (B, C, H, W).
            noise: Where the randomness comes from.
            q: The posterior of the images, where `infer` was asked already.
            samples: The number of posterior samples.
            pixels: How many pixels per image are scored; the rest is estimated from them, without
                bias. All by default.
            hold_z: Whether the generator sees z = 0 (section 4.3).
            centred: Whether it has `off_centre`.
            ctf: As in `log_likelihood`.
        """
        q = self.infer(image, ctf=ctf) if q is None else q
        latents, weights = q.rsample(samples, noise)
        if hold_z:
            latents = latents.without_content()
        subset = self._some_pixels(image, noise, pixels, self.pixel_focus)
        log_likelihood = self._score(ctf)(image, latents, subset, weights)
        kl = q.kl(self.priors)
        if (excess := q.excess(latents, self.priors)) is not None:
            kl = kl | {"lattice": kl["lattice"] + (weights * excess).sum(0)}
        return ELBO(
            log_likelihood=(weights * log_likelihood).sum(0),
            kl=kl,
            optimised_kl=q.optimised_kl(self.priors) if self.posterior.replaced else kl,
            is_bound=q.gives_bound,
            guidance=q.guidance,
            off_centre=self._off_centre(latents.z[0]) if centred else None,
        )

    def _off_centre(self, z: Tensor) -> Tensor:
        """-log of the density of the decoded objects' centres of mass, up to a constant, (B,).

        The mean over one object in eight, of this process, at few points, for every image. The
        generator is moved by it, and no content.
        """
        assert self.centre_std_px is not None
        of_some, points = z[::_HELD].detach(), self.grid[self._sparse]
        coords = points.expand(len(of_some), -1, -1)
        mean = self._mean(self.generator(coords, of_some), coords).float()
        centre = centre_of_points(mean.mT, points) / pixel_size(*self.image_shape[1:])
        density = 0.5 * (centre / self.centre_std_px).square().sum(-1)
        return density.mean().expand(len(z))

    def training_elbo(
        self, image: Tensor, noise: Noise, epoch: int, *, ctf: CTF | None = None
    ) -> ELBO:
        """`elbo` with the model's training aids, in the given epoch.

        With `augment_mirror` the bound is that of the images as mirrored.

        With `augment_rotation` the encoder sees each image turned by a random angle, which is then
        removed from the inferred pose (section 4.3): from the posterior as a whole, its divergence
        included, so that the bound remains one.
        """
        if self.augment_mirror:
            mirrored = noise.uniform("mirror") < 0.5
            image = torch.where(mirrored[:, None, None, None], image.flip(-1), image)
            ctf = None if ctf is None else ctf.mirrored(mirrored)
        if self.augment_rotation:
            turn = noise.uniform("turn").to(image) * 2 * torch.pi
            q = self._infer_turned(image, turn, noise)
        else:
            q = self._posterior(image, noise)
        return self.elbo(
            image,
            noise,
            q=q,
            pixels=self.pixels_per_image,
            hold_z=epoch < self.z_delay_epochs,
            centred=self.centre_std_px is not None,
            ctf=ctf,
        )

    def log_likelihood(
        self,
        image: Tensor,
        latents: Latents,
        pixels: Pixels | None = None,
        weights: Tensor | None = None,
        *,
        ctf: CTF | None = None,
    ) -> Tensor:
        """Log-likelihood of every image given latents, in nats (spatial-VAE eq. 2).

        Arguments:
            image: Images, with shape (B, C, H, W).
            latents: Latents, with shape (S, B, ...).
            pixels: The pixels of each image to score; all by default.
            weights: With shape (S, B), the weights that the results will have in what is
                differentiated, where they are known: gradients then take no second pass.
            ctf: What the microscope made of the images, if that is known. The mean is decoded at
                all pixels and filtered by it; the noise is not. Without `pixels`.

        Returns:
            The log-likelihoods, with shape (S, B).
        """
        if ctf is not None:
            self._check_additive()
            if pixels is not None:
                raise ValueError("pixels: expected None with a CTF, which takes all of them")
        count, batch = latents.theta.shape
        target = self._flat(image)
        scored = self.likelihood.scored_pixels
        of = torch.arange(batch, device=image.device).repeat(count)  # the image of each row
        whole = ctf is not None or not self.generator.coordinate_based

        def score(part: Latents, rows: slice, columns: slice) -> Tensor:
            """What the pixels `columns` of the images `rows` add, with shape (b,)."""
            images = of[rows]
            places = scored[columns] if pixels is None else pixels.places[images, columns]
            grid = self.grid if whole else self.grid[places]
            coords = to_object_frame(grid, *part.pose)  # (b, n, 2)
            params = self.generator(coords, part.z)
            known = target[images.unsqueeze(1), places]
            if isinstance(self.likelihood, AdditiveNoise):
                mean = self._mean(params, coords, None if ctf is None else ctf[images])
                if whole:
                    params, mean = params[:, scored], mean[:, scored]
                log_prob = self.likelihood.log_prob(params, known, mean)
            else:
                log_prob = self.likelihood.log_prob(params[:, scored] if whole else params, known)
            if pixels is not None:
                log_prob = log_prob * pixels.weight[images, columns]
            return log_prob.sum(-1)

        flat = latents.map(lambda value: value.flatten(0, 1))
        decide = getattr(self.generator, "pixels_at_once", None)
        at_once = None if decide is None else decide(image.device)
        if at_once is None:
            return score(flat, slice(None), slice(None)).unflatten(0, (count, batch))
        length = len(scored) if pixels is None else pixels.places.shape[-1]
        if ctf is not None:
            # Whole images, of which the generator keeps no more than what it decodes.
            length = len(self.grid)
            at_once = max(at_once, length)
        if count * batch * length <= at_once:  # one chunk: there is no memory to save
            return score(flat, slice(None), slice(None)).unflatten(0, (count, batch))
        parameters = [*self.generator.parameters(), *self.likelihood.parameters()]
        value = log_likelihood_in_chunks(
            score,
            flat,
            parameters,
            pixels=length,
            at_once=at_once,
            weights=None if weights is None else weights.flatten(),
        )
        return value.unflatten(0, (count, batch))

    def _score(self, ctf: CTF | None) -> Callable[..., Tensor]:
        """`log_likelihood` of images that were seen through a CTF, if through one."""
        return self.log_likelihood if ctf is None else partial(self.log_likelihood, ctf=ctf)

    def _mean(self, params: Tensor, coords: Tensor, ctf: CTF | None = None) -> Tensor:
        """The expected pixels (B, N, C), from parameters (B, N, K) at object-frame coordinates.

        With a CTF, N are all pixels of an image.
        """
        if not isinstance(self.likelihood, AdditiveNoise):
            return self.likelihood.mean(params)
        mean = self.likelihood.mean(params, coords)
        if ctf is None:
            return mean
        return self._flat(ctf.filtered(self._images(mean), self.likelihood.ctf_padding))

    def _images(self, pixels: Tensor) -> Tensor:
        return rearrange(pixels, "b (h w) c -> b c h w", h=self.image_shape[1])

    @staticmethod
    def _flat(images: Tensor) -> Tensor:
        return rearrange(images, "b c h w -> b (h w) c")

    def importance_log_weights(
        self,
        image: Tensor,
        noise: Noise,
        samples: int,
        q: Posterior | None = None,
        *,
        ctf: CTF | None = None,
    ) -> Tensor:
        """log p(y, latents) - log q(latents | y) of posterior samples, with shape (samples, B).

        A few samples at a time, so that many of them need no more memory. Arguments as in `elbo`.
        """
        q = self.infer(image, ctf=ctf) if q is None else q
        latents, _ = q.rsample(samples, noise)
        group = max(1, _PIXELS_AT_ONCE // (len(image) * len(self.likelihood.scored_pixels)))
        log_likelihood = torch.cat(
            [
                self._score(ctf)(image, latents[start : start + group])
                for start in range(0, samples, group)
            ]
        )
        return log_likelihood + q.log_prior(latents, self.priors) - q.log_prob(latents)

    @torch.no_grad()
    def estimate(
        self, image: Tensor, q: Posterior | None = None, *, ctf: CTF | None = None
    ) -> Latents:
        """The latents to report of images: the posterior's mode, or better (`refinement_steps`).

        Arguments:
            image: Images, with shape (B, C, H, W).
            q: Their posterior, where `infer` was asked already.
            ctf: As in `log_likelihood`.

        Returns:
            The latents, with shape (B, ...), at which log-likelihood and log-prior together are
            no less than at the mode.
        """
        mode = (self.infer(image, ctf=ctf) if q is None else q).mode()
        if not self.refinement_steps:
            return mode
        few = self._few_pixels(ctf)
        unknowns = sum(mode.values()[name].shape[1:].numel() for name in self.priors)
        per_image = (len(self.grid) if few is None else few) * self.image_shape[0]
        at_once = max(1, _PIXELS_AT_ONCE // (per_image * (unknowns + 1)))
        rows = torch.arange(len(image), device=image.device).split(at_once)
        # In float32, since bfloat16 would round away what a step gains.
        with (
            torch.inference_mode(False),
            torch.autocast(image.device.type, enabled=False),
            _frozen(self),
        ):
            return Latents.cat(
                [
                    self._refined(image[own], mode[own], few, None if ctf is None else ctf[own])
                    for own in rows
                ]
            )

    def _refined(self, image: Tensor, start: Latents, few: int | None, ctf: CTF | None) -> Latents:
        """`estimate` of as many images as can be refined at once, from where `start` is."""
        noise = Noise(0, "refinement", torch.zeros(len(image), device=image.device).long())
        pixels = self._some_pixels(image, noise, few, 0.5)
        together = torch.ones_like(start.theta)[None]

        def log_joint(latents: Latents) -> Tensor:
            value = self._score(ctf)(image, latents[None], weights=together).squeeze(0)
            places = latents.values()
            for name, prior in self.priors.items():
                place = places[name]
                # A posterior with a lattice counts its angles from 0 to a whole turn.
                value = value + prior.log_prob(wrap_angle(place) if name == "theta" else place)
            return value

        units = {name: prior.width for name, prior in self.priors.items()}
        return refine(
            start,
            units,
            log_joint,
            lambda latents: self._expected(latents, pixels, ctf),
            self.refinement_steps,
        )

    def _expected(
        self, latents: Latents, pixels: Pixels | None, ctf: CTF | None
    ) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the scored pixels, or of some that stand for them."""
        whole = ctf is not None or not self.generator.coordinate_based
        scored = self.likelihood.scored_pixels
        grid = self.grid if whole else self.grid[scored if pixels is None else pixels.places]
        coords = to_object_frame(grid, *latents.pose)
        params = self.generator(coords, latents.z)
        mean, std = self._mean(params, coords, ctf), self.likelihood.stddev(params)
        if whole:
            mean, std = mean[:, scored], std[:, scored]
        if pixels is not None:
            std = std / pixels.weight.sqrt().unsqueeze(-1)
        return mean.flatten(1), std.flatten(1)

    @torch.no_grad()
    def encode(self, image: Tensor, batch_size: int = 500, *, ctf: CTF | None = None) -> Latents:
        """The `estimate` of images with shape (B, C, H, W); see `infer` for more."""
        image = self._images_given(image)
        rows = torch.arange(len(image)).split(at_least("batch_size", batch_size, 1))
        parts = zip(self._batches(image, batch_size), rows, strict=True)
        return Latents.cat([self.estimate(part, ctf=self._own(ctf, own)) for part, own in parts])

    @torch.no_grad()
    def decode(self, latents: Latents, batch_size: int = 500, *, ctf: CTF | None = None) -> Tensor:
        """The expected images of latents, on the model's device.

        Arguments:
            latents: Latents, with shape (B, ...).
            batch_size: How many are decoded at once.
            ctf: What a microscope makes of them; by default nothing, so that the object is seen
                as it is.

        Returns:
            The images, with shape (B, C, H, W).
        """
        if ctf is not None:
            self._check_additive()
        self._check_latents(latents)
        images = []
        for rows in torch.arange(len(latents)).split(at_least("batch_size", batch_size, 1)):
            part = latents[rows].map(lambda value: value.to(self.grid))
            coords = to_object_frame(self.grid, *part.pose)
            params = self.generator(coords, part.z)
            images.append(self._images(self._mean(params, coords, self._own(ctf, rows))))
        return torch.cat(images)

    def _own(self, ctf: CTF | None, rows: Tensor) -> CTF | None:
        return None if ctf is None else ctf[rows].to(self.grid.device)

    @torch.no_grad()
    def centre(self, latents: Latents) -> Tensor:
        """Where the centre of mass of each decoded object lies in its image, (B, 2), grid units.

        The origin of the object frame, which the shift is the place of, is a model's own choice,
        and can be another for each kind of object. This is the same point of all of them.

        Arguments:
            latents: Latents, with shape (B, ...).
        """
        latents = latents.map(lambda value: value.to(self.grid))
        upright = self.decode(latents.without_pose())
        within = centre_of_mass(upright, self.likelihood.scored_pixels)
        within = within * latents.scale.unsqueeze(-1)
        return latents.shift + rotate(within, latents.theta)

    def _check_latents(self, latents: Latents) -> None:
        expected = f"latents: expected Latents with z (B, {self.z_dim}) and theta (B,), got"
        if not isinstance(latents, Latents):
            raise ValueError(f"{expected} {type(latents).__name__}")
        if latents.z.ndim != 2 or latents.z.shape[1] != self.z_dim:
            raise ValueError(
                f"{expected} z {tuple(latents.z.shape)} and theta {tuple(latents.theta.shape)}"
            )

    def _images_given(self, image: Any) -> Tensor:
        """Images as a tensor (B, C, H, W), from what is one, or an array, or grey (B, H, W)."""
        try:
            image = torch.as_tensor(image)
        except (RuntimeError, TypeError, ValueError) as error:
            more = ', of which take ["image"]' if isinstance(image, Mapping) else ""
            raise ValueError(
                "image: expected a tensor or an array of shape "
                f"(B, {', '.join(map(str, self.image_shape))}), got {type(image).__name__}{more}"
            ) from error
        if image.ndim == 3 and self.image_shape[0] == 1:
            image = image.unsqueeze(1)
        self._check_shape(image)
        return image

    def _check_shape(self, image: Tensor) -> None:
        if image.shape[1:] != self.image_shape:
            raise ValueError(
                f"image: expected shape (B, {', '.join(map(str, self.image_shape))}), "
                f"got {tuple(image.shape)}"
            )

    def _batches(self, image: Tensor, batch_size: int) -> Iterator[Tensor]:
        self.likelihood.check(image)
        for part in image.split(batch_size):
            yield part.to(self.grid)


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """No gradients of the parameters, which would cost as much as those of the latents."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _weights(beta: float | Mapping[str, float], terms: Sequence[str]) -> dict[str, float]:
    """The weight of each divergence; 1 where none is given."""
    if not isinstance(beta, Mapping):
        return dict.fromkeys(terms, positive("beta", beta))
    for name, value in beta.items():
        if name not in terms:
            raise ValueError(f"beta: expected names among {', '.join(terms)}, got {name!r}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
            raise ValueError(f"beta.{name}: expected a number of at least 0, got {value!r}")
    return dict.fromkeys(terms, 1.0) | dict(beta)
