"""The Lightning module: steps, logging and the optimiser of any `SpatialVAE`."""

import logging
import sys
from collections.abc import Callable, Container, Iterable
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from svae.checks import at_least
from svae.ctf import CTF
from svae.datasets.base import Batch
from svae.elbo import ELBO
from svae.errors import UserError
from svae.finite import FiniteCheck, NotFinite, Suspect
from svae.geometry import pixel_size
from svae.inferred import Inferred, representation
from svae.latents import Latents
from svae.metrics import (
    MeanPerImage,
    NoClusters,
    PerImage,
    cluster,
    clustering_metrics,
    conformation_metrics,
    pose_metrics,
    small_upright,
    spectral_clusters,
)
from svae.metrics.bounds import importance_weighted_bound
from svae.metrics.clustering import FEWEST_IMAGES
from svae.model import SpatialVAE
from svae.noise import Noise
from svae.posteriors import Posterior
from svae.random_state import random_state, restore_random_state
from svae.schedules import scheduled
from svae.spikes import SpikeLimit

__all__ = ["VAEModule"]

log = logging.getLogger(__name__)

# How many steps a GPU runs before it is asked whether they were finite: asking waits for it.
_GPU_STEPS = 50

# How many images a message names.
_NAMED = 10

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]


class VAEModule(pl.LightningModule):
    """Trains and evaluates a model.

    Arguments:
        model: The model.
        optimizer: From parameters to an optimiser.
        scheduler: A schedule of the learning rate, as `svae.schedules.scheduled` takes it.
        seed: The seed of all noise.
        elbo_samples: Posterior samples per image in validation and test.
        iwae_samples: Samples of the importance-weighted bound in the test; 0 for none.
        num_labels: The number of clusters to look for in the test, where there are labels.
        max_gradient_spike: How many times its usual norm a gradient may have; larger ones are
            scaled down to that. Null for no limit.
    """

    def __init__(
        self,
        model: SpatialVAE,
        optimizer: OptimizerFactory,
        scheduler: Callable[..., Any],
        seed: int = 1,
        elbo_samples: int = 1,
        iwae_samples: int = 20,
        num_labels: int | None = None,
        max_gradient_spike: float | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.seed = seed
        self.elbo_samples = at_least("elbo_samples", elbo_samples, 1)
        self.iwae_samples = at_least("iwae_samples", iwae_samples, 0)
        self.num_labels = num_labels
        self.spikes = None if max_gradient_spike is None else SpikeLimit(max_gradient_spike)
        self._finite = FiniteCheck()
        self._newest: Batch = {}
        self._random: dict[str, Tensor] | None = None
        #: The objective of each image of the newest batch, (B,), for whoever shows it.
        self.newest_objective: Tensor | None = None

        # Where a prior trains on another term than its divergence, both are logged.
        self.replaced = model.posterior.replaced
        bound = ["elbo", "log_likelihood", *(f"kl_{name}" for name in model.posterior.terms)]
        bound += [f"optimised_kl_{name}" for name in self.replaced]
        # What training subtracts beside them, where it does (`ELBO.aids`).
        aids = {"guidance": model.second_look, "off_centre": model.centre_std_px}
        # A module may not be named `train`: that is a method of every module.
        self.means = nn.ModuleDict(
            {
                "train_": MeanPerImage(
                    [*bound, "objective", *(name for name, on in aids.items() if on is not None)]
                ),
                "val_": MeanPerImage(bound),
                "test_": MeanPerImage([*bound, "iwae_bound"] if iwae_samples else bound),
            }
        )
        self.per_image: PerImage | None = None
        #: What was inferred from every image of the newest validation or test, for figures.
        self.inferred: Inferred | None = None
        #: The cluster of every image of `inferred` after a test, by the suffix of the metrics;
        #: None where there is no label to compare with.
        self.clusters: dict[str, Tensor] | None = None

    @property
    def validated(self) -> list[str]:
        """The names of what every validation logs."""
        return [f"val/{name}" for name in self._means("val").names]

    def setup(self, stage: str) -> None:
        split = "test" if stage == "test" else "val"
        known = self.trainer.datamodule.splits[split]  # type: ignore[attr-defined]
        inferred, tests = self.model.priors, stage == "test"
        self.per_image = PerImage(
            Inferred.names_in(
                known,
                infers_theta="theta" in inferred,
                centre=tests and "shift" in inferred,
                upright=tests and self._has_clusters(known),
            )
        )

    def _has_clusters(self, known: Container[str]) -> bool:
        """Whether a test compares clusters with labels, where so much is known of its images."""
        return bool("label" in known and self.num_labels and self.model.z_dim)

    def on_train_start(self) -> None:
        # As late as can be: what is made and read before draws random numbers as well.
        if self._random is not None:
            restore_random_state(self._random, self.trainer.strategy.root_device)
            self._random = None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        noise = Noise(self.seed, self.global_step, batch["index"])
        elbo = self.model.training_elbo(
            batch["image"], noise, self.current_epoch, ctf=CTF.of(batch)
        )
        objective = elbo.objective(self.model.beta)
        self._update("train", elbo, objective=objective, **elbo.aids)
        self._finite.add_loss(batch["index"], objective)
        self._newest = batch
        self.newest_objective = objective.detach()
        if self.trainer.is_last_batch:
            # Here and not at the epoch's end: callbacks come before the module there.
            self._log_means("train")
            rate = self.trainer.optimizers[0].param_groups[0]["lr"]
            self.log("train/learning_rate", rate, on_step=False, on_epoch=True, batch_size=1)
        # Processes may have different shares of a batch, and gradients are averaged over them.
        sampler = self.trainer.train_dataloader.sampler  # type: ignore[union-attr]
        total = sampler.images_in(batch_idx)
        return -objective.sum() * (self.trainer.world_size / total)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        q = self.model.infer(batch["image"], ctf=CTF.of(batch))
        elbo = self._bound("val", batch, self._bounding(batch, q))
        self._update("val", elbo)
        self._collect(batch, q, elbo, q.mode())

    def on_validation_epoch_end(self) -> None:
        known = self._gather()
        self._check_validation(known)
        self._log_means("val")

    def _check_validation(self, known: Inferred) -> None:
        """Look at the bound of a validation; every process does so, and finds the same.

        Early stopping would otherwise end the run as if it were finished.

        Raises:
            NotFinite: It is NaN or infinite. The message names the epoch, and the images if their
                log-likelihoods tell them.
        """
        bound = self._means("val").compute().get("elbo")
        if bound is None or bound.isfinite() or self.trainer.sanity_checking:
            return
        images = known.index[~known.log_likelihood.isfinite()].tolist()
        named = f"for {len(images)} of the {len(known)} images: {self._called(images)}"
        raise NotFinite(
            f"validation (epoch {self.current_epoch}): the bound val/elbo is not finite "
            + (named if images else f"({bound.item():g}), with finite log-likelihoods")
        )

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        q = self.model.infer(batch["image"], ctf=CTF.of(batch))
        bounding = self._bounding(batch, q)
        more = {}
        if self.iwae_samples:
            noise = Noise(self.seed, "iwae", batch["index"])
            log_weights = self.model.importance_log_weights(
                batch["image"], noise, self.iwae_samples, bounding, ctf=CTF.of(batch)
            )
            more["iwae_bound"] = importance_weighted_bound(log_weights)
        elbo = self._bound("test", batch, bounding)
        self._update("test", elbo, **more)
        reference = None
        if "untransformed" in batch and "theta" in self.model.priors:
            reference = self.model.estimate(batch["untransformed"], ctf=CTF.of(batch)).theta
        latents = self.model.estimate(batch["image"], q, ctf=CTF.of(batch))
        self._collect(
            batch,
            q,
            elbo,
            latents,
            reference_theta=reference,
            centre=self.model.centre(latents) if "shift" in self.model.priors else None,
            upright=small_upright(batch["image"], latents) if self._has_clusters(batch) else None,
        )

    def on_test_epoch_end(self) -> None:
        self._log_means("test")
        known = self._gather()
        self.clusters = None
        if not known.isfinite():
            log.warning("what was inferred is not finite: no metrics of pose and clusters")
            return
        model, latents = self.model, known.latents
        sized = "scale" in model.priors
        metrics = pose_metrics(
            latents.theta if "theta" in model.priors else None,
            latents.shift if "shift" in model.priors else None,
            known.theta,
            known.shift,
            pixel_size(*model.image_shape[1:]),
            known.symmetry,
            known.reference_theta,
            known.centre,
            latents.log_scale if sized else None,
            known.scale if sized else None,
        )
        if known.conformation is not None and model.z_dim:
            metrics |= conformation_metrics(latents.z, known.conformation, known.theta)
        # A test cut short may leave fewer images than clusters; that must not cost the rest.
        wanted = self.num_labels or 0
        if known.upright is not None and len(known) >= max(wanted, FEWEST_IMAGES):
            assert known.representation is not None
            assert known.label is not None
            self.clusters = cluster(known.representation, latents.z, wanted, self.seed)
            try:
                self.clusters["_spectral"] = spectral_clusters(known.upright, wanted, self.seed)
            except NoClusters as error:
                log.warning("%s; the test goes on without these clusters", error)
            metrics |= clustering_metrics(self.clusters, known.label)
            self.inferred = replace(known, upright=None)  # as large as the images
        self.log_dict({f"test/{name}": value for name, value in metrics.items()})

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = self.make_optimizer(trained)
        steps = self.trainer.estimated_stepping_batches
        schedule = scheduled(self.make_scheduler, optimizer, steps)
        if isinstance(schedule["scheduler"], ReduceLROnPlateau):
            # Not by Lightning, which does it after the last checkpoint of an epoch is saved, so
            # that a run that goes on from there would miss it.
            schedule |= {"frequency": sys.maxsize}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_validation_end(self) -> None:
        for schedule in self.trainer.lr_scheduler_configs:
            if isinstance(schedule.scheduler, ReduceLROnPlateau):
                reached, monitor = self.trainer.callback_metrics, str(schedule.monitor)
                if monitor not in reached:
                    there = ", ".join(sorted(name for name in reached if name.startswith("val/")))
                    raise UserError(
                        f"scheduler.monitor: expected a metric that validation logs ({there}), "
                        f"got {monitor!r}"
                    )
                schedule.scheduler.step(reached[monitor].item())

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Lightning's clipping where the trainer asks for it, and that of spikes.

        Raises:
            NotFinite: On a processor the gradient that is about to be applied is not finite, on a
                GPU one of the last steps'.
        """
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        norm = get_total_norm(gradients) if self.spikes is None else self.spikes.limit(gradients)
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            norm = torch.zeros_like(norm)  # float16: the scaler leaves out such steps itself
        self._finite.add_step(self.global_step, norm)
        if self.device.type == "cpu" or len(self._finite) >= _GPU_STEPS:
            self.check_finite()

    def check_finite(self) -> None:
        """Look at the losses and gradients since the last time; every process does so.

        Raises:
            NotFinite: One is NaN or infinite. The message names the step and the images.
        """
        found = self._finite.first()
        if not self.trainer.strategy.reduce_boolean_decision(found is not None, all=False):
            return
        everyones: list[Suspect | None] = [found]
        if self.trainer.world_size > 1:
            everyones *= self.trainer.world_size
            torch.distributed.all_gather_object(everyones, found)
        suspects = [suspect for suspect in everyones if suspect is not None]
        step = min(suspect.step for suspect in suspects)
        suspects = [suspect for suspect in suspects if suspect.step == step]
        batch = sorted(i for suspect in suspects for i in suspect.of_batch)
        images, what = sorted(i for suspect in suspects for i in suspect.of_loss), "loss"
        if not images:
            images, what = self._with_bad_gradient(step, batch), "gradient"
        raise NotFinite(
            f"training step {step} (epoch {self.current_epoch}): the {what} is not finite for "
            f"{len(images)} of the {len(batch)} images of the batch: {self._called(images)}"
        )

    def _with_bad_gradient(self, step: int, batch: list[int]) -> list[int]:
        """The images of a step whose own gradients are not finite; all where none can be told.

        An image by itself is no batch to every network: batch normalisation refuses it.
        """
        index = self._newest["index"]
        # On a GPU the weights have changed since, and another process may have the image.
        if sorted(index.tolist()) != batch or step != self.global_step:
            return batch
        try:
            with torch.enable_grad(), self.trainer.precision_plugin.forward_context():
                found = [int(one) for one in index.split(1) if not self._finite_alone(step, one)]
        except Exception:  # of somebody's network; what is to be told is the gradient
            return batch
        return sorted(found) or batch

    def _finite_alone(self, step: int, one: Tensor) -> bool:
        """Whether the gradient of one image of the newest batch, by its index (1,), is finite."""
        row, ctf = self._newest["index"] == one, CTF.of(self._newest)
        elbo = self.model.training_elbo(
            self._newest["image"][row],
            Noise(self.seed, step, one),
            self.current_epoch,
            ctf=None if ctf is None else ctf[row],
        )
        trained = [p for p in self.model.parameters() if p.requires_grad]
        objective = elbo.objective(self.model.beta).sum()
        gradients = torch.autograd.grad(objective, trained, allow_unused=True)
        return all(bool(g.isfinite().all()) for g in gradients if g is not None)

    def _called(self, images: list[int]) -> str:
        """Images by their indices, and by their files where they have some."""
        names = self.trainer.datamodule.file_names  # type: ignore[attr-defined]
        called = [str(i) if names is None else f"{i} ({names[i]})" for i in images[:_NAMED]]
        return ", ".join(called) + ", ..." * (len(images) > _NAMED)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Nothing that is saved may come after a step that was not finite.
        self.check_finite()
        # What the epoch's means consist of so far, of every process.
        means = self._means("train")
        gathered = [self.trainer.strategy.all_gather(t) for t in (means.sums, means.counts)]
        size = len(means.names)
        checkpoint["train_means"] = [t.reshape(-1, size).cpu() for t in gathered]
        device, processes = self.trainer.strategy.root_device, self.trainer.world_size
        checkpoint["random_state"] = {
            name: self.trainer.strategy.all_gather(state.to(device)).reshape(processes, -1).cpu()
            for name, state in random_state(device).items()
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Of an older version there is none, and of another number of processes none that fits.
        states = checkpoint.get("random_state")
        if states is not None and len(states["cpu"]) == self.trainer.world_size:
            self._random = {name: s[self.trainer.global_rank] for name, s in states.items()}
        parts = checkpoint.get("train_means")
        if parts is None:  # of an older version, which saved at the ends of epochs only
            return
        means, rank = self._means("train"), self.trainer.global_rank
        if len(parts[0]) != self.trainer.world_size:  # the first process takes all
            parts = [p.sum(0, keepdim=True) * (rank == 0) for p in parts]
            rank = 0
        means.sums, means.counts = (p[rank].to(means.device) for p in parts)

    def _means(self, split: str) -> MeanPerImage:
        metric = self.means[f"{split}_"]
        assert isinstance(metric, MeanPerImage)
        return metric

    def _collect(
        self,
        batch: Batch,
        q: Posterior,
        elbo: ELBO,
        latents: Latents,
        **more: Tensor | None,
    ) -> None:
        """Keep what was inferred, and `more` of what `Inferred` has."""
        assert self.per_image is not None
        found = Inferred.from_batch(
            batch, latents, elbo.log_likelihood, representation(q, latents), **more
        )
        self.per_image.update(**found.tensors())

    def _gather(self) -> Inferred:
        assert self.per_image is not None
        self.inferred = Inferred.from_tensors(self.per_image.compute())
        self.per_image.reset()
        return self.inferred

    def _bounding(self, batch: Batch, q: Posterior) -> Posterior:
        """The posterior of which a bound is told: `q`, or if it has none that of one candidate."""
        if q.gives_bound:
            return q
        return self.model.infer(batch["image"], 1, ctf=CTF.of(batch))

    def _bound(self, split: str, batch: Batch, q: Posterior) -> ELBO:
        # The same noise at every evaluation, so that epochs and runs compare.
        noise = Noise(self.seed, split, batch["index"])
        held = split == "val" and self.current_epoch < self.model.z_delay_epochs
        return self.model.elbo(
            batch["image"],
            noise,
            q=q,
            samples=self.elbo_samples,
            hold_z=held,
            ctf=CTF.of(batch),
        )

    def _update(self, split: str, elbo: ELBO, **more: Tensor) -> None:
        values = dict(more)
        if elbo.is_bound:
            values |= {"elbo": elbo.value, "log_likelihood": elbo.log_likelihood}
        values |= {f"kl_{name}": kl for name, kl in elbo.kl.items()}
        values |= {f"optimised_kl_{name}": elbo.optimised_kl[name] for name in self.replaced}
        self._means(split).update(**{k: v.detach() for k, v in values.items()})

    def _log_means(self, split: str) -> None:
        metric = self._means(split)
        for name, value in metric.compute().items():
            # Already the mean over all images of all processes: there is nothing to reduce.
            shown = split == "val" and name == "elbo"
            self.log(
                f"{split}/{name}",
                value,
                prog_bar=shown,
                on_step=False,
                on_epoch=True,
                batch_size=1,
            )
        metric.reset()
