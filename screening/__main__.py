"""`python -m gfm_calc.screening`: `gfm screen`, for launchers of many processes."""

import sys

from gfm_calc.cli import main

if __name__ == "__main__":
    sys.exit(main(["screen", *sys.argv[1:]]))
