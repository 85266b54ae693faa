"""What is gathered image by image over batches and processes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed import all_gather_object, get_world_size
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from svae.constants import Constant

__all__ = ["MeanPerImage", "PerImage"]


class PerImage(Metric):
    """Collects named tensors of every image, in the order of the images' index.

    `compute` returns each name's tensor over all batches of all processes, sorted by `index`. An
    image that a distributed sampler repeated occurs once. A process that saw no image takes part
    like any other.

    Arguments:
        names: The names of the tensors. `index` is always among them.
    """

    full_state_update = False

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(dict.fromkeys(("index", *names)))
        for name in self.names:
            self.add_state(_state(name), default=[], dist_reduce_fx="cat")

    def update(self, **tensors: Tensor) -> None:
        """Add a batch.

        Arguments:
            tensors: One tensor for every name, each with shape (B, ...); `index` (B,) in int64.
        """
        if tensors.keys() != set(self.names):
            raise ValueError(f"tensors: expected {sorted(self.names)}, got {sorted(tensors)}")
        index = tensors["index"]
        if index.ndim != 1 or index.dtype != torch.int64:
            raise ValueError(
                f"index: expected shape (B,) in int64, got {tuple(index.shape)} in {index.dtype}"
            )
        for name, tensor in tensors.items():
            if tensor.shape[:1] != index.shape:
                raise ValueError(
                    f"{name}: expected shape ({len(index)}, ...) like index, "
                    f"got {tuple(tensor.shape)}"
                )
        for name, tensor in tensors.items():
            getattr(self, _state(name)).append(tensor.detach().to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """The tensors of all images, by name, each with shape (N, ...)."""
        if not len(getattr(self, _state("index"))):
            raise ValueError("PerImage: expected at least one update before compute, got none")
        collected = {name: dim_zero_cat(getattr(self, _state(name))) for name in self.names}
        index, order = collected["index"].sort(stable=True)
        first = torch.ones_like(index, dtype=torch.bool)
        first[1:] = index[1:] != index[:-1]
        found = {name: tensor[order[first]] for name, tensor in collected.items()}
        self._shapes = {name: tensor.shape for name, tensor in found.items()}
        return found

    def _wrap_compute(self, compute: Callable) -> Callable:
        computed = super()._wrap_compute(compute)

        # torchmetrics squeezes tensors of one element; one image is still a batch.
        def with_shapes() -> dict[str, Tensor]:
            return {name: t.reshape(self._shapes[name]) for name, t in computed().items()}

        return with_shapes

    def _sync_dist(
        self,
        dist_sync_fn: Callable = gather_all_tensors,
        process_group: Any | None = None,
    ) -> None:
        # A process without images has to offer tensors of the others' types and shapes, or the
        # gathering fails; torchmetrics itself offers a float vector.
        group = process_group or self.process_group
        local = {name: getattr(self, _state(name)) for name in self.names}
        kinds = {name: (t[0].dtype, t[0].shape[1:]) for name, t in local.items() if t}
        everyones: list[Any] = [None] * get_world_size(group)
        all_gather_object(everyones, kinds, group=group)
        known: dict[str, tuple[torch.dtype, torch.Size]] = next(filter(None, everyones), {})
        for name, (dtype, shape) in known.items():
            if not local[name]:
                empty = torch.empty((0, *shape), dtype=dtype, device=self.device)
                setattr(self, _state(name), [empty])
        if known:
            super()._sync_dist(dist_sync_fn, process_group)


@Constant
def _mask(known: tuple[bool, ...], device: torch.device) -> Tensor:
    """1 for what is known, int64."""
    return torch.tensor(known, dtype=torch.int64, device=device)


class MeanPerImage(Metric):
    """Means over all images of all processes, exact for batches of any sizes.

    Sums are kept in float64 (float32 on Apple's MPS, which has no other). An image that a
    distributed sampler repeated counts twice.

    Arguments:
        names: The names of the quantities.
    """

    full_state_update = False

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(dict.fromkeys(names))
        self.sums: Tensor
        self.counts: Tensor
        size = len(self.names)
        self.add_state("sums", torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(size, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, **values: Tensor) -> None:
        """Add a batch.

        Arguments:
            values: Quantities of the images, by name, each with shape (B,). A name left out gets
                no images from this batch.
        """
        unknown = sorted(values.keys() - set(self.names))
        if unknown:
            raise ValueError(f"values: expected names among {sorted(self.names)}, got {unknown}")
        shapes = {name: tuple(value.shape) for name, value in values.items()}
        if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
            raise ValueError(f"values: expected one shape (B,) for every name, got {shapes}")

        if not values:
            return
        first = next(iter(values.values()))
        known = tuple(name in values for name in self.names)
        none = torch.zeros_like(first)
        rows = [values.get(name, none).detach().to(self.sums) for name in self.names]
        # Not in place: a sum made in inference mode could not be changed outside it.
        self.sums = self.sums + torch.stack(rows).sum(1)
        self.counts = self.counts + len(first) * _mask(known, self.counts.device)

    def compute(self) -> dict[str, Tensor]:
        """The means, by name; names that no update gave are left out."""
        means = self.sums / self.counts
        seen = (self.counts > 0).tolist()
        return {n: mean for n, mean, some in zip(self.names, means, seen, strict=True) if some}

    def _apply(self, fn: Callable, exclude_state: Sequence[str] = "") -> "MeanPerImage":
        # A module cast to bfloat16 must not round the sums: they follow its device only.
        super()._apply(fn, exclude_state=("sums", "counts"))
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        self.sums = self.sums.to(self.device, dtype)
        self.counts = self.counts.to(self.device)
        self._defaults |= {
            "sums": torch.zeros_like(self.sums),
            "counts": torch.zeros_like(self.counts),
        }
        return self


def _state(name: str) -> str:
    # A bare name such as "device" or "type" would hide what a module already has.
    return f"collected_{name}"
