"""Scripts that run other models in their own environments; only `measure` is imported by gfm-calc itself."""
