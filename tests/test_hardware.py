"""What the machine at hand does well."""

import os
import platform
import subprocess
import sys

import pytest

#: How often the process waits for the system to hand out a page of memory, while a tensor of
#: 16 MB is made and dropped ten times.
COUNT = """
import resource, torch
from svae.hardware import keep_freed_memory
if {keep}:
    keep_freed_memory()
def again():
    for _ in range(10):
        torch.zeros(4_000_000)
again()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
again()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep, **settings):
    set_by_user = ("MALLOC_", "GLIBC_TUNABLES")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(set_by_user)}
    done = subprocess.run(
        [sys.executable, "-c", COUNT.format(keep=keep)],
        env={**clean, **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of glibc alone")
def test_freed_memory_is_kept_unless_the_user_says_otherwise():
    # Ten times 16 MB are 80 pages of 2 MB or 40,000 of 4 kB; how the heap lies may cost a tenth.
    given_back = faults(keep=True, MALLOC_MMAP_THRESHOLD_="100000")
    assert given_back >= 50
    assert faults(keep=True, GLIBC_TUNABLES="glibc.malloc.mmap_threshold=100000") > given_back / 2
    for other in ({}, {"MALLOCATED": "1", "PYTHONMALLOC": "malloc"}):
        assert faults(keep=True, **other) < given_back / 4
