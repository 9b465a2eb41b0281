"""`python -m recgpt ...` and `torchrun -m recgpt ...`: the same as `recgpt ...`."""

import sys

from recgpt.cli import main

if __name__ == "__main__":
    sys.exit(main())
