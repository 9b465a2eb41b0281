"""The command line: parses, calls, prints. The work is done by the functions that the verbs import.

`recgpt VERB CONFIG_OR_RUN [key.sub=value ...]`; results go to stdout, progress and errors to
stderr. Exit codes: 0 success; 2 arguments, config or schema; 1 while running; 130 after Ctrl-C,
143 after SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from recgpt import __version__
from recgpt.cli_output import print_json, print_text
from recgpt.cli_verb import Verb
from recgpt.cli_verbs import VERBS
from recgpt.errors import ConfigError, RecGPTError

HELP_FLAGS = {"-h", "--help"}


class _Parser(argparse.ArgumentParser):
    """The parser of one verb; it raises instead of printing and leaving."""

    def __init__(self, verb: Verb) -> None:
        self.flags: set[str] = set()
        super().__init__(
            prog=f"recgpt {verb.name}",
            description=verb.description,
            epilog="examples:\n" + "".join(f"  recgpt {line}\n" for line in verb.examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        verb.arguments(self)
        self.add_argument("--json", action="store_true", help="one JSON object on stdout, logs on stderr")
        self.add_argument("--debug", action="store_true", help="show the traceback of a failure")

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        action = super().add_argument(*names, **settings)
        self.flags.update(action.option_strings)
        return action

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see `{self.prog} --help`)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the words after `recgpt`; those of the process by default.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    # Read when torch loads: waiting threads that spin would take the cores from the others.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return _dispatch(words)
    except KeyboardInterrupt:
        return _fail("stopped by Ctrl-C", 130, words)
    except RecGPTError as error:
        return _fail(str(error), error.exit_code, words)
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return _fail(f"{text}; re-run with --debug for the traceback", 1, words)


def _fail(message: str, code: int, words: Sequence[str]) -> int:
    if "--debug" in words:
        traceback.print_exc()
    sys.stderr.write(f"recgpt: {message}\n")
    return code


def _dispatch(words: list[str]) -> int:
    if not words:
        sys.stderr.write(_overview())
        return ConfigError.exit_code
    if words[0] in HELP_FLAGS:
        return _emit(lambda: print_text(_overview()))
    if words[0] == "--version":
        return _emit(lambda: print_text(f"recgpt {__version__}\n"))
    verb, rest = _find_verb(words)
    parser = _Parser(verb)
    rest = _join_ids(rest, parser.flags)
    if HELP_FLAGS & set(rest):
        return _emit(lambda: print_text(parser.format_help()))
    arguments = parser.parse_intermixed_args(rest)
    with _log_to_stderr(), _stdout_kept_for_result(arguments.json):
        result = verb.run(arguments)
    return _emit(lambda: print_json(result) if arguments.json else verb.show(result))


def _find_verb(words: list[str]) -> tuple[Verb, list[str]]:
    for length in (2, 1):
        verb = VERBS.get(" ".join(words[:length]))
        if verb is not None:
            return verb, words[length:]
    if words[0].startswith("-"):
        raise ConfigError(f"{words[0]}: options come after the verb (see `recgpt --help`)")
    is_group = any(name.startswith(f"{words[0]} ") for name in VERBS)
    typed = " ".join(words[:2]) if is_group else words[0]
    [nearest] = difflib.get_close_matches(typed, VERBS, n=1, cutoff=0.0)
    raise ConfigError(f"{typed}: no such verb; did you mean `recgpt {nearest}`?")


def _join_ids(words: list[str], flags: set[str]) -> list[str]:
    """`--user -5x` as `--user=-5x`: argparse takes an id that starts with a minus for an option."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] in ("--user", "--items") and word not in flags:
            joined[-1] = f"{joined[-1]}={word}"
        else:
            joined.append(word)
    return joined


@contextlib.contextmanager
def _log_to_stderr() -> Iterator[None]:
    """Show what the library logs, one plain line each."""
    handler = logging.StreamHandler(sys.stderr)
    logger = logging.getLogger("recgpt")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextlib.contextmanager
def _stdout_kept_for_result(wanted: bool) -> Iterator[None]:
    """Under --json, whatever a library prints goes to stderr: stdout is one JSON object."""
    with contextlib.redirect_stdout(sys.stderr) if wanted else contextlib.nullcontext():
        yield


def _emit(write: Callable[[], None]) -> int:
    """Write to stdout; a reader that closes the pipe early (`| head`) has seen enough."""
    try:
        write()
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes stdout once more when it ends: give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _overview() -> str:
    width = max(len(name) for name in VERBS)
    verbs = "".join(f"  {verb.name:<{width}}  {verb.summary}\n" for verb in VERBS.values())
    return (
        "usage: recgpt VERB CONFIG_OR_RUN [key.sub=value ...] [--json] [--debug]\n\n"
        "From an event log to a pretrained recommender, its embeddings and recommendations.\n\n"
        f"{verbs}\n"
        "`recgpt VERB --help` tells a verb's arguments, units and examples.\n"
        "exit codes: 0 success; 2 arguments, config or schema; 1 while running;\n"
        "130 after Ctrl-C and 143 after SIGTERM, in training both after a checkpoint\n"
    )
