"""The verbs that read a log or a config: quickstart, init, prepare, data check, config show."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

from recgpt import cli_output as output
from recgpt.cli_verb import Verb, config_arguments


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


def _init_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "log", metavar="LOG", help="a file, or a glob in quotes: .parquet, .csv, .tsv, .txt or .dat, also gzipped"
    )
    parser.add_argument(
        "--out", type=Path, metavar="CONFIG", help="the config to write (default: the log's name with .yaml, here)"
    )


def _init(arguments: argparse.Namespace) -> dict[str, Any]:
    from recgpt.init import init

    return init(arguments.log, arguments.out)


def _show_init(result: dict[str, Any]) -> None:
    from recgpt.init.config import init_text

    output.print_text(init_text(result))


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
    from recgpt.config import parse_yaml, read_config, show_config
    from recgpt.stages import load_stage

    sections = read_config(arguments.config)
    name = "finetune" if {"tasks", "heads"} & set(sections) else "pretrain"
    stage = importlib.import_module(f"{load_stage(name).__name__}.config")
    text = show_config(getattr(stage, f"{name.capitalize()}Config"), arguments.config, arguments.overrides)
    return parse_yaml(text, "config show") if arguments.json else text


VERBS = (
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
        "init",
        "a commented config for a log, to look over",
        "Look at a log's first 200,000 rows and write a config: user, item, clock, order, outcomes,\n"
        "context and split as guessed from names and values. CHECK marks what to look at, EDIT_...\n"
        "what could not be guessed. Tables of items and users beside the log stand there as comments.",
        ("init events.parquet", "init 'logs/2024-*.csv.gz' --out my.yaml"),
        _init_arguments,
        _init,
        _show_init,
    ),
    Verb(
        "prepare",
        "turn a log into sorted sequences; count every row",
        "Read, check, sort and split the log of CONFIG. Writes the sequences, rejects.parquet and\n"
        "summary.json into data.prepared; returns at once when they are there and fresh.",
        ("prepare configs/pretrain/ml-1m.yaml", "prepare my.yaml data.duplicates=drop"),
        config_arguments,
        _prepare,
        output.show_fields,
    ),
    Verb(
        "data check",
        "a lint of a log: types, ties, copies, suspected leaks, confused ids",
        "Read the log of CONFIG and tell what looks wrong with it, and how many items model.id would\n"
        "confuse, here and among 10^6 to 10^9. Writes nothing.",
        ("data check my.yaml", "data check my.yaml model.id.kind=qr --json"),
        config_arguments,
        _data_check,
        _show_check,
    ),
    Verb(
        "config show",
        "every value of a config and where it comes from",
        "Print every value of a config with its origin: the file, an override or the default.",
        ("config show configs/pretrain/ml-1m.yaml", "config show my.yaml optim.lr=3e-4"),
        config_arguments,
        _config_show,
        output.print_text,
    ),
)
