"""The verbs that answer for one user: recommend, rank, serve."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from recgpt import cli_output as output
from recgpt.cli_verb import Verb, positive, read_words, run_argument, want_argument


def _user_arguments(parser: argparse.ArgumentParser) -> None:
    run_argument(parser)
    parser.add_argument(
        "--user",
        required=True,
        metavar="ID",
        help="the user's id as it stands in the log; it may start with a minus",
    )


def _recommend_arguments(parser: argparse.ArgumentParser) -> None:
    _user_arguments(parser)
    parser.add_argument("-k", type=positive, default=10, metavar="N", help="how many items (default: 10)")
    parser.add_argument(
        "--index",
        type=Path,
        metavar="DIR",
        help="search the index of an export of this run (recgpt export RUN --out DIR --index) instead of all items",
    )
    want_argument(parser, "the items should have")


def _recommend(arguments: argparse.Namespace) -> dict[str, Any]:
    from recgpt.recommend import recommend_user

    want = read_words(arguments.want, "--want", "like=1")
    return recommend_user(arguments.folder, arguments.user, arguments.k, index=arguments.index, want=want)


def _rank_arguments(parser: argparse.ArgumentParser) -> None:
    _user_arguments(parser)
    items = parser.add_mutually_exclusive_group(required=True)
    items.add_argument("--items", metavar="A,B", help="item ids, separated by commas")
    items.add_argument("--items-file", type=Path, metavar="FILE", help="a text file with one item id a line")
    parser.add_argument(
        "--context",
        action="append",
        default=[],
        metavar="key=value",
        help="what is known of the request, by the log's column names, read as YAML; the clock's column gives its "
        "time (may be given several times)",
    )


def _rank(arguments: argparse.Namespace) -> dict[str, Any]:
    from recgpt.recommend import rank_user, read_items_file

    if arguments.items is None:
        items = read_items_file(arguments.items_file)
    else:
        items = [word.strip() for word in arguments.items.split(",") if word.strip()]
    return rank_user(arguments.folder, arguments.user, items, read_words(arguments.context))


def _serve_arguments(parser: argparse.ArgumentParser) -> None:
    run_argument(parser)
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="serve.key=value",
        help="replaces one setting, read as YAML (serve.state_bytes=1000000000); all are printed at the start",
    )
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on, 0 = a free one (default: 8000)")
    parser.add_argument(
        "--with-log",
        action="store_true",
        default=None,
        help="users of the run's own log begin with their events there (default: with nothing); an event that is "
        "posted too counts twice",
    )


def _serve(arguments: argparse.Namespace) -> Any:
    from recgpt.stages import load_stage

    return load_stage("serve")(
        arguments.folder,
        overrides=arguments.overrides,
        host=arguments.host,
        port=arguments.port,
        with_log=arguments.with_log,
    )


VERBS = (
    Verb(
        "recommend",
        "the best items for one user of the log",
        "The k best items that the user has not met, best first, with their scores: cosines, or dot products\n"
        "with model.score: dot.",
        (
            "recommend runs/ml-1m --user 42 -k 10",
            "recommend runs/log --user -5 --json",
            "recommend runs/log --user 42 --want like=1",
        ),
        _recommend_arguments,
        _recommend,
        output.show_recommendations,
    ),
    Verb(
        "rank",
        "what one user of the log is likely to do with given items",
        "Probabilities of every outcome and the score of each item, in the order given, after all the\n"
        "user's events of the log. Needs a run of `recgpt finetune`.",
        (
            "rank runs/kuairand-pure --user 42 --items 7,1203",
            "rank runs/log --user 42 --items-file items.txt --context device=phone --json",
        ),
        _rank_arguments,
        _rank,
        output.show_recommendations,
    ),
    Verb(
        "serve",
        "answer over HTTP: events in, recommendations and ranks out",
        "Keeps posted events in SQLite (on the disk before they are confirmed), users' states in memory,\n"
        "and answers POST /v1/events, /v1/recommend, /v1/rank, GET /v1/users/ID/embedding, /healthz,\n"
        "/readyz, /metrics; /docs describes the bodies. A run of `recgpt pretrain` recommends, one of\n"
        "`recgpt finetune` ranks too. With the environment variable RECGPT_TOKEN set, requests must\n"
        "bring `Authorization: Bearer TOKEN`. Ctrl-C and SIGTERM end it once what has begun is answered\n"
        "(exit codes 130 and 143).",
        (
            "serve runs/ml-1m",
            "serve runs/ml-1m --host 0.0.0.0 --port 80 --with-log",
            "serve runs/ml-1m serve.store=/data/events.sqlite serve.workers=4",
        ),
        _serve_arguments,
        _serve,
        output.show_fields,
    ),
)
