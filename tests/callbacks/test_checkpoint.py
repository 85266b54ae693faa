from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from svae.callbacks.checkpoint import AtomicCheckpointIO
from svae.errors import UserError


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"n": np.float64(3)}, "callbacks.Count.n is numpy.float64, "),
        ({"n": [1, {"a": np.zeros(3)}]}, "callbacks.Count.n[1].a is numpy.ndarray, "),
        ({"n": (Path("x"),)}, r"callbacks.Count.n[0] is pathlib"),
        ({np.int64(3): 1}, "callbacks.Count.3 (the key) is numpy.int64, "),
        ({"n": lambda: 3}, "callbacks.Count.n is builtins.function, "),
    ],
)
def test_what_could_not_be_read_back_is_named_and_not_written(state, told, tmp_path):
    path = tmp_path / "last.ckpt"
    with pytest.raises(UserError) as refused:
        AtomicCheckpointIO().save_checkpoint({"callbacks": {"Count": state}}, path)
    assert str(refused.value).startswith(f"checkpoint: {told}")
    assert "expected tensors, numbers, text, lists and dictionaries" in str(refused.value)
    assert not path.exists()


def test_what_can_be_read_back_is_written(tmp_path):
    path = tmp_path / "last.ckpt"
    state = {
        "weights": OrderedDict(a=torch.nn.Parameter(torch.ones(2))),
        "plain": [None, True, 1, 1.5, "text", b"bytes", (1, {2, 3}), {4: torch.zeros(1)}],
        "torch": [torch.float32, torch.Size([2, 3]), torch.device("cpu")],
    }
    AtomicCheckpointIO().save_checkpoint(state, path)
    found = torch.load(path, weights_only=True)
    assert found["plain"] == state["plain"]
    assert found["torch"] == state["torch"]
