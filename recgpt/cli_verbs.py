"""The table of all verbs, in the order of `recgpt --help`.

What does a verb's work is imported when the verb runs, so that `--help` and wrong arguments are instant.
"""

from __future__ import annotations

from recgpt import cli_data, cli_runs, cli_users

VERBS = {verb.name: verb for verb in (*cli_data.VERBS, *cli_runs.VERBS, *cli_users.VERBS)}
