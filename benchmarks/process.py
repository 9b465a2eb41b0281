"""Measurements in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def printed(words: Sequence[object]) -> Any:
    """What a command prints as the JSON of its last line; its stderr passes through, a failure is an error.

    Args:
        words: the command; one that begins with a module's name (`benchmarks.NAME`) is run by this interpreter.
    """
    command = [str(word) for word in words]
    own = command[0].startswith("benchmarks.")
    if own:
        command = [sys.executable, "-m", *command]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT if own else None)
    if not done.stdout.strip():
        raise RuntimeError(f"{' '.join(command)}: printed nothing")
    return json.loads(done.stdout.splitlines()[-1])
