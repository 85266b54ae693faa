r"""The contrast transfer function of an electron microscope, with RELION's signs and units.

.. math:: \mathrm{CTF}(s) = \sin\Big(\pi \lambda \Delta f(\alpha) s^2
          - \frac{\pi}{2} C_s \lambda^3 s^4 + \phi + \arcsin w\Big) e^{-B s^2 / 4}, \qquad
          \Delta f(\alpha) = \frac{u + v}{2} + \frac{u - v}{2} \cos 2 (\alpha - \alpha_0)

at the spatial frequency s in the direction :math:`\alpha`, with the defoci u and v (positive is
underfocus), the phase shift :math:`\phi` and the amplitude contrast w, which is the value at s = 0
without a phase shift: protein that is bright before is bright after.

The angle of u counts from the direction of growing columns towards that of growing rows, as
`rlnDefocusAngle` does: clockwise as seen in the image, unlike every other angle here. Rows run
downwards in memory as in the files, so that nothing has to be turned.

References:
    CTF determination and correction in electron cryotomography and single particles: Rohou and
    Grigorieff, CTFFIND4 (2015), equations 2 to 5; signs and constants as in RELION's `CTF`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["CTF", "CTF_PARAMS", "PHASES_FLIPPED", "PREMULTIPLIED", "ctf"]

#: What the numbers of an image's CTF are, in their order.
CTF_PARAMS = (
    "defocus_u_A",
    "defocus_v_A",
    "astigmatism_deg",
    "voltage_kV",
    "cs_mm",
    "amplitude_contrast",
    "phase_shift_deg",
    "pixel_size_A",
    "b_factor_A2",
)

#: What may have been done to images already: phases flipped, or the whole CTF multiplied again.
PHASES_FLIPPED, PREMULTIPLIED = 1, 2


def ctf(params: Tensor, height: int, width: int, applied: Tensor | None = None) -> Tensor:
    """What each spatial frequency of an image is multiplied by.

    Arguments:
        params: The numbers named in `CTF_PARAMS`, with shape (B, 9); the pixel size is that of
            the images as they are given here.
        height: Of the images, in pixels.
        width: Of the images, in pixels.
        applied: What was done to the images, with shape (B,): 0 nothing, 1 phases were flipped
            (their CTF is the absolute value), 2 they were multiplied by the CTF (the square).

    Returns:
        The CTF in the layout of `torch.fft.rfft2`, with shape (B, H, W // 2 + 1), float32.
    """
    if params.ndim != 2 or params.shape[1] != len(CTF_PARAMS):
        raise ValueError(
            f"params: expected shape (B, {len(CTF_PARAMS)}), got {tuple(params.shape)}"
        )
    # The phase reaches a thousand radians.
    u, v, angle, kilovolts, cs, contrast, shift, pixel, b_factor = params.double()[
        :, :, None, None
    ].unbind(1)
    frequencies = {"dtype": torch.float64, "device": params.device}
    y = torch.fft.fftfreq(height, **frequencies)[:, None] / pixel
    x = torch.fft.rfftfreq(width, **frequencies) / pixel
    wavelength = _wavelength(kilovolts * 1e3)
    squared = x**2 + y**2
    twice = torch.deg2rad(2 * angle)
    along = twice.cos() * (x**2 - y**2) + twice.sin() * (2 * x * y)
    phase = math.pi * wavelength * ((u + v) / 2 * squared + (u - v) / 2 * along)
    phase -= math.pi / 2 * (cs * 1e7) * wavelength**3 * squared**2
    phase += torch.deg2rad(shift) + torch.asin(contrast)
    value = torch.sin(phase) * torch.exp(-b_factor / 4 * squared)
    if applied is not None:
        applied = applied[:, None, None]
        value = torch.where(applied == PHASES_FLIPPED, value.abs(), value)
        value = torch.where(applied == PREMULTIPLIED, value.square(), value)
    return value.float()


def _wavelength(volts: Tensor) -> Tensor:
    """The relativistic wavelength of electrons in Å, with the constants of RELION."""
    return 12.2643247 / torch.sqrt(volts * (1 + volts * 0.978466e-6))


@dataclass(frozen=True)
class CTF:
    """The CTF of every image of a batch.

    Arguments:
        params: As in `ctf`, with shape (B, 9).
        applied: As in `ctf`, with shape (B,).
    """

    params: Tensor
    applied: Tensor

    @staticmethod
    def of(batch: Mapping[str, Tensor]) -> CTF | None:
        """What a batch says in `ctf` and, where anything was done, `ctf_applied`."""
        if (params := batch.get("ctf")) is None:
            return None
        nothing = torch.zeros(len(params), dtype=torch.long, device=params.device)
        return CTF(params, batch.get("ctf_applied", nothing))

    def __getitem__(self, rows: Tensor | slice) -> CTF:
        return CTF(self.params[rows], self.applied[rows])

    def to(self, device: torch.device) -> CTF:
        """The same on a device."""
        return CTF(self.params.to(device), self.applied.to(device))

    def turned(self, psi_deg: Tensor) -> CTF:
        """The CTF as it is seen in the images turned by RELION's angle (B,) in degrees.

        Both angles run from growing columns to growing rows.
        """
        params = self.params.clone()
        params[:, CTF_PARAMS.index("astigmatism_deg")] += psi_deg.to(params)
        return CTF(params, self.applied)

    def mirrored(self, which: Tensor) -> CTF:
        """The CTF as it is seen in the images, some of them mirrored from left to right.

        Arguments:
            which: Whether each of them is, with shape (B,).
        """
        params = self.params.clone()
        params[:, CTF_PARAMS.index("astigmatism_deg")] *= 1 - 2 * which.to(params)
        return CTF(params, self.applied)

    def resized(self, log_scale: Tensor) -> CTF:
        """The CTF as it is seen in images from which sizes were removed: they have other pixels.

        Arguments:
            log_scale: The logarithms of the sizes that became 1, with shape (B,).
        """
        params = self.params.clone()
        params[:, CTF_PARAMS.index("pixel_size_A")] *= log_scale.exp().to(params)
        return CTF(params, self.applied)

    def filtered(self, images: Tensor, padding: int = 1) -> Tensor:
        """Images as the microscope shows them.

        Arguments:
            images: The images, with shape (B, C, H, W).
            padding: How many times as high and wide they are made with zeros first. With 1, as in
                RELION, what the CTF moves out at one side comes back at the other.

        Returns:
            The filtered images, with shape (B, C, H, W).
        """
        height, width = images.shape[-2:]
        size = padding * height, padding * width
        values = ctf(self.params, *size, self.applied).unsqueeze(1).to(images)
        seen: Tensor = torch.fft.irfft2(torch.fft.rfft2(images, s=size) * values, s=size)
        return seen[..., :height, :width]
