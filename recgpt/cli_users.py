"""The verbs that answer for one user: recommend."""

from __future__ import annotations

import argparse
from typing import Any

from recgpt import cli_output as output
from recgpt.cli_verb import Verb, positive, run_argument


def _recommend_arguments(parser: argparse.ArgumentParser) -> None:
    run_argument(parser)
    parser.add_argument(
        "--user",
        required=True,
        metavar="ID",
        help="the user's id as it stands in the log; it may start with a minus",
    )
    parser.add_argument("-k", type=positive, default=10, metavar="N", help="how many items (default: 10)")


def _recommend(arguments: argparse.Namespace) -> dict[str, Any]:
    from recgpt.recommend import recommend_user

    return recommend_user(arguments.folder, arguments.user, arguments.k)


VERBS = (
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
