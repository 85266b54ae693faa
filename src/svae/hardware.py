"""What the machine at hand does well."""

import torch

__all__ = ["accelerator_at_hand", "fast_precision"]


def accelerator_at_hand() -> str:
    """`gpu` where CUDA finds one, else `cpu`."""
    return "gpu" if torch.cuda.is_available() else "cpu"


def fast_precision(accelerator: str) -> str:
    """`bf16-mixed` where the hardware multiplies bfloat16 fast, else `32-true`.

    On processors that is AMX or AVX512-BF16; without them torch emulates bfloat16 and is slower
    than in float32.
    """
    if accelerator in ("gpu", "cuda"):
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    if accelerator == "cpu":
        checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        supported = [getattr(torch.cpu, name, lambda: False)() for name in checks]
        return "bf16-mixed" if any(supported) else "32-true"
    return "32-true"
