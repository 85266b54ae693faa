"""The Lightning module: steps, logging and the optimiser of any `SpatialVAE`."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn
from torch.optim import Optimizer

from svae.checks import at_least
from svae.datasets.base import Batch
from svae.elbo import ELBO
from svae.geometry import pixel_size
from svae.inferred import Inferred
from svae.metrics import MeanPerImage, PerImage, cluster, clustering_metrics, pose_metrics
from svae.metrics.bounds import importance_weighted_bound
from svae.metrics.clustering import FEWEST_IMAGES
from svae.model import SpatialVAE
from svae.noise import Noise
from svae.posteriors import Posterior
from svae.schedules import Schedule
from svae.spikes import SpikeLimit

__all__ = ["VAEModule"]

log = logging.getLogger(__name__)

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]


class VAEModule(pl.LightningModule):
    """Trains and evaluates a model.

    Arguments:
        model: The model.
        optimizer: From parameters to an optimiser.
        scheduler: From an optimiser and the number of training steps to a schedule.
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
        scheduler: Schedule,
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

        # Where a prior trains on another term than its divergence, both are logged.
        self.replaced = model.posterior.replaced
        bound = ["elbo", "log_likelihood", *(f"kl_{name}" for name in model.posterior.terms)]
        bound += [f"optimised_kl_{name}" for name in self.replaced]
        # A module may not be named `train`: that is a method of every module.
        self.means = nn.ModuleDict(
            {
                "train_": MeanPerImage([*bound, "objective"]),
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

    def setup(self, stage: str) -> None:
        split = "test" if stage == "test" else "val"
        known = self.trainer.datamodule.splits[split]  # type: ignore[attr-defined]
        inferred = self.model.priors
        self.per_image = PerImage(
            Inferred.names_in(known, "theta" in inferred, stage == "test" and "shift" in inferred)
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        noise = Noise(self.seed, self.global_step, batch["index"])
        elbo = self.model.training_elbo(batch["image"], noise, self.current_epoch)
        objective = elbo.objective(self.model.beta)
        self._update("train", elbo, objective=objective)
        self.log("objective", objective.detach().mean(), prog_bar=True, logger=False)
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
        q = self.model.infer(batch["image"])
        elbo = self._bound("val", batch, q)
        self._update("val", elbo)
        self._collect(batch, q, elbo)

    def on_validation_epoch_end(self) -> None:
        self._log_means("val")
        self._gather()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        q = self.model.infer(batch["image"])
        more = {}
        if self.iwae_samples:
            noise = Noise(self.seed, "iwae", batch["index"])
            log_weights = self.model.importance_log_weights(
                batch["image"], noise, self.iwae_samples, q
            )
            more["iwae_bound"] = importance_weighted_bound(log_weights)
        elbo = self._bound("test", batch, q)
        self._update("test", elbo, **more)
        reference = None
        if "untransformed" in batch and "theta" in self.model.priors:
            reference = self.model.infer(batch["untransformed"]).mode().theta
        centre = self.model.centre(q.mode()) if "shift" in self.model.priors else None
        self._collect(batch, q, elbo, reference, centre)

    def on_test_epoch_end(self) -> None:
        self._log_means("test")
        known = self._gather()
        self.clusters = None
        if not known.isfinite():
            log.warning("what was inferred is not finite: no metrics of pose and clusters")
            return
        model, latents = self.model, known.latents
        metrics = pose_metrics(
            latents.theta if "theta" in model.priors else None,
            latents.shift if "shift" in model.priors else None,
            known.theta,
            known.shift,
            pixel_size(*model.image_shape[1:]),
            known.symmetry,
            known.reference_theta,
            known.centre,
        )
        # A test cut short may leave fewer images than clusters; that must not cost the rest.
        wanted = self.num_labels or 0
        enough = len(known) >= max(wanted, FEWEST_IMAGES)
        if known.label is not None and wanted and enough and model.z_dim:
            assert known.representation is not None
            self.clusters = cluster(known.representation, latents.z, wanted, self.seed)
            metrics |= clustering_metrics(self.clusters, known.label)
        self.log_dict({f"test/{name}": value for name, value in metrics.items()})

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = self.make_optimizer(trained)
        steps = self.trainer.estimated_stepping_batches
        return {"optimizer": optimizer, "lr_scheduler": self.make_scheduler(optimizer, steps)}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Lightning's clipping where the trainer asks for it, and that of spikes."""
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        if self.spikes is not None:
            self.spikes.limit([p.grad for p in self.parameters() if p.grad is not None])

    def _means(self, split: str) -> MeanPerImage:
        metric = self.means[f"{split}_"]
        assert isinstance(metric, MeanPerImage)
        return metric

    def _collect(
        self,
        batch: Batch,
        q: Posterior,
        elbo: ELBO,
        reference_theta: Tensor | None = None,
        centre: Tensor | None = None,
    ) -> None:
        assert self.per_image is not None
        found = Inferred.from_batch(
            batch, q.mode(), elbo.log_likelihood, q.representation(), reference_theta, centre
        )
        self.per_image.update(**found.tensors())

    def _gather(self) -> Inferred:
        assert self.per_image is not None
        self.inferred = Inferred.from_tensors(self.per_image.compute())
        self.per_image.reset()
        return self.inferred

    def _bound(self, split: str, batch: Batch, q: Posterior) -> ELBO:
        # The same noise at every evaluation, so that epochs and runs compare.
        noise = Noise(self.seed, split, batch["index"])
        held = split == "val" and self.current_epoch < self.model.z_delay_epochs
        return self.model.elbo(batch["image"], noise, q=q, samples=self.elbo_samples, hold_z=held)

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
