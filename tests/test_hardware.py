"""What the machine at hand does well."""

import os
import platform
import shutil
import subprocess
import sys

import pytest

from svae.hardware import _limits, commit_of, environment, memory_at_hand

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


@pytest.mark.parametrize(
    ("membership", "files", "found"),
    [
        # version 2: the group and all above it; `max` is none
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": "4096"}, [4096]),
        ("0::/a\n", {"a/memory.max": "8192", "memory.max": "4096"}, [8192, 4096]),
        # a container sees its own group as the root, whatever it is called outside
        ("0::/outside/me\n", {"memory.max": "4096"}, [4096]),
        ("0::/../me\n", {"memory.max": "4096"}, [4096]),
        # version 1, and both side by side
        ("5:cpu:/x\n4:memory:/a\n", {"memory/a/memory.limit_in_bytes": "4096"}, [4096]),
        ("4:hugetlb,memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": "4096"}, [4096]),
        ("0::/\n", {}, []),
    ],
)
def test_what_a_job_may_use_of_the_memory(tmp_path, membership, files, found):
    root = tmp_path / "cgroup"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    (tmp_path / "membership").write_text(membership)
    assert list(_limits(tmp_path / "membership", root)) == found
    assert list(_limits(tmp_path / "nothing", root)) == []


def test_no_more_memory_is_at_hand_than_the_machine_has():
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    assert 2**28 < memory_at_hand("cpu") <= pages * size


def git(folder, *command):
    named = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *named, *command], cwd=folder, check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_that_of_the_code_and_of_no_repository_around_it(tmp_path, monkeypatch):
    package = tmp_path / "src" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("one = 1\n")
    assert commit_of(package) is None
    git(tmp_path, "init")
    (tmp_path / "other.txt").write_text("a user's own\n")
    git(tmp_path, "add", "other.txt")
    git(tmp_path, "commit", "-m", "other")
    assert commit_of(package) is None  # as in a virtual environment within a project
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "code")
    git(tmp_path, "tag", "-a", "v1", "-m", "a tag has no commit's name")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))  # as within a git hook
    commit = commit_of(package)
    assert len(commit) == 40
    (package / "__init__.py").write_text("one = 2\n")
    assert commit_of(package) == f"{commit}-dirty"
    monkeypatch.setattr("svae.hardware.commit_of", lambda package: commit)
    assert environment()["commit"] == commit
    monkeypatch.setattr("svae.hardware.commit_of", lambda package: None)
    assert "commit" not in environment()
