"""What every verb of the command line is made of, and the arguments that several share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def cutoffs(text: str) -> tuple[int, ...]:
    """Whole numbers above 0, separated by commas, sorted."""
    return tuple(sorted({positive(part.strip()) for part in text.split(",")}))


def config_arguments(parser: argparse.ArgumentParser) -> None:
    """CONFIG and its overrides."""
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a YAML config")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key.sub=value",
        help="replaces one value of the config, read as YAML (optim.lr=3e-4)",
    )


def run_argument(parser: argparse.ArgumentParser) -> None:
    """RUN."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run's folder (runs/NAME)")


def want_argument(parser: argparse.ArgumentParser, what: str) -> None:
    """`--want outcome=value`, several times."""
    parser.add_argument(
        "--want",
        action="append",
        default=[],
        metavar="outcome=value",
        help=f"an outcome that {what}, such as like=1 (may be given several times; the others may be any). Needs a run "
        "that was trained with model.condition: true",
    )


def read_words(words: Sequence[str], flag: str = "--context", example: str = "device=phone") -> dict[str, Any]:
    """`key=value` words as a mapping, values read as YAML.

    Raises:
        ConfigError: a word without a key, or a value that is no scalar; it names the flag and gives the example.
    """
    from recgpt.config import parse_yaml  # not at once: `recgpt --help` needs no pydantic
    from recgpt.errors import ConfigError

    values = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not key or not equals:
            raise ConfigError(f"{flag}: {word!r}; write key=value, for example {example}")
        value = parse_yaml(text, f"{flag} {word}")
        if isinstance(value, list | dict):
            raise ConfigError(f"{flag}: {word!r} is no single value; write key=value, for example {example}")
        values[key] = value
    return values
