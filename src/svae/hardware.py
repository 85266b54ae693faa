"""What the machine at hand does well."""

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

__all__ = ["accelerator_at_hand", "environment", "fast_precision", "memory_at_hand"]


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


def memory_at_hand(accelerator: str) -> int:
    """The bytes of memory that the GPU has, or else the machine."""
    if accelerator in ("gpu", "cuda"):
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def environment() -> dict[str, str]:
    """What a run's numbers depend on beside its config: the versions at work, and the machine."""
    found = {"python": platform.python_version(), "machine": platform.platform()}
    for package in ("svae", "torch", "pytorch-lightning"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"  # svae from PYTHONPATH
    found["processor"] = _processor()
    found["cores"], found["threads"] = str(os.cpu_count()), str(torch.get_num_threads())
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    """The name of the processor, as far as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    named = re.search(r"^model name\s*:\s*(.+)", text, re.MULTILINE)
    return named[1] if named else platform.processor() or platform.machine()
