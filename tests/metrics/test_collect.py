"""Collecting over batches and processes: every image once, means exact.

Run as a script, this file is one process of the distributed test.
"""

import contextlib
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from svae.metrics import MeanPerImage, PerImage

# What the two processes see: batches of image indices.
UNEVEN = (((7, 2), (5,), (0,)), ((3, 9, 2),))
ONE_IDLE = (((4, 1), (3,)), ())


def batch_of(index: tuple[int, ...]) -> dict[str, Tensor]:
    """Tensors of several types and shapes, all told by the index."""
    index_tensor = torch.tensor(index)
    return {
        "index": index_tensor,
        "theta": index_tensor / 3,
        "shift": torch.stack((index_tensor * 1.0, -1.0 * index_tensor), dim=1).double(),
        "seen": index_tensor % 2 == 0,
    }


def gathered(batches: tuple[tuple[int, ...], ...]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    collect = PerImage(["theta", "shift", "seen"])
    means = MeanPerImage(["elbo", "kl", "absent"])
    for index in batches:
        collect.update(**batch_of(index))
        value = torch.tensor(index, dtype=torch.float32)
        means.update(elbo=value, kl=value.square())
    return collect.compute(), means.compute()


def check(collected: dict[str, Tensor], means: dict[str, Tensor], seen: list[int]) -> None:
    expected = batch_of(tuple(sorted(set(seen))))
    assert collected.keys() == expected.keys()
    for name, tensor in expected.items():
        assert collected[name].dtype == tensor.dtype
        assert torch.equal(collected[name], tensor)
    assert means.keys() == {"elbo", "kl"}
    assert means["elbo"].item() == pytest.approx(sum(seen) / len(seen), rel=1e-14)
    squares = sum(i * i for i in seen)
    assert means["kl"].item() == pytest.approx(squares / len(seen), rel=1e-14)


def test_uneven_batches_of_one_process() -> None:
    batches = ((7, 2), (5,), (0, 3, 9))
    check(*gathered(batches), [i for batch in batches for i in batch])


def test_a_repeated_image_occurs_once() -> None:
    collect = PerImage(["theta"])
    collect.update(index=torch.tensor([3, 1, 3]), theta=torch.tensor([0.3, 0.1, 0.3]))
    collect.update(index=torch.tensor([1, 0]), theta=torch.tensor([0.1, 0.0]))
    collected = collect.compute()
    assert collected["index"].tolist() == [0, 1, 3]
    assert torch.equal(collected["theta"], torch.tensor([0.0, 0.1, 0.3]))


def test_one_image_is_still_a_batch() -> None:
    collect = PerImage(["theta", "shift"])
    collect.update(
        index=torch.tensor([4]), theta=torch.tensor([1.0]), shift=torch.tensor([[1.0, 2.0]])
    )
    shapes = {"index": (1,), "theta": (1,), "shift": (1, 2)}
    for _ in range(2):  # the second from torchmetrics' cache
        assert {name: tuple(t.shape) for name, t in collect.compute().items()} == shapes


def test_names_of_attributes_are_allowed_and_reset_forgets() -> None:
    collect = PerImage(["index", "device", "type", "names"])
    assert collect.names == ("index", "device", "type", "names")
    for start in (0, 10):
        index = torch.arange(start, start + 3)
        collect.update(index=index, device=index, type=index, names=index)
        assert collect.compute()["type"].tolist() == index.tolist()
        collect.reset()


def test_nothing_collected_is_an_error() -> None:
    with (
        pytest.warns(UserWarning, match="before the ``update``"),
        pytest.raises(ValueError, match="expected at least one update"),
    ):
        PerImage(["theta"]).compute()


def test_collected_tensors_are_checked() -> None:
    collect = PerImage(["theta"])
    with pytest.raises(ValueError, match=r"expected \['index', 'theta'\], got \['index'\]"):
        collect.update(index=torch.arange(2))
    with pytest.raises(ValueError, match=r"theta: expected shape \(2, ...\) like index"):
        collect.update(index=torch.arange(2), theta=torch.zeros(3))
    with pytest.raises(ValueError, match=r"theta: expected shape \(2, ...\) like index"):
        collect.update(index=torch.arange(2), theta=torch.tensor(0.0))
    with pytest.raises(ValueError, match=r"index: expected shape \(B,\) in int64"):
        collect.update(index=torch.zeros(2), theta=torch.zeros(2))


def test_sums_do_not_round() -> None:
    """A million in float32 takes in nothing below 1/32; the sum here is float64 from the start."""
    means = MeanPerImage(["elbo"])
    means.update(elbo=torch.tensor([1e6]))
    for _ in range(100):
        means.update(elbo=torch.full((100,), 0.01))
    expected = (1e6 + 1e4 * torch.tensor(0.01).double().item()) / 10_001
    assert means.compute()["elbo"].item() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.bfloat16()])
def test_a_cast_of_the_module_leaves_the_sums_exact(cast) -> None:
    module = torch.nn.ModuleDict({"means": MeanPerImage(["elbo"])})
    for _ in range(2):  # before and after a reset
        cast(module)
        module["means"].update(elbo=torch.tensor([1000.0, 1.0]))
        cast(module)
        module["means"].update(elbo=torch.tensor([2.0]))
        mean = module["means"].compute()["elbo"]
        assert mean.dtype == torch.float64
        assert mean.item() == pytest.approx(1003 / 3, rel=1e-14)
        module["means"].reset()


def test_a_mean_is_over_the_images_that_gave_the_quantity() -> None:
    means = MeanPerImage(["elbo", "iwae_bound", "never"])
    means.update(elbo=torch.tensor([1.0, 2.0]), iwae_bound=torch.tensor([5.0, 6.0]))
    with torch.inference_mode():
        means.update(elbo=torch.tensor([6.0]))
    means.update(elbo=torch.zeros(0))
    assert {name: value.item() for name, value in means.compute().items()} == {
        "elbo": 3.0,
        "iwae_bound": 5.5,
    }
    means.reset()
    means.update(elbo=torch.tensor([8.0]))
    assert means.compute()["elbo"].item() == 8


def test_quantities_are_checked() -> None:
    means = MeanPerImage(["elbo", "kl"])
    with pytest.raises(ValueError, match=r"expected names among \['elbo', 'kl'\], got \['lbo'\]"):
        means.update(lbo=torch.zeros(2))
    with pytest.raises(ValueError, match="expected one shape"):
        means.update(elbo=torch.zeros(2), kl=torch.zeros(1))
    with pytest.raises(ValueError, match="expected one shape"):
        means.update(elbo=torch.tensor(0.0))


def test_a_nan_is_seen() -> None:
    means = MeanPerImage(["elbo"])
    means.update(elbo=torch.tensor([1.0, math.nan]))
    assert means.compute()["elbo"].isnan()


def test_two_processes(tmp_path: Path) -> None:
    """Uneven shares, an image that both saw, and a process without any image."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, __file__, str(rank), str(tmp_path)],
                    env=environment,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for rank in range(2)
        ]
        for process in processes:
            stack.callback(process.kill)
        for process in processes:
            _, errors = process.communicate(timeout=90)
            assert process.returncode == 0, errors

    for name, shares in (("uneven", UNEVEN), ("one_idle", ONE_IDLE)):
        seen = [i for share in shares for batch in share for i in batch]
        for rank in range(2):
            check(*torch.load(tmp_path / f"{name}_{rank}.pt"), seen)
    assert all((tmp_path / f"both_idle_{rank}.txt").exists() for rank in range(2))


def run_process(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    for name, shares in (("uneven", UNEVEN), ("one_idle", ONE_IDLE)):
        torch.save(gathered(shares[rank]), folder / f"{name}_{rank}.pt")
    try:
        PerImage(["theta"]).compute()
    except ValueError as error:
        (folder / f"both_idle_{rank}.txt").write_text(str(error))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    run_process(int(sys.argv[1]), Path(sys.argv[2]))
