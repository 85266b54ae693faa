"""Random numbers that are a function of what they are for.

Every number is computed from (seed, step, purpose, image index, element) by a counter-based
generator. An image so gets the same noise whichever batch or process it lands in: several
processes draw what one would have drawn, evaluation does not depend on the batch size, and a
resumed run goes on exactly as an uninterrupted one, with no generator state to save.

References:
    Fast splittable pseudorandom number generators (Steele, Lea and Flood, 2014): the mixing
    function and the golden-ratio increment.
"""

import hashlib

import torch
from torch import Tensor

__all__ = ["Noise"]

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def _signed(value: int) -> int:
    """A 64-bit pattern as the signed integer that torch stores it as."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _shift_right(bits: Tensor, count: int) -> Tensor:
    # torch shifts signed integers arithmetically; the mask drops the copied sign bits.
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _mix(bits: Tensor) -> Tensor:
    """The finaliser of SplitMix64 on int64 tensors (products wrap around)."""
    bits = (bits ^ _shift_right(bits, 30)) * _signed(0xBF58476D1CE4E5B9)
    bits = (bits ^ _shift_right(bits, 27)) * _signed(0x94D049BB133111EB)
    return bits ^ _shift_right(bits, 31)


class Noise:
    """The noise of a batch of images.

    Arguments:
        seed: The seed of the run.
        step: What makes the noise new: the number of the training step, or a name.
        index: The index of each image in its data set, int64, with shape (B,).
    """

    def __init__(self, seed: int, step: int | str, index: Tensor) -> None:
        self.seed, self.step, self.index = seed, step, index

    def _bits(self, purpose: str, count: int) -> Tensor:
        name = f"{self.seed}/{self.step}/{purpose}".encode()
        key = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")
        stream = _mix(self.index.long() * _signed(_GOLDEN) + _signed(key))
        counter = torch.arange(1, count + 1, device=self.index.device) * _signed(_GOLDEN)
        return _mix(_mix(stream).unsqueeze(-1) + counter)  # (B, count)

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """Uniform numbers strictly inside (0, 1), float64, with shape (B, *shape)."""
        count = 1
        for size in shape:
            count *= size
        bits = _shift_right(self._bits(purpose, count), 12).double()  # 52 bits
        return ((bits + 0.5) * 2.0**-52).reshape(len(self.index), *shape)

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """Standard normal numbers, float64, with shape (B, *shape)."""
        return torch.special.ndtri(self.uniform(purpose, *shape))
