"""`gfm screen`, also started many times: under torchrun, mpirun, srun (`python -m gfm_calc.screening`), or by hand."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gfm_calc.commands.options import add_machine, add_model, choose_heads, natural, new_parser, positive, positive_int
from gfm_calc.commands.progress import Progress
from gfm_calc.errors import ConfigError

if TYPE_CHECKING:
    from gfm_calc.predictor import Predictor
    from gfm_calc.screening.engine import Engine
    from gfm_calc.screening.folder import Folder
    from gfm_calc.screening.ranking import Ranking
    from gfm_calc.screening.settings import Settings
    from gfm_calc.screening.streams import Joined

_EXAMPLE = """gfm screen perovskites.toml -o perovskites --head distilled-7net-l3i5 --where 'max_force < 3' --top 50
  gfm screen crystals.extxyz.xz folder-of-cifs/ -o run --head pbe-vasp --relax --cell
  torchrun --nproc-per-node 4 -m gfm_calc.screening crystals.extxyz -o run --head pbe-vasp
The same command again goes on where a run was; several at once share the work."""


def add_parser(subparsers: Any) -> None:
    """Register `gfm screen`."""
    parser = new_parser(
        subparsers, "screen", run, summary="rank any number of candidates, resumable, on any number of processes",
        example=_EXAMPLE,
    )  # fmt: skip
    parser.add_argument("input", nargs="+", type=Path, metavar="IN",
                        help="files of structures, folders of CIF files, datasets, TOML files of what is to be made")  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder of the screening")
    add_model(parser, several=True)
    add_machine(parser, mixed=True)
    _add_rows(parser)
    _add_ranking(parser)
    _add_running(parser)


def _add_rows(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("rows: what decides them cannot change in a folder")
    group.add_argument(
        "--quantity", default="forces", help="energies, forces or stress (default: %(default)s, and pressure)"
    )
    group.add_argument(
        "--keep", action="append", default=[], metavar="WHAT", help="structures or forces: as columns, too"
    )
    group.add_argument(
        "--range", type=_range, default=(0, None), metavar="FIRST:LAST", help="of the candidates (default: all)"
    )
    group.add_argument("--chunk", type=positive_int, default=1000, help="candidates in a file (default: %(default)s)")
    group.add_argument(
        "--max-atoms", type=positive_int, default=1024, metavar="N", help="in a batch (default: %(default)s)"
    )
    group.add_argument("--max-edges", type=positive_int, metavar="N",
                       help="in a batch (default: 8192 on a CPU, 262144 on a GPU)")  # fmt: skip
    group.add_argument("--length-unit", metavar="UNIT", help="of positions in files that do not say: A, bohr, nm")
    group.add_argument("--elements", type=Path, metavar="FILE",
                       help="relaxed structures of elements, beside ours, for formation energies")  # fmt: skip
    group.add_argument("--domain", default="auto", metavar="DIR",
                       help="what `gfm domain` found in the model's training data, or none (default: what came with the "
                       "package)")  # fmt: skip
    group.add_argument("--relax", action="store_true", help="relax each candidate first")
    group.add_argument("--cell", action="store_true", help="with --relax: the cell too")
    group.add_argument("--fmax", type=positive, default=0.05, help="with --relax, eV/Å (default: %(default)s)")
    group.add_argument("--steps", type=natural, default=200, help="with --relax, at most (default: %(default)s)")
    group.add_argument("--optimizer", default="FIRE", help="with --relax: FIRE or LBFGS (default: %(default)s)")


def _add_ranking(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("ranking: may change from call to call")
    group.add_argument("--rank-by", default="formation_energy_per_atom", metavar="COLUMN",
                       help="or COLUMN~TARGET; the lowest, or nearest, is best (default: %(default)s)")  # fmt: skip
    group.add_argument("--highest", action="store_true", help="the highest is best")
    group.add_argument("--where", action="append", default=[], metavar="FILTER",
                       help="such as 'max_force < 2'; may be given several times")  # fmt: skip
    group.add_argument("--phases", type=Path, metavar="FILE",
                       help="structures of competing phases for hull_distance, beside elements and candidates; predicted as "
                       "they are")  # fmt: skip
    group.add_argument(
        "--top", type=positive_int, default=20, metavar="N", help="best of each head (default: %(default)s)"
    )
    group.add_argument("--export", type=Path, metavar="DIR",
                       help="ADIOS2 datasets of all that is ok, one a head, for gfm data and gfm train; needs --keep structures "
                       "--keep forces")  # fmt: skip
    group.add_argument("--no-report", dest="report", action="store_false", help="leave summary.html out")


def _add_running(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("running")
    group.add_argument("--workers", type=natural, default=0, metavar="N",
                       help="processes that make candidates and neighbours (default: none; beside a GPU, a thread)")  # fmt: skip
    group.add_argument("--patience", type=positive, default=20.0, metavar="SECONDS",
                       help="of silence after which another's chunk is taken over (default: %(default)s)")  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Screen; any number of processes may run this on one folder.

    Raises:
        GFMError: nothing that can be screened, a folder of something else, or a fault of the disk.
    """
    from gfm_calc.screening.domain import find as find_domain
    from gfm_calc.screening.engine import Engine
    from gfm_calc.screening.export import refuse_incomplete
    from gfm_calc.screening.folder import begin, refuse_other_model
    from gfm_calc.screening.plan import open_streams
    from gfm_calc.screening.table import require_pyarrow
    from gfm_calc.train.parallel import discover

    require_pyarrow()
    ranking = ranking_of(args)
    _digest_of(args.phases)
    place = discover()
    stream = open_streams(args.input, length_unit=args.length_unit)
    predictor = predictor_of(args, place.local_rank)
    settings = settings_of(args, predictor)
    if args.export is not None:
        refuse_incomplete(settings)
    model = model_of(args.model)
    domain = find_domain(args.domain, args.model)
    about = {"candidates": len(stream), "identity": stream.identity(), "elements_file": _digest_of(args.elements),
             "domain": "" if domain is None else domain.digest}  # fmt: skip
    folder = begin(
        args.output, settings, about, lambda: {"model": model, "elements": _elements(args, predictor)},
        patience=args.patience,
    )  # fmt: skip
    with folder.claims:
        refuse_other_model(folder, model)
        phases = _phases(args, folder, predictor) if place.rank == 0 else None
        engine = Engine(predictor, settings, folder.meta["elements"], domain)
        _work(args, folder, stream, engine, ranking, (place.rank, place.world))
    if place.rank == 0:
        _finish(args, folder, stream, ranking, predictor, phases)


def settings_of(args: argparse.Namespace, predictor: Predictor) -> Settings:
    """What the options say about the rows."""
    from gfm_calc.screening.settings import Relaxation, Settings

    if args.cell and not args.relax:
        raise ConfigError("--cell is for relaxations: add --relax")
    relax = (
        Relaxation(optimizer=args.optimizer, fmax=args.fmax, steps=args.steps, cell=args.cell) if args.relax else None
    )
    edges = args.max_edges or (262_144 if predictor.model.device.type == "cuda" else 8192)
    return Settings(
        heads=tuple(predictor.heads), quantity=args.quantity, dtype=args.dtype, compile=args.compile, strict=args.strict,
        chunk=args.chunk, max_atoms=args.max_atoms, max_edges=edges, keep=tuple(args.keep), relax=relax,
        first=args.range[0], last=args.range[1],
    )  # fmt: skip


def predictor_of(args: argparse.Namespace, local_rank: int) -> Predictor:
    """The model, on this process's GPU where there are some."""
    import torch

    from gfm_calc.commands.options import apply_threads
    from gfm_calc.errors import HeadError
    from gfm_calc.predictor import Predictor, parse_device

    apply_threads(args)
    device = parse_device(args.device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
    predictor = Predictor(
        args.model, (), dtype=args.dtype, device=device, compile=args.compile, forces=args.quantity != "energies",
        strict=args.strict, uncertainty=None,
    )  # fmt: skip
    predictor.choose(choose_heads(predictor.model, args.head))
    for spec in predictor.specs:
        if spec.kind != "energy":
            raise HeadError(f"head {spec.name} predicts {spec.quantity}: screening ranks by energies; choose another")
    return predictor


def ranking_of(args: argparse.Namespace) -> Ranking:
    """What the options say about the order."""
    from gfm_calc.screening.ranking import Filter, Objective, Ranking

    objective = Objective.parse(args.rank_by, highest=args.highest)
    return Ranking(objective=objective, filters=tuple(Filter.parse(text) for text in args.where), top=args.top)


def model_of(name: str) -> dict[str, str]:
    """What stands for a model in `screening.json`."""
    from gfm_calc.checkpoint import open_model

    artifact = open_model(name)
    return {
        "name": Path(name).name,
        "model_id": artifact.digest[:16],
        "weights": artifact.files["weights.safetensors"]["sha256"],
    }


def _digest_of(path: Path | None) -> str:
    from gfm_calc.artifacts import sha256_of_file
    from gfm_calc.errors import InputFileError

    if path is not None and not path.is_file():
        raise InputFileError(f"{path}: no such file")
    return "" if path is None else sha256_of_file(path)


def _elements(args: argparse.Namespace, predictor: Predictor) -> dict[str, dict[str, float]]:
    from gfm_calc.screening.elements import element_energies
    from gfm_calc.structures import read_structures

    return element_energies(predictor, read_structures(args.elements) if args.elements else ())


def _work(
    args: argparse.Namespace, folder: Folder, stream: Joined, engine: Engine, ranking: Ranking, place: tuple[int, int]
) -> None:
    from gfm_calc.screening.claims import shared_out
    from gfm_calc.screening.engine import screen
    from gfm_calc.screening.ranking import Best
    from gfm_calc.screening.rows import Rows

    ranking = ranking.on_line()
    best = Best(ranking, folder.settings.heads)
    waves = shared_out(folder.num_chunks, folder.claims, folder.is_done, rank=place[0], world=place[1])
    head, objective = folder.settings.heads[0], ranking.objective

    def show(rows: Rows) -> None:
        best.add(rows.values["candidate"], rows.values["head"], rows.values)
        note = "".join(
            f"best: candidate {n}, {objective.column} {objective.shown(cost):.4g}" for n, cost in best.of(head)[:1]
        )
        progress.advance(len(rows.values["candidate"]) // len(folder.settings.heads), note)

    label = f"screen, process {place[0]}" if place[1] > 1 else "screen"
    with Progress(label, "candidates") as progress:
        for chunks in waves:
            screen(engine, stream, folder, chunks, workers=args.workers, on_chunk=show)


def _phases(
    args: argparse.Namespace, folder: Folder, predictor: Predictor
) -> dict[str, list[tuple[str, float]]] | None:  # fmt: skip
    """Of --phases, before hours of work: a structure that cannot be predicted is told now."""
    from gfm_calc.screening.hull import phases_of
    from gfm_calc.structures import read_structures

    if args.phases is None:
        return None
    return phases_of(predictor, list(read_structures(args.phases)), folder.meta["elements"])


def _finish(
    args: argparse.Namespace, folder: Folder, stream: Joined, ranking: Ranking, predictor: Predictor,
    phases: Mapping[str, Sequence[tuple[str, float]]] | None,
) -> None:  # fmt: skip
    from gfm_calc.predictor import Predictor
    from gfm_calc.screening.export import export
    from gfm_calc.screening.outcome import finish

    exact = None
    if args.dtype != "float64":
        exact = Predictor(
            args.model, predictor.heads, dtype="float64", device="cpu", forces=predictor.forces, strict=False
        )
    found = finish(folder, stream, ranking, report=args.report, phases=phases, exact=exact)
    if args.export is not None:
        export(folder, predictor.specs, args.model, args.export)
    for head, counts in found.statuses.items():
        others = "".join(f", {counts[name]:,} {name}" for name in sorted(counts) if name != "ok")
        best = "".join(f"; best: candidate {number}" for number, _ in found.best.of(head)[:1])
        none = f"; none passes the filters and has a {ranking.objective.column}: choose --rank-by, --where"
        print(f"{args.output}: {head}: {counts['ok']:,} ok{others}; {found.ranked[head]:,} ranked{best or none}")


def _range(text: str) -> tuple[int, int | None]:
    first, colon, last = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"write FIRST:LAST, not {text!r}")
    return (natural(first) if first else 0), (positive_int(last) if last else None)
