"""`gfm bench physics | crystals | phonons | torsions | conformers | stability`: their options, and what they hand on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gfm_calc.benchmarks.cli_options import add_device, add_model, add_output, finish, optional, peer, words
from gfm_calc.commands.options import DEFAULT_MODEL, new_parser, positive, positive_int
from gfm_calc.errors import ConfigError


def add_physics(benches: Any) -> None:
    """Register them."""
    for add in (
        _physics_parser,
        _crystals_parser,
        _phonons_parser,
        _torsions_parser,
        _conformers_parser,
        _stability_parser,
    ):
        add(benches)


def _physics_parser(benches: Any) -> None:
    parser = new_parser(
        benches, "physics", run_physics, summary="energy conservation, relaxations and pair curves, in float64",
        example="gfm bench physics --parts relaxations,pairs --peer sevennet=PYTHON -o physics.json",
    )  # fmt: skip
    add_model(parser)
    parser.add_argument("--picoseconds", type=positive, default=20.0, help="of each NVE run; default: %(default)s")
    parser.add_argument("--compile", action="store_true", help="compile the model for the NVE runs: they are long")
    parser.add_argument("--parts", type=words, default=("nve", "relaxations", "pairs"), metavar="NAME,NAME",
                        help="of nve, relaxations, pairs, and like_pairs (beside peers); default: the first three")  # fmt: skip
    parser.add_argument("--peer", type=peer, action="append", default=[], metavar="NAME=PYTHON",
                        help="chgnet or sevennet (SevenNet-0 and its l3i5), and the python of its environment: runs "
                        "crystals of nve (slowly) and like_pairs; sevennet also gives the references of the rest")  # fmt: skip
    add_device(parser, None)
    add_output(parser)


def _crystals_parser(benches: Any) -> None:
    parser = new_parser(
        benches, "crystals", run_crystals, summary="volumes, bulk moduli, phonons and heat capacities of crystals",
        example="gfm bench crystals --elasticity elasticity.extxyz --heat-capacity phonons.extxyz --peer chgnet=PYTHON "
        "-o crystals.json",
    )  # fmt: skip
    parser.add_argument("--model", default=DEFAULT_MODEL, help="packaged name or directory (default: %(default)s)")
    parser.add_argument("--head", metavar="NAME", default="distilled-7net-l3i5", help="default: %(default)s")
    parser.add_argument("--elasticity", type=Path, metavar="FILE",
                        help="relaxed structures with bulk_modulus_vrh_gpa; without it neither volumes nor moduli")  # fmt: skip
    parser.add_argument(
        "--elements",
        action="store_true",
        help="in its place elements in fcc, bcc, hcp and diamond, volumes beside experiments",
    )
    parser.add_argument("--heat-capacity", type=Path, metavar="FILE",
                        help="relaxed structures with heat_capacity (300 K, J/mol/K of the cell); else no phonons")  # fmt: skip
    parser.add_argument("--crystals", type=positive_int, default=48, help="for volumes; default: %(default)s")
    parser.add_argument("--phonons", type=positive_int, default=16, help="crystals for phonons; default: %(default)s")
    parser.add_argument("--peer", type=peer, action="append", default=[], metavar="NAME=PYTHON",
                        help="chgnet or sevennet (SevenNet-0 and its l3i5), and the python of its environment")  # fmt: skip
    add_output(parser)


def _phonons_parser(benches: Any) -> None:
    parser = new_parser(
        benches, "phonons", run_phonons, summary="phonon frequencies beside those of calculated force sets",
        example="gfm bench phonons --force-sets FOLDER --peer chgnet=PYTHON --peer sevennet=PYTHON -o phonons.json",
    )  # fmt: skip
    parser.add_argument("--model", default=DEFAULT_MODEL, help="packaged name or directory (default: %(default)s)")
    parser.add_argument("--head", metavar="NAME", default="distilled-7net-l3i5", help="default: %(default)s")
    parser.add_argument("--force-sets", type=Path, metavar="FOLDER", required=True,
                        help="with a YAML file of phonopy a crystal, which holds displacements and forces")  # fmt: skip
    parser.add_argument("--peer", type=peer, action="append", default=[], metavar="NAME=PYTHON",
                        help="chgnet or sevennet (SevenNet-0 and its l3i5), and the python of its environment")  # fmt: skip
    add_output(parser)


def _torsions_parser(benches: Any) -> None:
    _relative_parser(
        benches, "torsions", "relative energies along torsion scans, beside other methods",
        "frames with torsion (which scan), rel_ccsdt_cbs_kcal and other rel_METHOD_kcal",
    )  # fmt: skip


def _conformers_parser(benches: Any) -> None:
    _relative_parser(
        benches, "conformers", "relative energies of conformers of molecules, beside other methods",
        "frames with group (which molecule), rel_dlpno_ccsdt_kcal and other rel_METHOD_kcal",
    )  # fmt: skip


def _relative_parser(benches: Any, name: str, summary: str, frames: str) -> None:
    parser = new_parser(
        benches,
        name,
        run_relative,
        summary=summary,
        example=f"gfm bench {name} --geometries {name}.extxyz -o {name}.json",
    )
    parser.set_defaults(kind=name)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="packaged name or directory (default: %(default)s)")
    parser.add_argument("--head", metavar="NAME", default="gfn2-xtb", help="default: %(default)s")
    parser.add_argument("--own-level", metavar="METHOD", default="gfn2",
                        help="which method of the file is the head's level of theory (default: %(default)s)")  # fmt: skip
    parser.add_argument("--geometries", type=Path, metavar="FILE", required=True, help=frames)
    parser.add_argument("--data", type=Path, metavar="DIR",
                        help="the model's datasets: molecules of compositions that are not there count apart, too")  # fmt: skip
    add_output(parser)


def _stability_parser(benches: Any) -> None:
    parser = new_parser(
        benches, "stability", run_stability, summary="Langevin dynamics of 20 systems: does each stay what it is",
        example="gfm bench stability --picoseconds 50 --compile -o stability.json",
    )  # fmt: skip
    parser.add_argument("--model", default=DEFAULT_MODEL, help="packaged name or directory (default: %(default)s)")
    parser.add_argument("--picoseconds", type=positive, default=50.0, help="of each run; default: %(default)s")
    parser.add_argument("--systems", type=words, metavar="NAME,NAME", help="these alone (default: all)")
    parser.add_argument("--compile", action="store_true", help="compile the networks: the runs are long")
    parser.add_argument("--peer", type=peer, action="append", default=[], metavar="NAME=PYTHON",
                        help="chgnet or sevennet (SevenNet-0 and its l3i5), and the python of its environment: runs the "
                        "crystals, too")  # fmt: skip
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep what is done, and go on there")
    add_output(parser)


def run_physics(args: argparse.Namespace) -> None:
    """Measure energy conservation, relaxations and pair curves."""
    from gfm_calc.benchmarks.physics import PARTS, run_physics

    unknown = [part for part in args.parts if part not in PARTS]
    if unknown:
        raise ConfigError(f"--parts: no part {unknown[0]!r}; parts: {', '.join(PARTS)}")
    measured = run_physics(
        args.model, head=args.head, picoseconds=args.picoseconds, device=args.device, compile=args.compile,
        peers=dict(args.peer), parts=args.parts,
    )  # fmt: skip
    finish(args, "physics", extra_versions={**optional("tblite"), **measured.pop("peers", {})}, **measured)


def run_crystals(args: argparse.Namespace) -> None:
    """Measure crystals."""
    from gfm_calc.benchmarks.crystals import CrystalPlan, run_crystals

    if args.elasticity is None and args.heat_capacity is None and not args.elements:
        raise ConfigError("nothing to do: give --elasticity or --elements, --heat-capacity or both")
    if args.elements and args.elasticity is not None:
        raise ConfigError("--elements takes the place of --elasticity: give one of them")
    plan = CrystalPlan(
        model=args.model, head=args.head, elasticity=args.elasticity, elements=args.elements,
        heat_capacity=args.heat_capacity, crystals=args.crystals, phonons=args.phonons, peers=dict(args.peer),
    )  # fmt: skip
    measured = run_crystals(plan)
    finish(args, "crystals", extra_versions={**optional("phonopy"), **measured.pop("peers")}, **measured)


def run_phonons(args: argparse.Namespace) -> None:
    """Measure frequencies."""
    from gfm_calc.benchmarks.force_sets import ForceSetPlan, run_force_sets

    plan = ForceSetPlan(model=args.model, head=args.head, folder=args.force_sets, peers=dict(args.peer))
    measured = run_force_sets(plan)
    finish(args, "phonons", extra_versions={**optional("phonopy"), **measured.pop("peers")}, **measured)


def run_relative(args: argparse.Namespace) -> None:
    """Measure relative energies of torsion scans or conformers."""
    from gfm_calc.benchmarks.relative_energies import run_relative_energies

    found = run_relative_energies(args.kind, args.model, args.head, args.geometries, args.own_level, args.data)
    finish(args, args.kind, **found)


def run_stability(args: argparse.Namespace) -> None:
    """Run the dynamics."""
    import torch

    from gfm_calc.benchmarks.provenance import weights_id
    from gfm_calc.benchmarks.remote import releases, remote_calculators
    from gfm_calc.benchmarks.stability import run_systems, systems
    from gfm_calc.checkpoint import load_model, open_model
    from gfm_calc.errors import did_you_mean

    known = {system.name: system for system in systems()}
    for name in args.systems or ():
        if name not in known:
            raise ConfigError(f"--systems: no {name!r}{did_you_mean(name, known)}; systems: {', '.join(known)}")
    model = load_model(args.model).compile(enabled=args.compile)
    with remote_calculators(dict(args.peer), threads=torch.get_num_threads()) as peers:
        rows = run_systems(
            [known[name] for name in args.systems or known], model, picoseconds=args.picoseconds,
            weights=weights_id(open_model(args.model)), compiled=args.compile, peers=peers, work=args.work,
        )  # fmt: skip
        versions = releases(peers)
    finish(args, "stability", extra_versions=versions, rows=rows)
