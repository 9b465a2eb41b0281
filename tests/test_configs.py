"""Every config that ships: it loads, holds differences only, and its header tells the result."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from recgpt.config import flatten, load_config, read_config
from recgpt.stages import load_stage

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
BASELINES = [path for path in CONFIGS if path.parent.name == "baselines"]


def _name(path: Path) -> str:
    return path.relative_to(ROOT / "configs").with_suffix("").as_posix()


def _stage(path: Path) -> str:
    return _name(path).partition("/")[0]


def _section(path: Path) -> Any:
    stage = _stage(path)
    return getattr(importlib.import_module(f"{load_stage(stage).__name__}.config"), f"{stage.capitalize()}Config")


def test_there_are_configs() -> None:
    names = {_name(path) for path in CONFIGS}
    assert {"pretrain/ml-1m", "pretrain/amazon-beauty", "pretrain/kuairand-pure", "finetune/kuairand-pure"} <= names
    assert {path.stem for path in BASELINES} == {"sasrec", "sasrec_ce", "gsasrec", "bert4rec", "esasrec", "hstu"}
    assert all(path.suffix == ".yaml" for path in (ROOT / "configs").rglob("*.*"))


@pytest.mark.parametrize("path", CONFIGS, ids=_name)
def test_config_holds_differences_only(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECGPT_DATA", str(tmp_path))  # a path is all that a config needs of it
    config = load_config(_section(path), path)
    values = flatten(config.model_dump(mode="json"))
    for key, value in flatten(read_config(path)).items():
        if key == "model.window.stride":
            continue  # its default follows the length
        if key.startswith(("model.", "loss.", "heads.", "optim.")) and key in values:
            section = type(getattr(config, key.partition(".")[0]))
            default = flatten(section().model_dump(mode="json")).get(key.partition(".")[2])
            assert value != default, f"{path.name}: {key} is the default"


@pytest.mark.parametrize("path", CONFIGS, ids=_name)
def test_header_tells_date_command_and_result(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    header = "\n".join(line for line in lines[:30] if line.startswith("#"))
    assert lines[0].startswith("# ")
    unmeasured = path in BASELINES and "Not yet measured" in header
    assert unmeasured or re.search(r"20\d\d-\d\d-\d\d", header), "the date of the measurement"
    command = "recgpt quickstart" if path.stem == "quickstart" else f"recgpt {_stage(path)} configs/{_name(path)}.yaml"
    assert command in header
    assert re.search(r"\d\.\d|(?<!\d)\.\d", header), "the measured result"


@pytest.mark.parametrize("path", BASELINES, ids=_name)
def test_a_baseline_names_its_source_and_published_figure_on_the_same_log_and_split(path: Path) -> None:
    header = path.read_text(encoding="utf-8").partition("\ndata:")[0]
    assert re.search(r"\(.*20[12]\d", header), "authors and year"
    assert re.search(r"Published on this file and protocol.*: recall@10 / NDCG@10 \.\d{4}/\.\d{4}", header)
    assert read_config(path)["data"] == read_config(ROOT / "configs" / "pretrain" / "ml-1m.yaml")["data"]
