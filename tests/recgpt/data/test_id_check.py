"""What `data check` tells about ids."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from recgpt.cli import main
from recgpt.data.check import check, print_check
from recgpt.data.id_check import id_settings
from recgpt.errors import ConfigError
from recgpt.nn.ids import IdEmbeddingConfig
from tests.recgpt.data.logfiles import write_parquet


def settings(tmp_path, **model):
    rng = np.random.default_rng(0)
    items = [f"item {i}" for i in rng.integers(0, 400, 6000)]
    columns = {"u": rng.integers(0, 100, 6000), "i": items, "t": rng.permutation(6000)}
    path = write_parquet(tmp_path / "log.parquet", columns)
    return {"data": {"events": str(path), "user": "u", "item": "i", "time": "t"}, "model": model}


def test_the_settings_are_those_of_the_model_section():
    assert id_settings({"data": {}}, []) == (IdEmbeddingConfig(), 64)
    model = {"id": {"kind": "qr", "rows": 50}, "dim": 16, "layers": 7}
    assert id_settings({"model": model}, ["model.id.rows=9"]) == (IdEmbeddingConfig(kind="qr", rows=9), 16)
    with pytest.raises(ConfigError, match=r"model\.id\.row: unknown key .*did you mean 'rows'"):
        id_settings({"model": {"id": {"row": 5}}}, [])
    with pytest.raises(ConfigError, match=r"model\.id\.kind"):
        id_settings({}, ["model.id.kind=shelf"])


def test_a_small_table_confuses_items_of_the_log(tmp_path):
    """Some 400 items in 30 rows: 435 sets of two rows, so nearly half meet another."""
    found = check(settings(tmp_path, id={"rows": 30}, dim=8))
    ids = found["id_collisions"]
    assert ids["log"]["ids"] == found["items"] == 400
    assert ids["log"]["bytes"] == 30 * 8 * 4
    assert ids["log"]["expected"] == pytest.approx(400 * (1 - (1 - 2 / 900) ** 399), rel=0.05)
    assert ids["log"]["actual"] == pytest.approx(ids["log"]["expected"], rel=0.2)
    assert [row["ids"] for row in ids["sizes"]] == [10**6, 10**7, 10**8, 10**9]
    text = io.StringIO()
    print_check(found, Console(file=text, width=100))
    lines = [line for line in text.getvalue().splitlines() if "400 (this log)" in line]
    assert len(lines) == 1
    assert f" {ids['log']['actual']} " in lines[0]
    assert "1,000,000,000" in text.getvalue()
    assert "model.id (hash, rows 30, dim 8)" in text.getvalue()


def test_json_has_them(tmp_path, capsys):
    file = tmp_path / "my.yaml"
    file.write_text(json.dumps(settings(tmp_path)))
    assert main(["data", "check", str(file), "model.id.kind=full", "model.dim=16", "--json"]) == 0
    ids = json.loads(capsys.readouterr().out)["id_collisions"]
    assert (ids["kind"], ids["log"]["actual"], ids["log"]["bytes"]) == ("full", 0, 400 * (16 * 4 + 8))
