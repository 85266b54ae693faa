from types import SimpleNamespace

import pytest
import torch

from svae.datasets import RotDigits, base
from svae.datasets.base import EpochBatches


@pytest.mark.parametrize(("rows", "batch_size"), [(10, 3), (100, 100), (101, 100), (7, 50)])
def test_every_row_exactly_once(rows, batch_size):
    for shuffle in (False, True):
        batches = list(EpochBatches(rows, batch_size, shuffle=shuffle))
        assert sorted(torch.cat(batches).tolist()) == list(range(rows))
        sizes = [len(batch) for batch in batches]
        assert max(sizes) <= batch_size
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("rows", [10, 11, 12, 13])
def test_processes_share_every_batch(rows):
    def batches(rank, world_size):
        sampler = EpochBatches(rows, 4, shuffle=True, seed=3, rank=rank, world_size=world_size)
        sampler.set_epoch(5)
        return [batch.tolist() for batch in sampler]

    alone = batches(0, 1)
    shared = [sorted(a + b) for a, b in zip(batches(0, 2), batches(1, 2), strict=True)]
    assert shared == [sorted(batch) for batch in alone]


def test_the_order_follows_from_seed_and_epoch():
    def order(seed, epoch):
        sampler = EpochBatches(50, 50, shuffle=True, seed=seed)
        sampler.set_epoch(epoch)
        return next(iter(sampler)).tolist()

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


def test_more_processes_than_images_in_a_batch_are_refused():
    with pytest.raises(ValueError, match="batch_size"):
        EpochBatches(10, 1, shuffle=False, world_size=2)


def test_loaders_serve_whole_batches():
    data = RotDigits(train_copies=1, eval_copies=1, batch_size=64, image_size=28)
    data.setup()
    batches = list(data.train_dataloader())
    assert all(batch["image"].shape == (len(batch["index"]), 1, 28, 28) for batch in batches)
    index = torch.cat([batch["index"] for batch in batches])
    assert sorted(index.tolist()) == sorted(data.splits["train"]["index"].tolist())
    # Validation and test keep their order.
    index = torch.cat([batch["index"] for batch in data.test_dataloader()])
    assert torch.equal(index, data.splits["test"]["index"])


def test_what_fits_a_gpu():
    """Images that take a quarter of the free memory at most, and never to a processor."""
    tensors = [torch.zeros(100, dtype=torch.uint8), torch.zeros(50, dtype=torch.float32)]
    gpu = torch.device("cuda")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "mem_get_info", lambda device: (1200, 10_000))
        assert base.fits(tensors, gpu)
        assert not base.fits([*tensors, torch.zeros(1, dtype=torch.uint8)], gpu)
        assert not base.fits(tensors, torch.device("cpu"))


def test_images_that_fit_are_served_where_they_are_needed(monkeypatch):
    data = RotDigits(train_copies=1, eval_copies=1)
    data.setup()
    elsewhere = torch.device("meta")
    data.trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=elsewhere), global_rank=0, world_size=1
    )
    asked = []

    def fits(tensors, device):
        asked.append((sum(len(t) for t in tensors), device))
        return True

    monkeypatch.setattr(base, "fits", fits)
    batch = next(iter(data.train_dataloader()))
    assert {tensor.device for tensor in batch.values()} == {elsewhere}
    assert batch["image"].shape[1:] == data.image_shape
    everything = sum(len(t) for split in data.splits.values() for t in split.values())
    assert asked == [(everything, elsewhere)]
    assert data.splits["train"]["image"].device.type == "cpu"
