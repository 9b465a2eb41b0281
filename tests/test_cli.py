"""The command line: exit codes, help, JSON on stdout; stand-ins do the work."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import recgpt.stages
from recgpt.cli import main
from recgpt.cli_verbs import VERBS
from recgpt.errors import ConfigError, RecGPTError, Stopped

ROOT = Path(__file__).resolve().parent.parent


class Recorder:
    """Stands for a function of the library: keeps its arguments, returns or raises `result`."""

    def __init__(self, result: Any = None) -> None:
        self.result = {"done": 1} if result is None else result
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.args, self.kwargs = args, kwargs
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recorder]:
    """Put a Recorder in the place of `module.name`."""

    def put(module: str, name: str, result: Any = None) -> Recorder:
        recorder = Recorder(result)
        fake = ModuleType(module)
        setattr(fake, name, recorder)
        monkeypatch.setitem(sys.modules, module, fake)
        return recorder

    return put


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder({"run": "runs/a", "steps": 3, "finished": True})
    monkeypatch.setattr(recgpt.stages, "load_stage", lambda name: recorder)
    return recorder


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_help_of_every_verb_has_examples(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*verb.name.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: recgpt {verb.name}")
    assert f"recgpt {verb.name} " in text.partition("examples:")[2] or verb.name == "quickstart"
    assert "--json" in text
    assert max(map(len, text.splitlines())) <= 100


def test_overview_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for verb in VERBS.values():
        assert verb.summary in text
    assert main([]) == 2
    assert capsys.readouterr().err == text
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"recgpt {recgpt.__version__}\n"


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (["pretrian", "a.yaml"], "pretrain"),
        (["eval", "runs/a"], "evaluate"),
        (["data", "chek"], "data check"),
        (["data"], "data check"),
        (["config"], "config show"),
        (["exprot"], "export"),
    ],
)
def test_an_unknown_verb_names_the_nearest(words: list[str], nearest: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert f"did you mean `recgpt {nearest}`?" in captured.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--json", "evaluate", "runs/a"], "options come after the verb"),
        (["evaluate"], "RUN"),
        (["evaluate", "runs/a", "--split", "train"], "'train'"),
        (["evaluate", "runs/a", "--k", "10,zero"], "'zero' is no whole number above 0"),
        (["evaluate", "runs/a", "--k", "0"], "'0'"),
        (["recommend", "runs/a", "--user", "-k", "5"], "--user"),
        (["recommend", "runs/a"], "--user"),
        (["recommend", "runs/a", "--user", "1", "-k", "-2"], "-k"),
        (["export", "runs/a"], "--out"),
        (["pretrain", "a.yaml", "--freshh"], "--freshh"),
        (["quickstart", "--size", "huge"], "'huge'"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_2(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("recgpt: ")
    assert captured.err.count("\n") == 1
    assert told in captured.err


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (ConfigError("data.user: no column 'u'"), 2, "data.user: no column 'u'"),
        (RecGPTError("runs/a: truncated"), 1, "runs/a: truncated"),
        (Stopped("saved step 7", 130), 130, "saved step 7"),
        (Stopped("saved step 7", 143), 143, "saved step 7"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
        (KeyError("a\nb"), 1, "KeyError"),
    ],
)
def test_exit_codes(
    stand_in: Callable[..., Recorder],
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    told: str,
) -> None:
    stand_in("recgpt.evaluation", "evaluate", error)
    assert main(["evaluate", "runs/a", "--json"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert told in captured.err
    assert ("--debug" in captured.err) == isinstance(error, KeyError)
    assert main(["evaluate", "runs/a", "--debug"]) == code
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_json_is_one_object_whatever_the_library_prints(
    stand_in: Callable[..., Recorder],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def noisy(*args: Any, **kwargs: Any) -> dict[str, Any]:
        sys.stdout.write("a library's banner\n")
        logging.getLogger("recgpt.evaluation").info("100 users")
        warnings.warn("a library's warning", stacklevel=1)
        return {
            "users": np.int64(2**62),
            "model": {"ndcg@10": np.float32(0.5), "mrr": float("nan")},
            "ids": np.array([-1, 2]),
            "path": Path("runs/a"),
            "title": "Амели [1]",
        }

    stand_in("recgpt.evaluation", "evaluate")
    monkeypatch.setattr(sys.modules["recgpt.evaluation"], "evaluate", noisy)
    with pytest.warns(UserWarning, match="a library's warning"):
        assert main(["evaluate", "runs/a", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    assert json.loads(captured.out) == {
        "users": 2**62,
        "model": {"ndcg@10": 0.5, "mrr": None},
        "ids": [-1, 2],
        "path": "runs/a",
        "title": "Амели [1]",
    }
    assert "a library's banner\n100 users\n" in captured.err


@pytest.mark.parametrize(
    ("words", "user", "k"),
    [
        (["--user", "-5"], "-5", 10),
        (["--user=-5"], "-5", 10),
        (["--user", "007", "-k", "3"], "007", 3),
        (["-k", "3", "--user", "-9223372036854775808"], "-9223372036854775808", 3),
        (["--user", "--weird id"], "--weird id", 10),
        (["--user", "-kim"], "-kim", 10),
        (["--user", "a=b"], "a=b", 10),
        (["--user", "用户"], "用户", 10),
    ],
)
def test_any_id_reaches_recommend_as_it_was_typed(
    stand_in: Callable[..., Recorder], words: list[str], user: str, k: int
) -> None:
    body = {"items": [], "state": {"events": 0}, "model": "m"}
    recorder = stand_in("recgpt.recommend", "recommend_user", body)
    assert main(["recommend", "runs/a", *words, "--json"]) == 0
    assert recorder.args == (Path("runs/a"), user, k)
    assert main(["recommend", *words, "runs/a"]) == 0
    assert recorder.args == (Path("runs/a"), user, k)


def test_pretrain_takes_overrides_anywhere_among_the_options(stage: Recorder) -> None:
    words = ["pretrain", "a.yaml", "optim.lr=3e-4", "--fresh", "data.where=part != 'test'"]
    assert main([*words, "--from", "runs/b", "run.steps=-1"]) == 0
    assert stage.args == (Path("a.yaml"),)
    assert stage.kwargs == {
        "overrides": ["optim.lr=3e-4", "data.where=part != 'test'", "run.steps=-1"],
        "from_run": Path("runs/b"),
        "fresh": True,
    }


def test_defaults_reach_the_library(stand_in: Callable[..., Recorder], stage: Recorder) -> None:
    assert main(["pretrain", "a.yaml"]) == 0
    assert stage.kwargs == {"overrides": [], "from_run": None, "fresh": False}

    evaluate = stand_in("recgpt.evaluation", "evaluate")
    assert main(["evaluate", "runs/a"]) == 0
    assert (evaluate.args, evaluate.kwargs) == (
        (Path("runs/a"),),
        {"split": "test", "ks": None, "precision": "fp32"},
    )
    assert main(["evaluate", "runs/a", "--split", "valid", "--k", "20,5,20", "--precision", "bf16"]) == 0
    assert evaluate.kwargs == {"split": "valid", "ks": (5, 20), "precision": "bf16"}

    quickstart = stand_in("recgpt.quickstart", "quickstart")
    assert main(["quickstart", "--json"]) == 0
    assert quickstart.args == (None, "small", Path("runs/quickstart"))
    assert main(["quickstart", "--data", "ml-1m", "--size", "tiny", "--out", "x", "--json"]) == 0
    assert quickstart.args == ("ml-1m", "tiny", Path("x"))

    compare = stand_in("recgpt.evaluation", "compare")
    assert main(["compare", "runs/a", "runs/b"]) == 0
    assert compare.args == (Path("runs/a"), Path("runs/b"))
    assert compare.kwargs == {"split": "test"}

    check = stand_in("recgpt.data.check", "check")
    assert main(["data", "check", "a.yaml", "data.user=u", "--json"]) == 0
    assert check.args == (Path("a.yaml"), ["data.user=u"])

    prepare = stand_in("recgpt.data.prepare", "prepare_from_config", SimpleNamespace(summary={"rows": 3}))
    assert main(["prepare", "a.yaml"]) == 0
    assert prepare.args == (Path("a.yaml"), [])


@pytest.mark.parametrize(
    ("flags", "users", "items"),
    [([], True, True), (["--users"], True, False), (["--items"], False, True)],
)
def test_export_without_flags_exports_both(
    stand_in: Callable[..., Recorder], flags: list[str], users: bool, items: bool
) -> None:
    recorder = stand_in("recgpt.export", "export")
    assert main(["export", "runs/a", "--out", "x", *flags, "--as-of", "2024-05-01"]) == 0
    assert recorder.args == (Path("runs/a"), Path("x"))
    chosen = {"users": users, "items": items, "as_of": "2024-05-01", "index": None}
    assert recorder.kwargs == {**chosen, "precision": "fp32", "want": {}}
    assert (
        main(
            [
                "export",
                "runs/a",
                "--out",
                "x",
                *flags,
                "--as-of",
                "2024-05-01",
                "--precision",
                "bf16",
                "--want",
                "like=1",
            ]
        )
        == 0
    )
    assert recorder.kwargs == {**chosen, "precision": "bf16", "want": {"like": 1}}


def test_tables_for_people(stand_in: Callable[..., Recorder], capsys: pytest.CaptureFixture[str]) -> None:
    result = {
        "split": "test",
        "model": {"ndcg@10": 0.25, "mrr": 0.2},
        "markov": {"ndcg@10": 0.125, "mrr": 0.1},
    }
    stand_in("recgpt.evaluation", "evaluate", result)
    assert main(["evaluate", "runs/a"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0] == ["ndcg@10", "mrr"]
    assert ["model", "0.2500", "0.2000"] in lines
    assert ["markov", "0.1250", "0.1000"] in lines
    assert ["split", "test"] in lines

    body = {
        "items": [{"item": "[red]1", "score": 0.5}, {"item": -7, "score": 0.25}],
        "state": {"events": 4, "last_time": None, "source": "rebuild"},
        "model": "m1",
    }
    stand_in("recgpt.recommend", "recommend_user", body)
    assert main(["recommend", "runs/a", "--user", "1"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert ["1", "[red]1", "0.5000"] in lines
    assert ["2", "-7", "0.2500"] in lines
    assert ["state.last_time", "-"] in lines


def test_data_check_of_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.csv").write_text("u,i\n" + "".join(f"{n % 3},{n % 5}\n" for n in range(30)))
    (tmp_path / "a.yaml").write_text(f"data: {{events: [{tmp_path / 'log.csv'}], user: u, item: i, order: row}}\n")
    assert main(["data", "check", str(tmp_path / "a.yaml")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["│", "users", "│", "3", "│"] in lines
    assert ["│", "rows", "kept", "│", "30", "│"] in lines
    assert main(["data", "check", str(tmp_path / "a.yaml"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["users"], found["items"], found["rows"]["kept"]) == (3, 5, 30)


def test_config_show_prints_every_value_with_its_origin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "a.yaml"
    config.write_text("data: {events: [a.csv], user: u, item: i, order: row}\nrun: {steps: 3}\n")
    assert main(["config", "show", str(config), "optim.lr=3e-4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    [rate] = [line.split() for line in lines if line.startswith("optim.lr:")]
    assert rate == ["optim.lr:", "0.0003", "#", "override"]
    assert any(line.startswith("data.user: u ") and line.endswith("# file") for line in lines)
    assert any(line.startswith("run.keep: ") and line.endswith("# default") for line in lines)
    assert main(["config", "show", str(config), "optim.lr=3e-4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["optim.lr"] == 3e-4
    assert main(["config", "show", str(config), "optim.lrr=3e-4"]) == 2
    assert "optim.lr" in capsys.readouterr().err
    assert main(["config", "show", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_error() -> None:
    """`recgpt --help | head -0`: the pipe is closed before the first byte."""
    command = [sys.executable, "-m", "recgpt", "--help"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 0


def test_python_m_recgpt_is_the_same_command() -> None:
    command = [sys.executable, "-m", "recgpt", "pretrian"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "recgpt: pretrian: no such verb; did you mean `recgpt pretrain`?\n"
    command = [sys.executable, "-m", "pretrain", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: recgpt pretrain")
