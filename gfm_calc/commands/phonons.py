"""`gfm phonons`: band structure, density of states and thermal properties, by finite displacements with phonopy."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, ConvergenceError, MissingDependencyError, one_line
from .options import add_input, add_machine, add_model, new_parser, positive, positive_int, read_input
from .outputs import add_output, files_aside, write_csv, write_json
from .progress import Progress

if TYPE_CHECKING:
    from ase import Atoms

FILES = (
    "phonopy_params.yaml", "band.yaml", "dos.csv", "thermal_properties.csv", "summary.json", "phonons.png", "thermal.png",
)  # fmt: skip
NOISE = 0.01  # THz; slower modes (imaginary ones; the acoustic ones at the zone centre) have no thermal properties
IMAGINARY = -0.05  # THz; closer to zero is noise of the acoustic modes at the zone centre


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = new_parser(
        subparsers, "phonons", run, summary="phonon bands, density of states, thermal properties",
        example="gfm phonons Si.cif -o Si-phonons --supercell 3 3 3 --relax --head distilled-7net-l3i5",
    )  # fmt: skip
    add_input(parser)
    add_output(parser, "DIR", f"folder for {', '.join(FILES)}")
    parser.add_argument(
        "--supercell", type=positive_int, nargs=3, default=(2, 2, 2), metavar=("A", "B", "C"),
        help="repetitions of the cell in IN; 10 Å a side is a fair start (default: 2 2 2)",
    )  # fmt: skip
    parser.add_argument(
        "--mesh", type=positive_int, nargs=3, default=(20, 20, 20), metavar=("A", "B", "C"),
        help="sampling of the Brillouin zone for DOS and thermal properties (default: 20 20 20)",
    )  # fmt: skip
    parser.add_argument("--relax", action="store_true", help="relax atoms and cell first, keeping the space group")
    parser.add_argument(
        "--distance", type=positive, default=0.01, help="of the displacements, Å (default: %(default)s)"
    )
    parser.add_argument("--symprec", type=positive, default=1e-4, help="of the space group, Å (default: %(default)s)")
    parser.add_argument("--t-max", type=positive, default=1000.0, metavar="K", help="default: %(default)s K")
    add_model(parser)
    add_machine(parser, dtype="float64")


def run(args: argparse.Namespace) -> None:
    """Calculate and write; imaginary modes are reported, and no error.

    Raises:
        ConfigError: not a crystal, or a charged one.
        MissingDependencyError: phonopy is not installed.
    """
    from ..structures import located
    from .relax import Relaxation, relax

    require_phonopy()
    with files_aside(args.output, FILES, args.overwrite) as folder:
        atoms, frame = read_input(args)
        _refuse_non_crystal(atoms)
        with located(args.input, frame):
            atoms.get_potential_energy()  # a structure that the model refuses stops here
            if args.relax and not relax(atoms, Relaxation(fmax=1e-4, steps=2000, cell=True, symmetry=True)).converged:
                raise ConvergenceError(
                    f"{args.input}, frame {frame}: not relaxed after 2000 steps; try gfm relax first"
                )
            phonon = force_constants(atoms, args.supercell, distance=args.distance, symprec=args.symprec)
        summary = _analyse(phonon, atoms, args, folder)
    lowest = summary["lowest_frequency_THz"]
    print(f"{args.output}: {summary['primitive_atoms']} atoms in the primitive cell, "
          f"{summary['displacements']} displacements, highest frequency {summary['highest_frequency_THz']:.3f} THz")  # fmt: skip
    if summary["imaginary"]:
        where = " ".join(f"{x:.3g}" for x in summary["lowest_at_q"])
        print(
            f"imaginary modes: lowest {lowest:.3f} THz (i) at q = ({where}); the structure is no minimum of this head"
        )
        print("thermal properties leave the imaginary modes out")


def force_constants(atoms: Atoms, supercell: Any, *, distance: float = 0.01, symprec: float = 1e-4) -> Any:
    """A `phonopy.Phonopy` of `atoms` (with a calculator) with its force constants, symmetrised.

    Args:
        supercell: repetitions along the three cell vectors.
        distance: of the displacements, Å.
        symprec: tolerance of the space group, Å.
    """
    from ase import Atoms
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms
    from phonopy.structure.cells import guess_primitive_matrix

    cell = PhonopyAtoms(
        symbols=list(atoms.symbols), cell=atoms.cell.array, scaled_positions=atoms.get_scaled_positions(),
        masses=atoms.get_masses(),
    )  # fmt: skip
    primitive = guess_primitive_matrix(cell, symprec=symprec)
    phonon = Phonopy(cell, supercell_matrix=list(supercell), primitive_matrix=primitive, symprec=symprec)
    phonon.generate_displacements(distance=distance)
    displaced = [cell for cell in phonon.supercells_with_displacements if cell is not None]
    forces = []
    with Progress("phonons", "displacements", len(displaced)) as progress:
        for entry in displaced:
            moved = Atoms(entry.symbols, cell=entry.cell, scaled_positions=entry.scaled_positions, pbc=True)
            moved.calc = atoms.calc
            forces.append(moved.get_forces())
            progress.advance(note=f"{len(moved)} atoms")
    phonon.forces = forces
    phonon.produce_force_constants(show_drift=False)
    phonon.symmetrize_force_constants(show_drift=False)
    return phonon


def _analyse(phonon: Any, atoms: Atoms, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Bands, DOS and thermal properties of `phonon`, written to `folder`; the summary."""
    from .plots import draw_phonons, draw_thermal

    title = f"{atoms.get_chemical_formula()}, {atoms.calc.head}"
    phonon.auto_band_structure(npoints=101, write_yaml=True, filename=str(folder / "band.yaml"))
    phonon.run_mesh(list(args.mesh), is_gamma_center=True)
    phonon.run_total_dos()
    phonon.run_thermal_properties(t_min=0, t_max=args.t_max, t_step=10, cutoff_frequency=NOISE)
    phonon.save(folder / "phonopy_params.yaml", settings={"force_constants": True})
    dos, thermal = phonon.total_dos, phonon.thermal_properties
    write_csv(folder / "dos.csv", ("frequency_THz", "states_per_THz"), zip(dos.frequency_points, dos.dos))
    header = ("temperature_K", "free_energy_kJ_per_mol", "entropy_J_per_K_mol", "heat_capacity_J_per_K_mol")
    columns = (thermal.free_energy, thermal.entropy, thermal.heat_capacity)
    write_csv(folder / "thermal_properties.csv", header, zip(thermal.temperatures, *columns))
    draw_phonons(folder / "phonons.png", _segments(phonon.band_structure), (dos.frequency_points, dos.dos), title)
    labels = ("free energy (kJ/mol)", "entropy (J/K/mol)", "heat capacity (J/K/mol)")
    draw_thermal(folder / "thermal.png", thermal.temperatures, dict(zip(labels, columns)), title)
    summary = {
        "formula": atoms.get_chemical_formula(), "head": atoms.calc.head, "model_id": atoms.calc.model_id,
        "supercell": list(args.supercell), "mesh": list(args.mesh), "displacements": len(phonon.displacements),
        "primitive_atoms": len(phonon.primitive), "space_group": phonon.symmetry.dataset.international,
        "relaxed": bool(args.relax), "volume_A3": atoms.get_volume(), **extremes(phonon),
        "imaginary_threshold_THz": IMAGINARY,
    }  # fmt: skip
    write_json(folder / "summary.json", summary)
    return summary


def extremes(phonon: Any) -> dict[str, Any]:
    """Lowest and highest frequency (THz, imaginary ones negative) on mesh and bands, and where the lowest is."""
    import numpy as np

    frequencies = np.concatenate([phonon.mesh.frequencies, *phonon.band_structure.frequencies])
    points = np.concatenate([phonon.mesh.qpoints, *phonon.band_structure.qpoints])
    return {
        "lowest_frequency_THz": float(frequencies.min()), "highest_frequency_THz": float(frequencies.max()),
        "lowest_at_q": points[frequencies.min(axis=1).argmin()].tolist(),
        "imaginary": bool(frequencies.min() < IMAGINARY),
    }  # fmt: skip


def _segments(bands: Any) -> list[Any]:
    """The segments of the path as `draw_phonons` takes them; phonopy names each point once where the path goes on."""
    labels = iter(bands.labels)
    found: list[Any] = []
    start: str | None = None
    for distances, frequencies, joined in zip(bands.distances, bands.frequencies, bands.path_connections):
        first = next(labels) if start is None else start
        last = next(labels)
        found.append((distances, frequencies, (first, last)))
        start = last if joined else None
    return found


def _refuse_non_crystal(atoms: Atoms) -> None:
    if not atoms.pbc.all():
        raise ConfigError("phonons need a crystal: a structure that is periodic along three axes")
    if atoms.info.get("charge", 0) != 0 or "spin" in atoms.info:
        raise ConfigError(
            "phonons of a cell with a charge or a spin of its own are not defined: its copies would repel"
        )


def require_phonopy() -> None:
    """MissingDependencyError where phonopy is not installed."""
    try:
        import phonopy  # noqa: F401
        import seekpath  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"phonons need phonopy: pip install 'gfm-calc[phonons]' ({one_line(error)})"
        ) from error
