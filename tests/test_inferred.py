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
        "scale": torch.rand(6) + 0.5,
        "symmetry": torch.tensor([1, 2, 4, 1, 2, 4]),
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
    assert_close(found.scale, batch["scale"])
    assert found.theta is None
    assert found.symmetry.tolist() == [1, 2, 4, 1, 2, 4]


def test_the_representation_is_mean_and_deviation_at_the_mode(make_model, batch):
    found, std = infer_batch(make_model(z_dim=3).eval(), batch)
    assert found.representation.shape == (6, 6)
    assert_close(found.representation[:, :3], found.latents.z)
    assert_close(found.representation[:, 3:], std.z)


def test_tensors_give_back_what_was_inferred(make_model, batch):
    found, _ = infer_batch(make_model().eval(), batch)
    named = found.tensors()
    named["inferred_log_scale"] = torch.randn(6)
    assert sorted(named) == sorted(Inferred.names_in(batch, centre=True))
    again = Inferred.from_tensors(named)
    assert_close(again.tensors(), named)
    assert again.theta is None
    assert_close(again.centre, found.centre)


def test_the_centre_is_that_of_the_object_at_the_mode(make_model, batch):
    model = make_model().eval()
    found, _ = infer_batch(model, batch)
    assert found.centre.shape == (6, 2)
    assert_close(found.centre, model.centre(model.infer(batch["image"]).mode()))
    assert (found.centre - found.latents.shift).abs().max() > 0.01


@pytest.mark.parametrize("options", [{"infer_shift": False}, {"infer_theta": False}])
def test_without_a_shift_there_is_no_centre(make_model, batch, options):
    found, _ = infer_batch(make_model(**options).eval(), batch)
    there = "infer_shift" not in options
    assert (found.centre is not None) == ("centre" in found.tensors()) == there
    assert sorted(found.tensors()) == sorted(Inferred.names_in(batch, centre=there))


@pytest.mark.parametrize("infers_theta", [True, False])
@pytest.mark.parametrize("upright", [True, False])
@pytest.mark.parametrize("centre", [True, False])
def test_names_are_those_of_what_is_collected(make_model, batch, infers_theta, upright, centre):
    more = {"untransformed": torch.rand(6, 1, 9, 9)} if upright else {}
    theta = torch.randn(6) if infers_theta and upright else None
    found, _ = infer_batch(make_model().eval(), batch)
    assert found.representation is not None
    collected = Inferred.from_batch(
        batch | more,
        found.latents,
        found.log_likelihood,
        found.representation,
        theta,
        found.centre if centre else None,
        upright=torch.rand(6, 81) if upright else None,
    )
    names = Inferred.names_in(batch | more, infers_theta, centre, upright)
    assert sorted(collected.tensors()) == sorted(names)
    again = Inferred.from_tensors(collected.tensors())
    assert_close(again.tensors(), collected.tensors())
    assert (again.reference_theta is None) == (theta is None)
    assert (again.centre is not None) == centre


def test_what_is_not_there_stays_away(make_model, batch):
    found, _ = infer_batch(make_model().eval(), batch)
    bare = Inferred(found.index, found.latents, found.log_likelihood)[:2]
    assert len(bare) == 2
    assert bare.representation is None
    assert bare.reference_theta is None
    assert bare.symmetry is None
    assert bare.centre is None
    assert bare.isfinite()


@pytest.mark.parametrize("name", ["inferred_z", "representation", "reference_theta", "centre"])
def test_a_number_that_is_not_finite_is_seen(make_model, batch, name):
    found, _ = infer_batch(make_model().eval(), batch)
    named = found.tensors() | {"reference_theta": torch.zeros(6)}
    assert Inferred.from_tensors(named).isfinite()
    spoilt = named[name].clone()
    spoilt[(3,) + (0,) * (spoilt.ndim - 1)] = torch.nan
    assert not Inferred.from_tensors(named | {name: spoilt}).isfinite()


def test_rows_keep_together_what_belongs_together(make_model, batch):
    found, _ = infer_batch(make_model().eval(), batch)
    rows = torch.tensor([4, 0])
    some = found[rows]
    assert len(some) == 2
    assert some.index.tolist() == [1, 5]
    assert_close(some.latents.z, found.latents.z[rows])
    assert_close(some.log_likelihood, found.log_likelihood[rows])
    assert_close(some.representation, found.representation[rows])
    assert_close(some.centre, found.centre[rows])
    assert some.symmetry.tolist() == [2, 1]
    assert len(found[:3]) == 3
