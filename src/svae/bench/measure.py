"""What is measured, each in a process of its own: training steps and matrix products."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import open_dict
from torch import Tensor
from torch.autograd import DeviceType
from torch.nn.functional import linear
from torch.profiler import ProfilerActivity, profile

from svae.bench.alone import peak_memory
from svae.hardware import keep_freed_memory
from svae.instantiate import instantiate
from svae.model import SpatialVAE
from svae.noise import Noise
from svae.paths import conf_dir
from svae.spikes import SpikeLimit

__all__ = ["Work", "measure_products", "measure_reference", "measure_time", "measure_training"]

FEWEST = 3
#: A count of operations takes no more images than this.
COUNTED_IMAGES = 2


@dataclass(frozen=True)
class Work:
    """A training, and what it runs on.

    Arguments:
        overrides: What `svae.train` is given.
        image_shape: The shape of the images, (C, H, W).
        batch_size: The number of images in a step.
        accelerator: `cpu` or `gpu`.
        precision: `32-true` or `bf16-mixed`.
    """

    overrides: tuple[str, ...]
    image_shape: tuple[int, int, int]
    batch_size: int
    accelerator: str
    precision: str


class Training:
    """A freshly initialised model on random black and white images; steps as `VAEModule` has them.

    Arguments:
        work: What is trained.
        plain: Whether all pixels are decoded in one piece, by nothing but autograd, in memory as
            the system hands it out.
    """

    def __init__(self, work: Work, plain: bool = False) -> None:
        if not plain:
            keep_freed_memory()  # as every command does
        with initialize_config_dir(conf_dir(), version_base="1.3"):
            cfg = compose("train", overrides=list(work.overrides))
        self.libraries_mb = memory_mb(device_of(work.accelerator))
        self.device = device_of(work.accelerator)
        self.half = work.precision == "bf16-mixed"
        self.seed = cfg.seed
        torch.manual_seed(cfg.seed)
        image = torch.rand(work.batch_size, *work.image_shape).round()
        with open_dict(cfg):
            cfg.model.image_shape = list(work.image_shape)
            if cfg.model.likelihood._target_ == "svae.likelihoods.fitting":
                # Not above: it imports far more than a step needs.
                from svae.run import resolve_likelihood

                resolve_likelihood(cfg.model, [image])
        self.model: SpatialVAE = instantiate(cfg.model, "model").to(self.device)
        if plain:
            self.decode_plainly()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = instantiate(cfg.optimizer, "optimizer")(self.trained)
        spike = cfg.max_gradient_spike
        self.spikes = None if spike is None else SpikeLimit(spike).to(self.device)
        self.image = image.to(self.device)
        self.steps = 0

    def decode_plainly(self) -> None:
        """Decode all pixels in one piece from now on, with everything kept for autograd."""
        generator: Any = self.model.generator
        if hasattr(generator, "chunk_pixels"):
            generator.chunk_pixels = None

    def step(self) -> None:
        """One training step."""
        self.differentiate()
        self.update()

    def differentiate(self) -> None:
        """The forward and the backward pass."""
        index = torch.arange(len(self.image), device=self.device)
        noise = Noise(self.seed, self.steps, index)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            # As in all epochs but perhaps the first ones, in which z is held at zero.
            elbo = self.model.training_elbo(self.image, noise, self.model.z_delay_epochs)
            loss = -elbo.objective(self.model.beta).sum() / len(self.image)
        loss.backward()

    def update(self) -> None:
        """What follows: its time does not depend on the images."""
        if self.spikes is not None:
            self.spikes.limit([p.grad for p in self.trained if p.grad is not None])
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1


def measure_time(work: Work, seconds: float) -> dict[str, float]:
    """The time of a training step, and the memory that it takes."""
    return time_of(Training(work), seconds)


def measure_training(work: Work, seconds: float) -> dict[str, float]:
    """The same with the operations of a step, and its share outside of kernels."""
    training = Training(work)
    found = time_of(training, seconds)
    found["outside_kernels_percent"] = 100 * outside_kernels(training)
    # Last, because it changes the training.
    found["operations_per_step"] = operations(training)
    return found


def measure_reference(work: Work, images: int, seconds: float) -> dict[str, float]:
    """The step in plain float32, its passes measured on some images and scaled to all."""
    few = Work(work.overrides, work.image_shape, images, work.accelerator, "32-true")
    training = Training(few, plain=True)
    passes, update = durations([training.differentiate, training.update], training.device, seconds)
    return {
        "reference_images": images,
        "reference_seconds_per_step": passes * work.batch_size / images + update,
        "reference_peak_memory_mb": memory_mb(training.device),
    }


def measure_products(
    accelerator: str, precision: str, shapes: Sequence[tuple[int, int, int]], seconds: float
) -> dict[str, float]:
    """TFLOP/s of products of (m, k) and (k, n) matrices, by `mxkxn`.

    Arguments:
        accelerator: `cpu` or `gpu`.
        precision: `32-true` or `bf16-mixed`.
        shapes: m, k and n of each product.
        seconds: How long to measure each.
    """
    device = device_of(accelerator)
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    rates = {}
    for m, k, n in shapes:
        x = torch.randn(m, k, device=device, dtype=dtype)
        weight = torch.randn(n, k, device=device, dtype=dtype)

        def product(x: Tensor = x, weight: Tensor = weight) -> None:
            linear(x, weight)

        (per_product,) = durations([product], device, seconds)
        rates[f"{m}x{k}x{n}"] = 2e-12 * m * k * n / per_product
    return rates


def time_of(training: Training, seconds: float) -> dict[str, float]:
    """The time of a training step, and the most memory that the process had until then."""
    (per_step,) = durations([training.step], training.device, seconds)
    return {
        "seconds_per_step": per_step,
        "images_per_second": len(training.image) / per_step,
        "peak_memory_mb": memory_mb(training.device),
        "libraries_memory_mb": training.libraries_mb,
    }


def durations(
    actions: Sequence[Callable[[], None]], device: torch.device, seconds: float
) -> list[float]:
    """The median seconds that each of some actions takes, one after the other, again and again."""
    for action in actions:
        action()
    found: list[list[float]] = []
    wait_for(device)
    start = last = perf_counter()
    while len(found) < FEWEST or last - start < seconds:
        laps = []
        for action in actions:
            action()
            wait_for(device)
            now = perf_counter()
            laps.append(now - last)
            last = now
        found.append(laps)
    return [median(laps) for laps in zip(*found, strict=True)]


def outside_kernels(training: Training) -> float:
    """The part of a step in which no kernel of torch is at work."""
    device = training.device
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise it prints when it starts and stops
    with profile(activities=activities) as profiler:
        wait_for(device)
        start = perf_counter()
        training.step()
        wait_for(device)
        elapsed = perf_counter() - start
    if on_gpu:
        # Annotations are there as well, for instance of the optimiser's step as a whole.
        busy = sum(
            event.time_range.elapsed_us()
            for event in profiler.events()
            if event.device_type == DeviceType.CUDA and not event.is_user_annotation
        )
    else:
        busy = sum(
            event.self_cpu_time_total
            for event in profiler.key_averages()
            if event.key.startswith(("aten::", "mkldnn::"))
        )
    return 1 - busy * 1e-6 / elapsed


def operations(training: Training) -> float:
    """The operations of a step's matrix products in plain float32, two for each multiply-add."""
    # Not above: it imports a good part of torch's compiler, and memory is measured before.
    from torch.utils.flop_counter import FlopCounterMode

    batch = len(training.image)
    training.image = training.image[:COUNTED_IMAGES]
    training.half = False
    training.decode_plainly()
    with FlopCounterMode(display=False) as counter:
        training.differentiate()
    return counter.get_total_flops() * batch / len(training.image)


def memory_mb(device: torch.device) -> float:
    """The peak so far: what tensors took on a GPU, else the whole process."""
    on_gpu = device.type == "cuda"
    return (torch.cuda.max_memory_allocated() if on_gpu else peak_memory()) / 1e6


def wait_for(device: torch.device) -> None:
    """Wait until all is done that a GPU was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def device_of(accelerator: str) -> torch.device:
    return torch.device("cuda" if accelerator == "gpu" else "cpu")
