"""`python -m finetune ...` in a checkout: the same as `recgpt finetune ...`."""

import sys

from recgpt.cli import main

if __name__ == "__main__":
    sys.exit(main(["finetune", *sys.argv[1:]]))
