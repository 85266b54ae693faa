"""Means of aligned particles, with their contrast transfer functions taken out where known."""

import torch
from torch import Tensor

from svae.checks import positive
from svae.ctf import CTF, ctf

__all__ = ["Averages", "squared_ctf"]


class Averages:
    r"""Means of groups of aligned particles, a batch at a time.

    Where the CTF of each particle is known, it is the Wiener filter's mean

    .. math:: \frac{\sum_i H_i F_i}{\sum_i H_i^2 + 1 / \mathrm{snr}}

    of the Fourier transforms F, H being the CTF as it is seen in the aligned image.

    Arguments:
        count: The number of groups.
        size: The side of the images in pixels.
        snr: The signal-to-noise ratio of a particle that the filter supposes.
    """

    def __init__(self, count: int, size: int, snr: float = 0.1) -> None:
        self.noise = 1 / positive("snr", snr)
        self.sums = torch.zeros(count, size, size, dtype=torch.float64)
        self.weights = torch.zeros(count, size, size // 2 + 1, dtype=torch.float64)
        self.counts = torch.zeros(count, dtype=torch.float64)
        self.filtered = False

    def add(self, aligned: Tensor, members: Tensor, squared: Tensor | None = None) -> None:
        """Add aligned particles.

        Arguments:
            aligned: The images, with shape (B, N, N); where `squared` is given, they were
                multiplied by their CTF before they were aligned.
            members: The groups that each belongs to, with shape (B, K).
            squared: The squares of their CTFs as seen in the aligned images (`squared_ctf`).
        """
        aligned = aligned.cpu().double()
        for column in members.unbind(1):
            self.sums.index_add_(0, column, aligned)
            self.counts.index_add_(0, column, torch.ones_like(column, dtype=torch.float64))
            if squared is not None:
                self.weights.index_add_(0, column, squared.cpu().double())
        self.filtered |= squared is not None

    def means(self) -> Tensor:
        """The mean of each group, with shape (G, N, N), float32."""
        if not self.filtered:
            return (self.sums / self.counts.clamp(min=1).reshape(-1, 1, 1)).float()
        spectra = torch.fft.rfft2(self.sums) / (self.weights + self.noise)
        return torch.fft.irfft2(spectra, s=self.sums.shape[-2:]).float()


def squared_ctf(of: CTF, psi_deg: Tensor, size: int, log_scale: Tensor | None = None) -> Tensor:
    """The squared CTFs of particles as seen once these are aligned: (B, N, N//2+1).

    Arguments:
        of: The CTFs of the particles as they are.
        psi_deg: What the particles were turned by, as in `align`, with shape (B,).
        size: The side of the images in pixels.
        log_scale: As in `align`.
    """
    seen = of.turned(psi_deg) if log_scale is None else of.turned(psi_deg).resized(log_scale)
    return ctf(seen.params, size, size, of.applied).square()
