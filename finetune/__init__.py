"""Fine-tuning of packaged models on a user's frames, installed as `gfm_calc.finetune`."""

if __name__ == "finetune":
    raise ImportError("import this package as gfm_calc.finetune; the bare name 'finetune' is not part of gfm-calc")
