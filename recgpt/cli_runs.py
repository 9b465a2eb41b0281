"""The verbs that make a run or read one whole: pretrain, evaluate, compare, export, report, inspect."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from recgpt import cli_output as output
from recgpt.cli_verb import Verb, config_arguments, cutoffs, read_words, run_argument, want_argument
from recgpt.errors import ConfigError


def _pretrain_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser)
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


def _finetune_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser)
    parser.add_argument(
        "--from",
        dest="from_run",
        type=Path,
        metavar="RUN",
        help="the pretrained run whose event model the heads read; without it the event model is learned too",
    )
    parser.add_argument(
        "--refit",
        type=Path,
        metavar="RUN",
        help="a finished run of the same config, which chose when to stop: train anew for as long, on the "
        "impressions of the training and the validation part together",
    )
    parser.add_argument("--fresh", action="store_true", help="delete what the run's folder holds and start again")


def _finetune(arguments: argparse.Namespace) -> dict[str, Any]:
    from recgpt.stages import load_stage

    stage = load_stage("finetune")
    return stage(
        arguments.config,
        overrides=arguments.overrides,
        from_run=arguments.from_run,
        fresh=arguments.fresh,
        refit=arguments.refit,
    )


def _precision_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="of the products that make users' vectors; bf16 is faster where the machine multiplies it; not for a "
        "fine-tuned run (default: fp32)",
    )


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    run_argument(parser)
    parser.add_argument(
        "--split",
        choices=("valid", "test"),
        default="test",
        help="default: test; every reading of it is recorded in RUN/test_reads.jsonl",
    )
    parser.add_argument(
        "--k",
        type=cutoffs,
        default=None,
        metavar="K,K",
        help="cut-offs of recall, NDCG and coverage, in items (default: 10,50); not for a fine-tuned run",
    )
    _precision_argument(parser)


def _evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    from recgpt.evaluation import evaluate

    return evaluate(arguments.folder, split=arguments.split, ks=arguments.k, precision=arguments.precision)


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_a", type=Path, metavar="RUN_A", help="an evaluated run's folder")
    parser.add_argument("run_b", type=Path, metavar="RUN_B", help="another, on the same log")
    parser.add_argument("--split", choices=("valid", "test"), default="test", help="default: test")


def _compare(arguments: argparse.Namespace) -> dict[str, Any]:
    from recgpt.evaluation import compare

    return compare(arguments.run_a, arguments.run_b, split=arguments.split)


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    run_argument(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write or to resume")
    parser.add_argument("--users", action="store_true", help="user embeddings")
    parser.add_argument("--items", action="store_true", help="item embeddings")
    parser.add_argument("--index", action="store_true", help="a FAISS index of the items, for `recommend --index`")
    parser.add_argument(
        "--index-kind",
        choices=("auto", "flat", "hnsw"),
        metavar="KIND",
        help="flat: exact; hnsw: approximate, finds at least 98 in 100 of the best, told in the manifest; "
        "auto: flat up to 300,000 items (default: auto)",
    )
    parser.add_argument(
        "--as-of",
        metavar="T",
        help="users as of T, before any event at or after it: a date or a date and time in UTC "
        "(2024-05-01T12:00:00), or a number in the log's own time unit",
    )
    _precision_argument(parser)
    want_argument(parser, "the users' vectors ask for")


def _export(arguments: argparse.Namespace) -> dict[str, Any]:
    from recgpt.export import export

    if arguments.index_kind and not arguments.index:
        raise ConfigError(f"--index-kind: {arguments.index_kind}, but no index is asked for; add --index")
    both = not (arguments.users or arguments.items or arguments.index)
    return export(
        arguments.folder,
        arguments.out,
        users=arguments.users or both,
        items=arguments.items or both,
        as_of=arguments.as_of,
        index=(arguments.index_kind or "auto") if arguments.index else None,
        precision=arguments.precision,
        want=read_words(arguments.want, "--want", "like=1"),
    )


def _report(arguments: argparse.Namespace) -> dict[str, Any]:
    from recgpt.report import report

    path = report(arguments.folder)
    return {"report": str(path), "bytes": path.stat().st_size}


def _inspect(arguments: argparse.Namespace) -> dict[str, Any]:
    from recgpt.inspection import inspect

    return inspect(arguments.folder)


VERBS = (
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
        "finetune",
        "ranking heads on impressions, from a pretrained run",
        "Train ranking heads on the impressions of CONFIG's log: a probability for each outcome of\n"
        "tasks.outcomes. Validates several times in an epoch, keeps the best, stops when nothing is gained.\n"
        "The event model is tuned at its own rate (tasks.backbone_lr), left frozen (0), or learned too.",
        (
            "finetune configs/finetune/kuairand-pure.yaml --from runs/kuairand-pure",
            "finetune my.yaml --from runs/log tasks.backbone_lr=0",
            "finetune my.yaml --from runs/log --refit runs/my run.dir=runs/my-refit",
        ),
        _finetune_arguments,
        _finetune,
        output.show_fields,
    ),
    Verb(
        "evaluate",
        "metrics of a run beside its baselines",
        "Rank every candidate for every user of a split, for the model and for popularity,\n"
        "item-kNN and Markov counts. Ties never help. Of a fine-tuned run: the predicted outcomes\n"
        "of every impression, beside each item's own rate. Writes RUN/eval/SPLIT.json.",
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
        output.show_comparison,
    ),
    Verb(
        "export",
        "user and item embeddings as Parquet, a FAISS index",
        "Write users/part-*.parquet, items/part-*.parquet, index.faiss with index_ids.parquet\n"
        "(row, item), then manifest.json. Without flags users and items. An export that was\n"
        "stopped goes on at the part where it stopped.",
        (
            "export runs/ml-1m --out exports/today",
            "export runs/ml-1m --out exports/today --users --items --index",
            "export runs/log --out x --users --as-of 2024-05-01",
            "export runs/log --out likes --users --want like=1",
        ),
        _export_arguments,
        _export,
        output.show_fields,
    ),
    Verb(
        "report",
        "what a run learned and what came out, as one HTML page",
        "Write RUN/report.html: one file that opens from the disk, with the curves of training,\n"
        "metrics beside the baselines, calibration, popularity, the model's vectors and a few\n"
        "users' stories. Of the test part it shows what `evaluate` saved; it reads none itself.",
        ("report runs/ml-1m", "report runs/clicks --json"),
        run_argument,
        _report,
        output.show_fields,
    ),
    Verb(
        "inspect",
        "what a run's weights look like inside",
        "Write RUN/inspect.json: of every embedding table the rows in use, the singular values and how\n"
        "many directions they make (information abundance, beside an untrained table); items that\n"
        "share ids' rows; attention by distance and by time; lengths of items' vectors against\n"
        "popularity. `recgpt report` draws it.",
        ("inspect runs/ml-1m", "inspect runs/clicks --json"),
        run_argument,
        _inspect,
        output.show_inspection,
    ),
)
