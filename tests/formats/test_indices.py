import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from svae.formats.indices import read_indices


class Harmful:
    """What runs a command when it is unpickled as usual."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def put(path: Path, values: Any, protocol: int = 4) -> Path:
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".txt":
        path.write_text("".join(f"{value}\n" for value in values))
    else:
        path.write_bytes(pickle.dumps(values, protocol))
    return path


@pytest.mark.parametrize("suffix", [".npy", ".pkl", ".txt"])
def test_numbers_are_read_in_their_order(tmp_path: Path, suffix: str):
    path = put(tmp_path / f"a{suffix}", np.array([5, 0, 3], np.uint32))
    indices = read_indices(path, 6)
    assert indices.tolist() == [5, 0, 3]
    assert indices.dtype == np.int64


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("values", [np.array([2, 1]), [2, 1], [np.int64(2), np.int64(1)]])
def test_pickles_of_numbers_are_read(tmp_path: Path, values: Any, protocol: int):
    assert read_indices(put(tmp_path / "a.pkl", values, protocol), 3).tolist() == [2, 1]


def test_pickles_of_older_numpy_are_read(tmp_path: Path):
    content = pickle.dumps(np.array([2, 1]), 2).replace(b"numpy._core", b"numpy.core")
    (tmp_path / "a.pkl").write_bytes(content)
    assert read_indices(tmp_path / "a.pkl", 3).tolist() == [2, 1]


@pytest.mark.parametrize("suffix", [".npy", ".pkl"])
def test_truth_values_select(tmp_path: Path, suffix: str):
    path = put(tmp_path / f"a{suffix}", np.array([True, False, True]))
    assert read_indices(path, 3).tolist() == [0, 2]
    with pytest.raises(ValueError, match="got bool of shape"):
        read_indices(path, 4)


def test_a_pickle_never_runs_anything(tmp_path: Path):
    mark = tmp_path / "run"
    for name, value in (("a.pkl", Harmful(mark)), ("b.pkl", np.array([Harmful(mark)]))):
        path = put(tmp_path / name, value)
        with pytest.raises(ValueError, match=r"\.pkl: expected the numbers.*it asks for"):
            read_indices(path, 3)
    buffer = io.BytesIO()
    np.save(buffer, np.array([Harmful(mark)], dtype=object), allow_pickle=True)
    (tmp_path / "a.npy").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=r"a\.npy: expected the numbers"):
        read_indices(tmp_path / "a.npy", 3)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 3, 7], r"expected numbers from 0 to 2.*got 3 \(2 of 3 are outside\)"),
        ([-1, 0], "expected numbers from 0 to 2.*got -1"),
        ([1, 0, 1], "1 particles are there more than once, such as 1"),
        ([], "selects no particle"),
        ([0.5, 1], "expected"),
        ([[0, 1]], "expected"),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".pkl", ".txt"])
def test_what_is_no_selection_is_told_in_one_line(
    tmp_path: Path, suffix: str, values: list[Any], message: str
):
    array = np.array(values) if values else np.zeros(0, np.int64)
    path = put(tmp_path / f"a{suffix}", array)
    with pytest.raises(ValueError, match=f"a{suffix}: .*{message}") as caught:
        read_indices(path, 3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".npy", ".pkl", ".txt"])
def test_damaged_and_missing_files_are_told(tmp_path: Path, suffix: str):
    path = tmp_path / f"a{suffix}"
    with pytest.raises(FileNotFoundError, match=f"a{suffix}"):
        read_indices(path, 3)
    path.write_bytes(b"\x80\x04rubbish")
    with pytest.raises(ValueError, match=f"a{suffix}: expected the numbers"):
        read_indices(path, 3)
