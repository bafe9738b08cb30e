"""Screening of candidate streams, installed as `gfm_calc.screening`."""

if __name__ == "screening":
    raise ImportError("import this package as gfm_calc.screening; the bare name 'screening' is not part of gfm-calc")
