import sys
from pathlib import Path

import numpy as np
import pytest

from svae.formats.cryosparc import CsTable, read_cs, write_cs


def records() -> np.ndarray:
    array = np.zeros(
        3,
        [
            ("uid", "<u8"),
            ("blob/path", "S20"),
            ("blob/idx", "<u4"),
            ("ctf/df1_A", "<f4"),
            ("alignments2D/shift", "<f4", (2,)),
        ],
    )
    array["uid"] = [2**63 + 5, 7, 9]
    array["blob/path"] = [b">J1/a.mrcs", b">J1/a.mrcs", b">J1/b.mrcs"]
    array["blob/idx"] = [0, 1, 0]
    array["ctf/df1_A"] = [1e4, 2e4, 3e4]
    array["alignments2D/shift"] = [[1, 2], [3, 4], [5, 6]]
    return array


@pytest.mark.parametrize("csdat", [False, True])
def test_either_kind_is_written_as_it_was_read(tmp_path: Path, csdat: bool):
    if csdat:
        pytest.importorskip("cryosparc")
    path, again = tmp_path / "in.cs", tmp_path / "out.cs"
    write_cs(path, CsTable(records(), csdat))
    assert path.read_bytes()[1:6] == (b"CSDAT" if csdat else b"NUMPY")

    table = read_cs(path)
    write_cs(again, table)

    assert table.csdat == csdat
    assert table.records.dtype.names == records().dtype.names
    for name in records().dtype.names:
        np.testing.assert_array_equal(table.column(name), records()[name])
    np.testing.assert_array_equal(read_cs(again).records, table.records)
    assert again.read_bytes()[:6] == path.read_bytes()[:6]


def test_both_kinds_are_those_of_cryosparc_tools(tmp_path: Path):
    dataset = pytest.importorskip("cryosparc.dataset").Dataset
    for format in (1, 2):
        path = tmp_path / f"{format}.cs"
        dataset(records()).save(str(path), format=format)
        table = read_cs(path)
        np.testing.assert_array_equal(table.column("blob/path"), records()["blob/path"])
        write_cs(tmp_path / "out.cs", table)
        again = dataset.load(str(tmp_path / "out.cs"))
        assert again["blob/path"].tolist() == [">J1/a.mrcs", ">J1/a.mrcs", ">J1/b.mrcs"]
        np.testing.assert_array_equal(again["alignments2D/shift"], [[1, 2], [3, 4], [5, 6]])


def test_fields_are_changed_and_added(tmp_path: Path):
    table = CsTable(records()).with_columns(
        {
            "alignments2D/pose": np.array([0.1, 0.2, 0.3], np.float32),
            "alignments2D/shift": np.zeros((3, 2)),
            "blob/path": np.array(["a path that is longer than twenty"] * 3),
            "svae/z": np.ones((3, 4), np.float32),
        }
    )
    write_cs(tmp_path / "out.cs", table.select(np.array([2, 0])))
    again = read_cs(tmp_path / "out.cs").records

    assert again.dtype.names == (*records().dtype.names, "alignments2D/pose", "svae/z")
    assert again["uid"].tolist() == [9, 2**63 + 5]
    assert again["alignments2D/shift"].dtype == np.float32
    assert not again["alignments2D/shift"].any()
    assert again["svae/z"].shape == (2, 4)
    assert again["blob/path"][0] == b"a path that is longer than twenty"
    np.testing.assert_array_equal(again["alignments2D/pose"], np.float32([0.3, 0.1]))


def test_a_csdat_without_cryosparc_tools_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "cryosparc.dataset", None)
    (tmp_path / "in.cs").write_bytes(b"\x95CSDAT" + bytes(20))
    with pytest.raises(ValueError, match=r"in\.cs.*svae\[cryosparc\]"):
        read_cs(tmp_path / "in.cs")


@pytest.mark.parametrize(
    "content",
    [b"", b"data_\n", b"\x93NUMPY\x01\x00v\x00{'descr'", b"\x95CSDAT\x01\x02"],
)
def test_what_is_no_cs_is_told_in_one_line(tmp_path: Path, content: bytes):
    if content.startswith(b"\x95"):
        pytest.importorskip("cryosparc")
    path = tmp_path / "in.cs"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"in\.cs: no .*\.cs file") as caught:
        read_cs(path)
    assert "\n" not in str(caught.value)


def test_an_array_of_numbers_is_no_cs(tmp_path: Path):
    with (tmp_path / "in.cs").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match="not of records"):
        read_cs(tmp_path / "in.cs")


def test_fields_of_another_length_are_refused():
    with pytest.raises(ValueError, match="svae/z: expected 3 values, got 2"):
        CsTable(records()).with_columns({"svae/z": np.zeros(2)})
