import pytest
import torch
from torch.testing import assert_close

from svae.inferred import Inferred, infer_batch


@pytest.fixture
def batch():
    return {
        "image": torch.rand(6, 1, 9, 9),
        "index": torch.tensor([5, 3, 8, 0, 1, 2]),
        "label": torch.arange(6),
        "shift": torch.randn(6, 2),
    }


def test_a_batch_is_inferred_at_the_mode(make_model, batch):
    model = make_model().eval()
    found, std = infer_batch(model, batch)
    q = model.infer(batch["image"])
    for name in ("z", "theta", "shift"):
        assert_close(getattr(found.latents, name), getattr(q.mode(), name))
        assert_close(getattr(std, name), getattr(q.uncertainty(), name))
        assert not getattr(found.latents, name).requires_grad
    expected = model.log_likelihood(batch["image"], q.mode()[None])[0]
    assert_close(found.log_likelihood, expected.detach())
    assert found.index.tolist() == batch["index"].tolist()
    assert_close(found.shift, batch["shift"])
    assert found.theta is None


def test_tensors_give_back_what_was_inferred(make_model, batch):
    found, _ = infer_batch(make_model().eval(), batch)
    named = found.tensors()
    assert sorted(named) == sorted(Inferred.names_in(batch))
    again = Inferred.from_tensors(named)
    assert_close(again.tensors(), named)
    assert again.theta is None


def test_rows_keep_together_what_belongs_together(make_model, batch):
    found, _ = infer_batch(make_model().eval(), batch)
    rows = torch.tensor([4, 0])
    some = found[rows]
    assert len(some) == 2
    assert some.index.tolist() == [1, 5]
    assert_close(some.latents.z, found.latents.z[rows])
    assert_close(some.log_likelihood, found.log_likelihood[rows])
    assert len(found[:3]) == 3
