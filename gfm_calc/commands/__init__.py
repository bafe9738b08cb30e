"""The commands of `gfm`, a module a family.  Each has `add_parser(subparsers)` and `run(args)`.

Importing one is light: torch, ASE and the rest are loaded by `run`.
"""
