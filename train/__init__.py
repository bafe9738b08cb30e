"""Training of multi-head models, installed as `gfm_calc.train`."""

if __name__ == "train":
    raise ImportError("import this package as gfm_calc.train; the bare name 'train' is not part of gfm-calc")
