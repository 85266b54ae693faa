import json
import os

import pytest

from svae.files import write_atomic, write_metrics


def test_an_interrupted_write_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write_metrics(path, {"test/elbo": -1.0})
    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:

            def stop(*args):
                raise KeyboardInterrupt

            patch.setattr(os, step, stop)
            with pytest.raises(KeyboardInterrupt):
                write_metrics(path, {"test/elbo": -2.0})
        assert json.loads(path.read_text()) == {"test/elbo": -1.0}
        assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_a_folder_is_made_and_content_replaced(tmp_path):
    path = tmp_path / "a" / "b.txt"
    write_atomic(path, "one")
    write_atomic(path, b"two")
    assert path.read_text() == "two"
