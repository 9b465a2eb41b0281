"""The errors that people see: one clear line that names the field, the value and the remedy."""


class RecGPTError(Exception):
    """Something went wrong while running (exit code 1)."""

    exit_code = 1


class ConfigError(RecGPTError):
    """The arguments, the config or the log's schema are wrong (exit code 2)."""

    exit_code = 2


class Stopped(RecGPTError):
    """The user stopped the run; a checkpoint was written first.

    Args:
        message: what was saved and how to go on.
        exit_code: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
