"""`prepare` killed anywhere leaves no folder that opens; two at once end well."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from recgpt.data.prepare import prepare
from recgpt.data.prepared import Prepared
from recgpt.errors import ConfigError
from tests.recgpt.builders import write_log

ROOT = Path(__file__).parents[3]
LENGTHS = [3, 8, 1, 21, 5]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A log, and a config whose prepared folder lies alone in `place`."""
    data = write_log(tmp_path / "log", LENGTHS) | {"prepared": str(tmp_path / "place" / "prepared")}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"data": data}), encoding="utf-8")
    return path


def drive(scenario: str, config: Path) -> tuple[list[int], str]:
    """The exit codes of the scenario's processes (minus the signal), and what they wrote on stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.recgpt.data.prepare_crash_driver", scenario, str(config)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def assert_whole(folder: Path) -> None:
    prepared = Prepared.open(folder)
    assert sorted(prepared.users.n_events) == sorted(LENGTHS)
    assert prepared.n_events == len(prepared.events(0, prepared.n_events)) == sum(LENGTHS)
    assert len(prepared.items) == prepared.n_items
    assert not (folder / "scratch").exists()


@pytest.mark.parametrize(
    "scenario", ["in the middle", "before the summary", "while scratch is removed", "before the rename"]
)
def test_killed_leaves_nothing_that_opens(config: Path, tmp_path: Path, scenario: str) -> None:
    codes, errors = drive(scenario, config)
    assert codes == [-signal.SIGKILL], errors
    place = tmp_path / "place"
    with pytest.raises(ConfigError, match="no prepared log"):
        Prepared.open(place / "prepared")

    assert prepare(config, progress=False).n_events == sum(LENGTHS)
    assert_whole(place / "prepared")
    # What the killed process left, which may be as large as the log, is gone.
    assert [path.name for path in place.iterdir()] == ["prepared"]


def test_killed_while_another_log_is_replaced(config: Path, tmp_path: Path) -> None:
    """The old sequences stay in force until the new ones are whole."""
    prepare(config, progress=False)
    values = yaml.safe_load(config.read_text())
    values["data"]["duplicates"] = "drop"
    config.write_text(yaml.safe_dump(values))
    codes, errors = drive("before the summary", config)
    assert codes == [-signal.SIGKILL], errors
    folder = tmp_path / "place" / "prepared"
    assert_whole(folder)
    old = Prepared.open(folder).summary["digest"]
    assert prepare(config, progress=False).summary["digest"] != old


def test_two_at_once(config: Path, tmp_path: Path) -> None:
    codes, errors = drive("two at once", config)
    assert codes == [0, 0], errors
    assert_whole(tmp_path / "place" / "prepared")
    # The second found what the first had made, and worked on nothing.
    assert len(list((tmp_path / "place" / "meeting").iterdir())) == 1
