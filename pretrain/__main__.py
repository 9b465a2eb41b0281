"""`python -m pretrain ...` in a checkout: the same as `recgpt pretrain ...`."""

import sys

from recgpt.cli import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
