import threading
import time
from types import SimpleNamespace

import pytest
import torch

from svae.datasets import ImageDataModule, RotDigits, base
from svae.datasets.base import SPLITS, EpochBatches, InMemory, read_ahead
from svae.errors import UserError


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


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_what_is_read_ahead_comes_in_order(threads):
    def read(number):
        time.sleep(0.002 * (number % 3))  # a later one may be there before an earlier one
        return number, threading.current_thread() is threading.main_thread()

    found = list(read_ahead(read, range(20), threads))
    assert found == [(number, threads == 0) for number in range(20)]


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_no_more_is_read_than_one_part_for_each_thread(threads):
    read = []
    reading = read_ahead(lambda part: read.append(part) or part, iter(range(100)), threads)
    for taken in range(1, 4):
        next(reading)
        time.sleep(0.02)
        assert taken <= len(read) <= taken + threads
    before = threading.active_count()
    reading.close()
    assert threading.active_count() == before - threads
    assert len(read) <= 3 + threads


@pytest.mark.parametrize("threads", [0, 2])
def test_what_cannot_be_read_is_told_when_it_is_its_turn(threads):
    def read(number):
        if number == 3:
            raise OSError("gone")
        return number

    reading = read_ahead(read, range(10), threads)
    assert [next(reading) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="gone"):
        next(reading)


class OnDisk:
    """Images that are made when they are asked for."""

    def __init__(self, index):
        self.tensors = {"index": index}
        self.read = 0

    def __len__(self):
        return len(self.tensors["index"])

    def __getitem__(self, rows):
        index = self.tensors["index"][rows]
        self.read += len(index)
        if (index == 77).any():
            raise OSError("77 is gone")
        return {"image": index[:, None, None, None].expand(-1, 1, 4, 4).float(), "index": index}


class Numbers(ImageDataModule):
    """A training split on disk, and the others in memory."""

    def __init__(self, rows, workers):
        super().__init__(batch_size=4, workers=workers)
        self.rows = rows

    def read(self):
        held = {"image": torch.zeros(3, 1, 4, 4), "index": torch.arange(1000, 1003)}
        return {
            "train": OnDisk(self.rows),
            "val": held,
            "test": held | {"index": held["index"] + 3},
        }


class Lazy(OnDisk):
    """The same of a split in memory, of which the images are not known before."""

    def __init__(self, split, **other):
        self.split, self.other = split, other
        self.tensors = {key: tensor for key, tensor in split.items() if key != "image"}

    def __len__(self):
        return len(self.split["index"])

    def __getitem__(self, rows):
        batch = {key: tensor[rows] for key, tensor in self.split.items()} | self.other
        return {key: tensor for key, tensor in batch.items() if tensor is not None}


def own_splits():
    return {
        split: {
            "image": torch.rand(4, 1, 8, 8),
            "index": torch.arange(4) + 4 * number,
            "label": torch.zeros(4, dtype=torch.int64),
        }
        for number, split in enumerate(SPLITS)
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"index": None}, r"the split val holds no index; expected index \(N,\)"),
        ({"image": None}, r"the split val holds no image; expected image \(N, C, H, W\)"),
        (
            {"image": torch.zeros(4, 8, 8)},
            r"image of the split val: expected torch.float32 of shape \(N, C, H, W\), got "
            r"torch.float32 of shape \(4, 8, 8\)",
        ),
        (
            {"image": torch.zeros(4, 1, 8, 8, dtype=torch.uint8)},
            r"expected torch.float32 of shape .*, got torch.uint8 of shape \(4, 1, 8, 8\)",
        ),
        (
            {"index": torch.zeros(4)},
            r"index of the split val: expected torch.int64 of shape \(N,\)",
        ),
        ({"label": torch.zeros(3)}, "the split val holds 4 numbers in index and 3 of label"),
        ({"index": torch.tensor([4, 5, 6, 3])}, "index 3 is that of 2 images of train, val and"),
        (
            {"image": torch.zeros(4, 1, 8, 6)},
            r"images of the split val have the shape \(1, 8, 6\) and those of train \(1, 8, 8\)",
        ),
        ({"untransformed": torch.rand(4, 1, 8, 8)}, "val holds untransformed; .* in test alone"),
        ({"theta": torch.zeros(4)}, "the split val holds theta and test does not; expected it"),
        ({"name": ["a", "b", "c", "d"]}, "name of the split val: expected a tensor, got list"),
        ({"image": torch.zeros(4, 1, 8, 8).numpy()}, "image of .*: expected a tensor, got ndarr"),
        ({"weight": torch.tensor(1.0)}, "holds 4 numbers in index and 1 of weight"),
    ],
)
def test_a_data_set_that_gives_something_else(monkeypatch, changed, message):
    splits = own_splits()
    splits["val"] = {k: v for k, v in (splits["val"] | changed).items() if v is not None}
    data = Numbers(torch.arange(10), 0)
    monkeypatch.setattr(data, "read", lambda: splits)
    with pytest.raises(ValueError, match=f"^dataset: .*{message}"):
        data.setup()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("theta", torch.zeros(4, 1), r"torch.float32 of shape \(N,\), got torch.float32 .*4, 1"),
        ("theta", torch.zeros(4, dtype=torch.int64), "torch.float32 of .*, got torch.int64 of"),
        ("theta", torch.tensor([0, 1, torch.nan, 2]), "finite numbers, got nan for index 10"),
        ("shift", torch.zeros(4, 3), r"torch.float32 of shape \(N, 2\), got .* \(4, 3\)"),
        ("shift", torch.tensor([[0, torch.inf]] * 4), r"finite numbers, got \[0.0, inf\]"),
        ("label", torch.zeros(4, 1).long(), r"torch.int64 of shape \(N,\), got .* \(4, 1\)"),
        ("label", torch.zeros(4), r"torch.int64 of shape \(N,\), got torch.float32"),
        ("label", torch.tensor([0, 1, 2, -1]), "labels from 0, got -1 for index 11"),
        ("symmetry", torch.ones(4), r"torch.int64 of shape \(N,\), got torch.float32"),
        ("symmetry", torch.zeros(4).long(), "numbers from 1, got 0 for index 8"),
        ("scale", torch.ones(4, 1), r"torch.float32 of shape \(N,\), got .* \(4, 1\)"),
        ("scale", torch.tensor([1, 0, 1, 1.0]), "finite numbers above 0, got 0.0 for index 9"),
        ("conformation", torch.ones(4, 1), r"torch.float32 of shape \(N,\), got .* \(4, 1\)"),
        ("untransformed", torch.zeros(4, 1, 8, 6), r"what image is, .* 1, 8, 8\), got .* 6\)"),
    ],
)
@pytest.mark.parametrize("lazy", [False, True])
def test_truth_that_is_none(monkeypatch, key, value, message, lazy):
    splits = own_splits()
    splits["test"][key] = value
    if lazy:
        splits["test"] = Lazy(splits["test"])
    data = Numbers(torch.arange(10), 0)
    monkeypatch.setattr(data, "read", lambda: splits)
    with pytest.raises(ValueError, match=f"^dataset: {key} of the split test: expected {message}"):
        data.setup()


def test_truth_of_any_precision_and_what_nobody_knows_are_let_be(monkeypatch):
    splits = own_splits()
    for split in splits.values():
        split |= {
            "theta": torch.zeros(4, dtype=torch.float64),
            "shift": torch.zeros(4, 2, dtype=torch.float64),
            "label": split["label"].int(),
            "weight": torch.zeros(4, 5, 5),
        }
    splits["test"] |= {"scale": torch.ones(4), "untransformed": splits["test"]["image"]}
    data = Numbers(torch.arange(10), 0)
    monkeypatch.setattr(data, "read", lambda: splits)
    data.setup()
    everything = data.everything()
    assert everything.tensors.keys() == {
        *("image", "index", "label", "theta", "shift", "weight", "split")
    }


@pytest.mark.parametrize(
    ("labels", "number", "names", "found"),
    [
        ([0, 1, 2, 2], None, None, 3),
        ([0, 7, 7, 0], None, None, 2),
        ([0, 0, 0, 0], None, None, None),
        ([0, 1, 1, 1], None, ["a", "b", "c"], 3),
        ([0, 1, 2, 2], 3, ["a", "b", "c"], 3),
        ([0, 1, 2, 2], 5, None, 5),
        ([0, 1, 3, 2], 3, None, "num_labels of Numbers stands for 3 labels; .* 0 to 2, got 3"),
        (
            [0, 1, 2, 2],
            None,
            ["a", "b"],
            "label_names of Numbers stands for 2 labels; .* 0 to 1, got 2",
        ),
    ],
)
def test_how_many_labels_there_are(monkeypatch, labels, number, names, found):
    splits = own_splits()
    splits["test"]["label"] = torch.tensor(labels)
    data = Numbers(torch.arange(10), 0)
    monkeypatch.setattr(data, "read", lambda: splits)
    data.num_labels, data.label_names = number, names
    if isinstance(found, str):
        with pytest.raises(ValueError, match=f"^dataset: {found}$"):
            data.setup()
    else:
        data.setup()
        assert data.num_labels == found


def test_images_of_all_splits_where_some_are_on_disk(monkeypatch):
    splits = own_splits()
    order = torch.randperm(12)
    for number, split in enumerate(splits.values()):
        split["index"] = order[4 * number : 4 * number + 4]
    splits["test"]["scale"] = torch.ones(4)
    image = torch.cat([split["image"] for split in splits.values()])[order.argsort()]
    splits |= {"train": Lazy(splits["train"]), "test": Lazy(splits["test"])}
    data = Numbers(torch.arange(10), 0)
    monkeypatch.setattr(data, "read", lambda: splits)
    everything = data.everything()
    assert everything.tensors.keys() == {"index", "label", "split"}
    assert everything.tensors["index"].tolist() == list(range(12))
    rows = torch.tensor([7, 0, 11, 3, 7])
    for some in (rows, rows[:1], torch.arange(12)):
        batch = everything[some]
        assert torch.equal(batch["image"], image[some])
        assert torch.equal(batch["index"], some)
        assert torch.equal(batch["split"], order.argsort()[some] // 4)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"image": None}, "a batch of the split val holds index, label; expected image, index, l"),
        ({"theta": torch.zeros(1)}, "holds image, index, label, theta; expected image, index, l"),
        ({"label": None}, "val holds image, index; expected image, index, label: the image, and"),
        (
            {"image": torch.zeros(1, 8, 8)},
            r"image of the split val: expected torch.float32 of shape \(N, C, H, W\), got",
        ),
        (
            {"image": torch.zeros(1, 1, 8, 8, dtype=torch.uint8)},
            "image of the split val: expected torch.float32 of .*, got torch.uint8",
        ),
        ({"image": torch.zeros(1, 1, 8, 6)}, r"val have the shape \(1, 8, 6\) and those of train"),
        ({"label": torch.zeros(1, 1).long()}, "label of the split val: expected torch.int64 of"),
        ({"index": torch.tensor([5])}, r"with index \[5\] were given; expected \[4\]"),
    ],
)
def test_a_source_that_reads_something_else(monkeypatch, other, message):
    splits = own_splits()
    splits["val"] = Lazy(splits["val"], **other)
    data = Numbers(torch.arange(10), 0)
    monkeypatch.setattr(data, "read", lambda: splits)
    with pytest.raises(ValueError, match=f"^dataset: .*{message}"):
        data.setup()


@pytest.mark.parametrize("lazy", [False, True])
def test_a_split_without_images(monkeypatch, lazy):
    splits = own_splits()
    splits["val"] = {key: tensor[:0] for key, tensor in splits["val"].items()}
    if lazy:
        splits["val"] = Lazy(splits["val"])
    data = Numbers(torch.arange(10), 0)
    monkeypatch.setattr(data, "read", lambda: splits)
    with pytest.raises(ValueError, match=r"^dataset: no images are left for val$"):
        data.setup()


def test_which_images_each_split_has(monkeypatch):
    def shares(change=None):
        splits = own_splits()
        if change:
            change(splits)
        data = Numbers(torch.arange(10), 0)
        monkeypatch.setattr(data, "read", lambda: splits)
        assert data.shares() is None
        data.setup()
        return data.shares()

    def swapped(splits):
        splits["val"]["index"], splits["test"]["index"] = (
            splits["test"]["index"],
            splits["val"]["index"],
        )

    def turned(splits):
        splits["val"]["index"] = splits["val"]["index"].flip(0)

    def fewer(splits):
        splits["train"] = {key: tensor[:3] for key, tensor in splits["train"].items()}

    # The same on every machine.
    assert shares() == "4 train, 4 val, 4 test (8ea922550943)"
    assert shares(turned) == shares()
    assert shares(swapped) != shares()
    assert shares(fewer).startswith("3 train, 4 val, 4 test (")


def test_a_split_that_is_no_source(monkeypatch):
    data = Numbers(torch.arange(10), 0)
    for given, told in ((torch.zeros(3), "Tensor"), ([], "list")):
        splits = own_splits() | {"val": given}
        monkeypatch.setattr(data, "read", lambda splits=splits: splits)
        with pytest.raises(ValueError, match=f"the split val is of type {told}; expected a dict"):
            data.setup()
    short = Lazy(own_splits()["val"])
    short.tensors = {key: tensor[:3] for key, tensor in short.tensors.items()}
    monkeypatch.setattr(data, "read", lambda: own_splits() | {"val": short})
    with pytest.raises(ValueError, match="the split val has 4 images and 3 numbers in index"):
        data.setup()


def test_a_data_set_without_a_split(monkeypatch):
    data = Numbers(torch.arange(10), 0)
    more = own_splits() | {"other": {}}
    for given, told in ((more, "train, val, test, other"), ({}, "none"), (None, "none")):
        monkeypatch.setattr(data, "read", lambda given=given: given)
        with pytest.raises(ValueError, match=f"Numbers gave the splits {told}; expected train"):
            data.setup()
    monkeypatch.setattr(data, "read", own_splits)
    data.setup()
    assert len(data.everything()) == 12


@pytest.mark.parametrize("workers", [0, 2])
def test_a_split_need_not_be_in_memory(workers):
    data = Numbers(torch.arange(10), workers)
    data.setup()
    assert data.image_shape == (1, 4, 4)
    assert set(data.splits["train"]) == {"index"}
    assert set(data.splits["val"]) == {"index", "image"}
    batches = list(data.train_dataloader())
    expected = list(EpochBatches(10, 4, shuffle=True, seed=1))
    assert [b["index"].tolist() for b in batches] == [rows.tolist() for rows in expected]
    for batch in batches:
        assert torch.equal(batch["image"][:, 0, 0, 0], batch["index"].float())
    assert isinstance(data.train_dataloader().source, OnDisk)
    assert isinstance(data.val_dataloader().source, InMemory)


def test_a_sample_stands_for_images_that_are_not_in_memory(monkeypatch):
    monkeypatch.setattr(base, "_SAMPLE_IMAGES", 50)
    data = Numbers(torch.arange(100, 300), 0)
    data.setup()
    sample, *others = data.sample()
    numbers = sample[:, 0, 0, 0].tolist()
    assert len(set(numbers)) == 50
    assert max(numbers) - min(numbers) > 100
    assert others[0] is data.splits["val"]["image"]
    monkeypatch.setattr(base, "_SAMPLE_NUMBERS", 16 * 3)
    assert len(data.sample()[0]) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_is_gone_ends_the_training_in_one_line(workers):
    data = Numbers(torch.arange(70, 80), workers)
    data.setup()
    with pytest.raises(UserError, match=r"^77 is gone$"):
        list(data.train_dataloader())


def test_batches_read_ahead_are_not_taken_for_received():
    data = Numbers(torch.arange(40), 2)
    data.setup()
    loader = data.train_dataloader()
    whole = [batch["index"].tolist() for batch in loader]
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    batches.close()
    epochs = SimpleNamespace(processed=0, started=1)
    data.trainer = SimpleNamespace(
        fit_loop=SimpleNamespace(epoch_progress=SimpleNamespace(current=epochs))
    )
    state = data.state_dict()
    assert state == {"served": 3}
    data.trainer = None
    again = Numbers(torch.arange(40), 2)
    again.setup()
    again.load_state_dict(state)
    assert [batch["index"].tolist() for batch in again.train_dataloader()] == whole[3:]


def test_a_data_set_that_reads_nothing_is_none():
    class Empty(ImageDataModule):
        pass

    with pytest.raises(TypeError, match=r"abstract method '?read"):
        Empty()


def test_a_constructor_that_forgets_the_base_is_told_of():
    class Forgetful(ImageDataModule):
        def __init__(self, count):
            self.count = count

        def read(self):
            return {}

    with pytest.raises(
        ValueError, match=r"__init__ of Forgetful does not call super\(\).__init__"
    ):
        Forgetful(3).setup()
