"""`python -m gfm_calc.train`."""

from gfm_calc.train.trainer import main

if __name__ == "__main__":
    main()
