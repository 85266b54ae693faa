"""What latents are made of, and what keeps or removes which part of them."""

import pytest
import torch

from svae.latents import Latents


def some(*shape):
    return Latents(
        torch.randn(*shape, 3), torch.randn(shape), torch.randn(*shape, 2), torch.randn(shape)
    )


def same(a, b):
    return all(map(torch.equal, a.tensors(), b.tensors()))


def test_without_a_size_it_is_the_models_own():
    z, theta, shift = torch.randn(4, 3), torch.randn(4).double(), torch.randn(4, 2)
    latents = Latents(z, theta, shift)
    assert latents.log_scale.tolist() == [0] * 4
    assert latents.log_scale.dtype == theta.dtype
    assert not Latents(z, theta.requires_grad_(), shift).log_scale.requires_grad


def test_values_have_the_names_of_priors_and_make_the_same():
    latents = some(2, 4)
    values = latents.values()
    assert list(values) == ["z", "theta", "shift", "scale"]
    assert torch.equal(values["scale"], latents.log_scale)
    assert same(Latents.of(values), latents)
    assert same(Latents(*latents.tensors()), latents)
    bare = Latents.of({"z": latents.z})
    assert not any(part.any() for part in bare.pose)
    assert bare.shift.shape == (2, 4, 2)


def test_parts_are_joined_and_taken_apart():
    a, b = some(4), some(4)
    stacked, row = Latents.stack([a, b]), Latents.cat([a, b])
    assert same(stacked[1], b)
    assert same(row[4:], b)
    assert same(stacked.map(lambda value: value.flatten(0, 1)), row)
    assert len(row) == 8


def test_what_is_removed_and_what_stays():
    latents = some(4)
    upright = latents.without_pose()
    assert torch.equal(upright.z, latents.z)
    assert not any(part.any() for part in upright.pose)
    held = latents.without_content()
    assert not held.z.any()
    for found, expected in zip(held.pose, latents.pose, strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(latents.turned(torch.ones(4)).log_scale, latents.log_scale)


def test_a_size_that_is_not_finite_is_seen():
    latents = some(4)
    assert latents.isfinite()
    latents.log_scale[2] = torch.inf
    assert not latents.isfinite()


def test_shapes_that_do_not_fit_are_named():
    z, theta, shift = some(4).tensors()[:3]
    for wrong in (torch.zeros(3), torch.zeros(4, 1)):
        with pytest.raises(ValueError, match=r"log_scale \(...\), got \(4, 3\), \(4,\)"):
            Latents(z, theta, shift, wrong)
    with pytest.raises(ValueError, match="latents: expected z"):
        Latents(z, theta[:3], shift)
