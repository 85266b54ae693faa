import numpy as np
import torch
from scipy import stats
from torch.testing import assert_close

from svae.noise import Noise, _mix


def test_mixing_is_that_of_splitmix64():
    # The first outputs of the reference generator from seed 0: its states are k * golden ratio.
    golden = np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    mixed = _mix(torch.from_numpy(golden.astype(np.int64)))
    assert mixed.numpy().astype(np.uint64).tolist() == expected


def test_an_image_has_the_same_noise_in_every_batch():
    whole = Noise(1, 7, torch.arange(100)).normal("z", 3, 2)
    part = Noise(1, 7, torch.tensor([42, 5])).normal("z", 3, 2)
    assert torch.equal(part, whole[[42, 5]])


def test_seed_step_purpose_and_image_each_change_it():
    index = torch.arange(4)
    draws = [
        Noise(1, 7, index).normal("z", 5),
        Noise(2, 7, index).normal("z", 5),
        Noise(1, 8, index).normal("z", 5),
        Noise(1, "val", index).normal("z", 5),
        Noise(1, 7, index).normal("theta", 5),
        Noise(1, 7, index + 4).normal("z", 5),
    ]
    values = torch.stack(draws).flatten()
    assert len(values.unique()) == len(values)


def test_numbers_are_uniform_and_independent():
    uniform = Noise(3, 0, torch.arange(2000)).uniform("u", 50).numpy()
    assert uniform.min() > 0
    assert uniform.max() < 1
    assert stats.kstest(uniform.ravel(), "uniform").pvalue > 1e-3
    normal = Noise(3, 0, torch.arange(2000)).normal("n", 50).numpy()
    assert stats.kstest(normal.ravel(), "norm").pvalue > 1e-3
    # Neighbouring images and neighbouring elements; 100,000 numbers have a spread of 0.003.
    assert abs(np.corrcoef(normal[:-1].ravel(), normal[1:].ravel())[0, 1]) < 0.013
    assert abs(np.corrcoef(normal[:, :-1].ravel(), normal[:, 1:].ravel())[0, 1]) < 0.013


def test_shapes():
    noise = Noise(0, 0, torch.arange(6))
    assert noise.uniform("a").shape == (6,)
    assert noise.normal("a", 2, 3).shape == (6, 2, 3)
    assert noise.normal("a", 2, 0).shape == (6, 2, 0)
    assert_close(noise.uniform("a", 2, 3).flatten(1), noise.uniform("a", 6))
