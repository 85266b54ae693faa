import pytest
import torch

from svae.datasets import RotDigits
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
