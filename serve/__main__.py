"""`python -m serve ...` in a checkout: the same as `recgpt serve ...`."""

import sys

from recgpt.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
