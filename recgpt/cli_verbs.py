"""The verbs of the command line: their arguments, the functions that do the work, the printout.

The functions are imported when their verb runs, so that `--help` and wrong arguments are instant.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recgpt import cli_output as output


@dataclass(frozen=True)
class Verb:
    """One verb of the command line."""

    name: str
    summary: str
    """One line for `recgpt --help`."""
    description: str
    examples: tuple[str, ...]
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Any]
    """Does the work; what it returns is printed, as JSON or by `show`."""
    show: Callable[[Any], None]


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _cutoffs(text: str) -> tuple[int, ...]:
    return tuple(sorted({_positive(part.strip()) for part in text.split(",")}))


def _config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a YAML config")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key.sub=value",
        help="replaces one value of the config, read as YAML (optim.lr=3e-4)",
    )


def _run_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run's folder (runs/NAME)")


def _quickstart_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        metavar="NAME",
        help="a named log under $RECGPT_DATA (ml-1m, amazon-beauty, kuairand-pure); "
        "without it the built-in simulator, which needs no network",
    )
    parser.add_argument(
        "--size",
        choices=("tiny", "small"),
        default="small",
        help="tiny: up to 60 seconds on 2 cores; small: up to 6 minutes (default: small)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/quickstart"),
        help="the folder to write (default: runs/quickstart)",
    )


def _quickstart(arguments: argparse.Namespace) -> dict[str, Any]:
    from recgpt.quickstart import quickstart

    return quickstart(arguments.data, arguments.size, arguments.out)


def _prepare(arguments: argparse.Namespace) -> dict[str, Any]:
    from recgpt.data.prepare import prepare_from_config

    return prepare_from_config(arguments.config, arguments.overrides).summary


def _data_check(arguments: argparse.Namespace) -> dict[str, Any]:
    from recgpt.data.check import check

    return check(arguments.config, arguments.overrides)


def _show_check(found: dict[str, Any]) -> None:
    from rich.console import Console

    from recgpt.data.check import print_check

    width = None if sys.stdout.isatty() else output.PIPE_WIDTH
    print_check(found, Console(width=width, highlight=False))


def _config_show(arguments: argparse.Namespace) -> Any:
    from recgpt.config import parse_yaml, show_config
    from recgpt.stages import load_stage

    stage = importlib.import_module(f"{load_stage('pretrain').__name__}.config")
    text = show_config(stage.PretrainConfig, arguments.config, arguments.overrides)
    return parse_yaml(text, "config show") if arguments.json else text


def _pretrain_arguments(parser: argparse.ArgumentParser) -> None:
    _config_arguments(parser)
    parser.add_argument(
        "--from",
        dest="from_run",
        type=Path,
        metavar="RUN",
        help="start from the weights of a finished run, to go on with a new day's log",
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="delete what the run's folder holds and start again; "
        "without it the same config resumes and another config is refused",
    )


def _pretrain(arguments: argparse.Namespace) -> dict[str, Any]:
    from recgpt.stages import load_stage

    stage = load_stage("pretrain")
    return stage(
        arguments.config,
        overrides=arguments.overrides,
        from_run=arguments.from_run,
        fresh=arguments.fresh,
    )


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    _run_argument(parser)
    parser.add_argument(
        "--split",
        choices=("valid", "test"),
        default="test",
        help="default: test; every reading of it is recorded in RUN/test_reads.jsonl",
    )
    parser.add_argument(
        "--k",
        type=_cutoffs,
        default=(10, 50),
        metavar="K,K",
        help="cut-offs of recall, NDCG and coverage, in items (default: 10,50)",
    )


def _evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    from recgpt.evaluation import evaluate

    return evaluate(arguments.folder, split=arguments.split, ks=arguments.k)


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_a", type=Path, metavar="RUN_A", help="an evaluated run's folder")
    parser.add_argument("run_b", type=Path, metavar="RUN_B", help="another, on the same log")
    parser.add_argument("--split", choices=("valid", "test"), default="test", help="default: test")


def _compare(arguments: argparse.Namespace) -> dict[str, Any]:
    from recgpt.evaluation import compare

    return compare(arguments.run_a, arguments.run_b, split=arguments.split)


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    _run_argument(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write or to resume")
    parser.add_argument("--users", action="store_true", help="user embeddings")
    parser.add_argument("--items", action="store_true", help="item embeddings")
    parser.add_argument(
        "--as-of",
        metavar="T",
        help="users as of T, before any event at or after it: a date or a date and time in UTC "
        "(2024-05-01T12:00:00), or a number in the log's own time unit",
    )


def _export(arguments: argparse.Namespace) -> dict[str, Any]:
    from recgpt.export import export

    both = not (arguments.users or arguments.items)
    return export(
        arguments.folder,
        arguments.out,
        users=arguments.users or both,
        items=arguments.items or both,
        as_of=arguments.as_of,
    )


def _recommend_arguments(parser: argparse.ArgumentParser) -> None:
    _run_argument(parser)
    parser.add_argument(
        "--user",
        required=True,
        metavar="ID",
        help="the user's id as it stands in the log; it may start with a minus",
    )
    parser.add_argument("-k", type=_positive, default=10, metavar="N", help="how many items (default: 10)")


def _recommend(arguments: argparse.Namespace) -> dict[str, Any]:
    from recgpt.recommend import recommend_user

    return recommend_user(arguments.folder, arguments.user, arguments.k)


_ALL = (
    Verb(
        "quickstart",
        "the whole story on simulated or real events",
        "Simulate (or read) a log, prepare, pretrain, evaluate beside the baselines, export and\n"
        "recommend. Writes summary.json and the run into --out.",
        ("quickstart", "quickstart --size tiny --out runs/tiny", "quickstart --data ml-1m"),
        _quickstart_arguments,
        _quickstart,
        output.show_quickstart,
    ),
    Verb(
        "prepare",
        "turn a log into sorted sequences; count every row",
        "Read, check, sort and split the log of CONFIG. Writes the sequences, rejects.parquet and\n"
        "summary.json into data.prepared; returns at once when they are there and fresh.",
        ("prepare configs/pretrain/ml-1m.yaml", "prepare my.yaml data.duplicates=drop"),
        _config_arguments,
        _prepare,
        output.show_fields,
    ),
    Verb(
        "data check",
        "a lint of a log: types, ties, copies, suspected leaks",
        "Read the log of CONFIG and tell what looks wrong with it. Writes nothing.",
        ("data check my.yaml", "data check my.yaml --json"),
        _config_arguments,
        _data_check,
        _show_check,
    ),
    Verb(
        "config show",
        "every value of a config and where it comes from",
        "Print every value of a config with its origin: the file, an override or the default.",
        ("config show configs/pretrain/ml-1m.yaml", "config show my.yaml optim.lr=3e-4"),
        _config_arguments,
        _config_show,
        output.print_text,
    ),
    Verb(
        "pretrain",
        "train the model of a config; resumes by itself",
        "Prepare the log when that is missing or stale, then train until the first limit:\n"
        "run.epochs, run.steps or run.minutes. Ctrl-C writes a checkpoint; the same command\n"
        "goes on from the last one.",
        (
            "pretrain configs/pretrain/ml-1m.yaml",
            "pretrain my.yaml run.minutes=10 run.dir=runs/lr3 optim.lr=3e-4",
            "pretrain tuesday.yaml --from runs/monday",
        ),
        _pretrain_arguments,
        _pretrain,
        output.show_fields,
    ),
    Verb(
        "evaluate",
        "metrics of a run beside its baselines",
        "Rank every candidate for every user of a split, for the model and for popularity,\n"
        "item-kNN and Markov counts. Ties never help. Writes RUN/eval/SPLIT.json.",
        ("evaluate runs/ml-1m", "evaluate runs/ml-1m --split valid --k 5,10,100"),
        _evaluate_arguments,
        _evaluate,
        output.show_evaluation,
    ),
    Verb(
        "compare",
        "two runs, with paired intervals over users",
        "RUN_B minus RUN_A with 95 % intervals, paired by user. Reads what `evaluate` saved.",
        ("compare runs/hash runs/content", "compare runs/a runs/b --split valid"),
        _compare_arguments,
        _compare,
        output.show_fields,
    ),
    Verb(
        "export",
        "user and item embeddings as Parquet",
        "Write users/part-*.parquet and items/part-*.parquet, then manifest.json. Without --users\n"
        "and --items both. An export that was stopped goes on at the part where it stopped.",
        (
            "export runs/ml-1m --out exports/today",
            "export runs/log --out x --users --as-of 2024-05-01",
        ),
        _export_arguments,
        _export,
        output.show_fields,
    ),
    Verb(
        "recommend",
        "the best items for one user of the log",
        "The k best items that the user has not met, best first, with their scores (cosines).",
        ("recommend runs/ml-1m --user 42 -k 10", "recommend runs/log --user -5 --json"),
        _recommend_arguments,
        _recommend,
        output.show_recommendations,
    ),
)

VERBS = {verb.name: verb for verb in _ALL}
