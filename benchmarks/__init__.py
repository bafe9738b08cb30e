"""Measurements of accuracy, physics, speed and reliability, installed as `gfm_calc.benchmarks`; run by `gfm bench`."""

if __name__ == "benchmarks":
    raise ImportError("import this package as gfm_calc.benchmarks; the bare name 'benchmarks' is not part of gfm-calc")
