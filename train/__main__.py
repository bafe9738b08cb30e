"""`python -m gfm_calc.train`: `gfm train`, for launchers of many processes."""

import sys

from gfm_calc.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
