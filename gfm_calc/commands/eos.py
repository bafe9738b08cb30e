"""`gfm eos`: energy against volume, and the Birch-Murnaghan equation of state through it."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, ConvergenceError
from .options import add_input, add_machine, add_model, new_parser, positive, positive_int, read_input
from .outputs import add_output, files_aside, write_csv, write_json
from .progress import Progress

if TYPE_CHECKING:
    from ase import Atoms

FILES = ("eos.json", "eos.csv", "eos.png")
_STEPS = 2000  # of a relaxation


@dataclass(frozen=True, kw_only=True)
class BirchMurnaghan:
    """E(V) of third order: Birch, Phys. Rev. 71, 809 (1947), DOI 10.1103/PhysRev.71.809.

    Attributes: `volume` V0 in Å³; `energy` E0 in eV; `bulk_modulus` B0 in GPa; `derivative` B0' (no unit); `residual`,
    root mean square of the fit in eV.
    """

    volume: float
    energy: float
    bulk_modulus: float
    derivative: float
    residual: float = 0.0

    def __call__(self, volumes: Any) -> Any:
        """Energies (eV) at `volumes` (Å³)."""
        import numpy as np
        from ase.units import GPa

        x = (self.volume / np.asarray(volumes)) ** (2 / 3) - 1
        return self.energy + 9 * self.volume * self.bulk_modulus * GPa / 16 * (
            x**3 * self.derivative + x**2 * (2 - 4 * x)
        )


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = new_parser(
        subparsers, "eos", run, summary="equation of state: equilibrium volume and bulk modulus",
        example="gfm eos Cu.cif -o Cu-eos --relax --head distilled-7net-l3i5",
    )  # fmt: skip
    add_input(parser)
    add_output(parser, "DIR", f"folder for {', '.join(FILES)}")
    parser.add_argument(
        "--range", type=positive, default=0.06, help="volumes from 1-RANGE to 1+RANGE (default: %(default)s)"
    )
    parser.add_argument("--points", type=positive_int, default=13, help="how many volumes (default: %(default)s)")
    parser.add_argument("--relax", action="store_true", help="relax atoms and cell first")
    parser.add_argument("--relax-atoms", action="store_true", help="relax the atoms at every volume")
    add_model(parser)
    add_machine(parser, dtype="float64")


def run(args: argparse.Namespace) -> None:
    """Calculate, fit, write.

    Raises:
        ConvergenceError: a relaxation was not done, or there is no minimum between the volumes.
    """
    from ..structures import located
    from .plots import draw_eos
    from .relax import Relaxation, relax

    if args.range >= 0.5 or args.points < 5:
        raise ConfigError("an equation of state needs a --range below 0.5 and at least 5 --points")
    with files_aside(args.output, FILES, args.overwrite) as folder:
        atoms, frame = read_input(args)
        with located(args.input, frame), Progress("eos", "volumes", args.points) as progress:
            if args.relax and not relax(atoms, Relaxation(fmax=1e-3, cell=True, steps=_STEPS)).converged:
                raise ConvergenceError(
                    f"{args.input}, frame {frame}: not relaxed after {_STEPS} steps; try gfm relax first"
                )
            try:
                volumes, energies = energy_of_volume(
                    atoms, span=args.range, points=args.points, relax_atoms=args.relax_atoms, progress=progress
                )
            except ConvergenceError as error:
                raise ConvergenceError(f"{args.input}, frame {frame}: {error}") from error
        fit = fit_birch_murnaghan(volumes, energies)
        title = f"{atoms.get_chemical_formula()}, {atoms.calc.head}"
        write_json(folder / FILES[0], _summary(atoms, fit))
        write_csv(folder / FILES[1], ("volume_A3", "energy_eV", "fit_eV"), zip(volumes, energies, fit(volumes)))
        draw_eos(folder / FILES[2], volumes, energies, fit, title)
    print(
        f"{args.output}: V0 {fit.volume:.4f} Å³ ({fit.volume / len(atoms):.4f} an atom), E0 {fit.energy:.6f} eV, "
        f"B0 {fit.bulk_modulus:.2f} GPa, B0' {fit.derivative:.2f}"
    )


def energy_of_volume(
    atoms: Atoms, *, span: float = 0.06, points: int = 13, relax_atoms: bool = False, progress: Progress | None = None
) -> tuple[Any, Any]:
    """Volumes [points] (Å³) around that of `atoms` (with a calculator) and energies [points] (eV), the shape kept.

    Raises:
        ConfigError: not periodic along three axes.
        ConvergenceError: atoms that do not come to rest.
    """
    import numpy as np

    from .relax import Relaxation, relax

    if not atoms.pbc.all():
        raise ConfigError("an equation of state needs a structure that is periodic along three axes")
    volumes, energies = [], []
    for factor in np.linspace(1 - span, 1 + span, points):
        scaled = atoms.copy()
        scaled.calc = atoms.calc
        scaled.set_cell(atoms.cell.array * factor ** (1 / 3), scale_atoms=True)
        if relax_atoms and not relax(scaled, Relaxation(fmax=5e-3, steps=_STEPS)).converged:
            raise ConvergenceError(
                f"atoms not relaxed after {_STEPS} steps at {factor:.2f} times the volume: less --range"
            )
        volumes.append(scaled.get_volume())
        energies.append(scaled.get_potential_energy())
        if progress is not None:
            progress.advance()
    return np.array(volumes), np.array(energies)


def fit_birch_murnaghan(volumes: Any, energies: Any) -> BirchMurnaghan:
    """Least squares without a starting guess: E is a cubic polynomial of V^(-2/3), and the rest is algebra.

    Raises:
        ConvergenceError: no minimum between the smallest and the largest volume.
    """
    import numpy as np
    from ase.units import GPa

    # x is scaled to about 1 and the energies to about 0: the normal equations stay well conditioned.
    scale, offset = float(np.mean(volumes)), float(np.mean(energies))
    x = (np.asarray(volumes) / scale) ** (-2 / 3)
    cubic = np.polynomial.Polynomial.fit(x, np.asarray(energies) - offset, 3).convert()
    slope, curvature, third = cubic.deriv(), cubic.deriv(2), cubic.deriv(3)
    found = [r.real for r in slope.roots() if abs(r.imag) < 1e-9 and r.real > 0 and curvature(r.real) > 0]
    inside = [r for r in found if x.min() <= r <= x.max()]
    if not inside:
        hint = f" (the fit has one at {scale * found[0] ** -1.5:.4g} Å³)" if found else ""
        raise ConvergenceError(
            f"no minimum of the energy between {min(volumes):.4g} and {max(volumes):.4g} Å³{hint}: "
            "relax the cell first (--relax) or widen --range"
        )
    x0 = inside[0]
    volume = scale * x0**-1.5
    # With x = (V/scale)^(-2/3): dx/dV = -2x/(3V); B = V E'' and B' = -1 - V E'''/E'' at the minimum.
    second = 4 * x0**2 / (9 * volume**2) * curvature(x0)
    derivative = -(60 * x0**2 * curvature(x0) + 8 * x0**3 * third(x0)) / (27 * volume**3)
    return BirchMurnaghan(
        volume=volume, energy=float(cubic(x0)) + offset, bulk_modulus=float(volume * second) / GPa,
        derivative=float(-1 - volume * derivative / second),
        residual=float(np.sqrt(np.mean(np.square(cubic(x) + offset - np.asarray(energies))))),
    )  # fmt: skip


def _summary(atoms: Atoms, fit: BirchMurnaghan) -> dict[str, Any]:
    return {
        "formula": atoms.get_chemical_formula(), "atoms": len(atoms), "head": atoms.calc.head,
        "model_id": atoms.calc.model_id, "equation": "Birch-Murnaghan, third order",
        "units": {"volume": "Å³", "energy": "eV", "bulk_modulus": "GPa", "residual": "eV"}, **asdict(fit),
        "linear_scale": (fit.volume / atoms.get_volume()) ** (1 / 3),
    }  # fmt: skip
