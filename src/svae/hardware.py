"""What the machine at hand does well."""

import ctypes
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath

import torch

__all__ = [
    "accelerator_at_hand",
    "commit_of",
    "environment",
    "fast_precision",
    "has_amx",
    "keep_freed_memory",
    "memory_at_hand",
]

#: Parameters of glibc's `mallopt`, and their values in bytes: from which size on memory is taken
#: from the system by itself and given back when it is freed (older versions take half of ours at
#: most), and how much may be free at the end of the heap before that is given back.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
_KEPT_ALONE, _KEPT_FREE = 2**26, 2**30


def accelerator_at_hand() -> str:
    """`gpu` where CUDA finds one, else `cpu`."""
    return "gpu" if torch.cuda.is_available() else "cpu"


def fast_precision(accelerator: str) -> str:
    """`bf16-mixed` where the hardware multiplies bfloat16 fast, else `32-true`.

    On processors that is AMX or AVX512-BF16; without them torch emulates bfloat16 and is slower
    than in float32, as it is on older GPUs.
    """
    if accelerator in ("gpu", "cuda"):
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16-mixed" if fast else "32-true"
    if accelerator == "cpu" and (has_amx() or _cpu_has("avx512_bf16")):
        return "bf16-mixed"
    return "32-true"


def has_amx() -> bool:
    """Whether the processor multiplies bfloat16 in tiles (AMX)."""
    return _cpu_has("amx_tile")


def _cpu_has(feature: str) -> bool:
    return bool(getattr(torch.cpu, f"_is_{feature}_supported", lambda: False)())


def keep_freed_memory() -> None:
    """Have the process keep what it frees of memory for what it allocates next.

    glibc gives pieces of more than 32 MB back to the system at once, and smaller ones as soon as
    they are at the end of its heap; the system hands them out again page by page and zeroed: a
    quarter of a training step on a processor with AMX. Pieces of up to 64 MB are kept from here
    on, larger ones are not. Does nothing without glibc, or where the user has set its allocator.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc" in tunables or any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # other systems, other libraries
        return
    # Where neither size is taken, setting the other would stop glibc from finding one of its own.
    if any(mallopt(_MMAP_THRESHOLD, size) for size in (_KEPT_ALONE, _KEPT_ALONE // 2)):
        mallopt(_TRIM_THRESHOLD, _KEPT_FREE)


def memory_at_hand(accelerator: str) -> int:
    """The bytes of memory that the GPU has, or else the machine, or what of it a job may use."""
    if accelerator in ("gpu", "cuda"):
        return torch.cuda.get_device_properties(0).total_memory
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def _limits(membership: Path, root: Path) -> Iterator[int]:
    """The limits in bytes of a container's or job's memory: of its control group and all above.

    Arguments:
        membership: The file that says in which groups a process is.
        root: Where the groups are mounted.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # other systems
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        # Version 2 has one hierarchy and no controllers in its line, version 1 one for each.
        base, name = (
            (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        )
        below = PurePosixPath(group.lstrip("/"))
        for part in (below, *below.parents):
            try:
                yield int((base / part / name).read_text())
            except (OSError, ValueError):  # the group of another namespace; `max`
                continue


def environment() -> dict[str, str]:
    """What a run's numbers depend on beside its config: the versions at work, and the machine."""
    found = {"python": platform.python_version(), "machine": platform.platform()}
    if commit := commit_of(Path(__file__).parent):
        found["commit"] = commit
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


def commit_of(package: Path) -> str | None:
    """The git commit of a package's source, with `-dirty` if tracked files differ from it.

    None where there is no git, and for an installed package, which a repository around its
    folder (a user's project with a virtual environment in it) does not track.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*command: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *command],
                cwd=package,
                env=clean,
                capture_output=True,
                text=True,
                timeout=10,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return git("describe", "--always", "--exclude=*", "--abbrev=40", "--dirty") or None


def _processor() -> str:
    """The name of the processor, as far as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    named = re.search(r"^model name\s*:\s*(.+)", text, re.MULTILINE)
    return named[1] if named else platform.processor() or platform.machine()
