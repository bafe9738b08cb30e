"""The processes of a job: who they are, how they add up numbers, and how they notice that one of them is lost.

Started by torchrun, mpirun or srun, or alone.  This is the only module that reads the environment.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from gfm_calc.errors import ConfigError, GFMError, one_line
from gfm_calc.train.watch import BEAT, FAILED, Watch

_MEETING = 512  # bytes of a host name and a port
_JOINING = timedelta(minutes=5)
_LONG = timedelta(hours=12)  # of a collective: silence is noticed by other means
# (rank, processes, rank on the machine, processes on the machine) as each launcher calls them.
_LAUNCHERS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "mpirun (Open MPI)": (
        "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"
    ),
    "mpirun": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    "srun": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
}  # fmt: skip


class LostProcessError(GFMError):
    """Another process of the job failed, died or fell silent."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where this process stands: its rank among `world` processes, `local_rank` among `local_world` of its machine."""

    launcher: str = "none"
    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1


def quiet() -> None:
    """Keep what torch's networking says of lost connections, traces of its own source, off the terminal."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def discover(environment: Mapping[str, str] | None = None) -> Place:
    """The place that the launcher gives this process.

    Raises:
        ConfigError: a launcher's variables that do not fit together.
    """
    found = os.environ if environment is None else environment
    for launcher, names in _LAUNCHERS.items():
        if names[0] not in found or names[1] not in found:
            continue
        if launcher == "srun" and "SLURM_STEP_ID" not in found:
            continue  # inside an allocation, but not started by srun
        if launcher == "mpirun" and names[2] not in found and _is_step(found, found[names[0]], found[names[1]]):
            # By srun --mpi=pmi2, which alone knows the machines; without mpi4py they meet where it says.
            launcher, names = launcher if find_spec("mpi4py") else "srun", (*names[:2], *_LAUNCHERS["srun"][2:])
        try:
            rank, world = int(found[names[0]]), int(found[names[1]])
            local_rank = int(found.get(names[2], rank))
            local_world = _on_machine(found.get(names[3], str(world)), int(found.get("SLURM_NODEID", 0)))
        except (ValueError, IndexError) as error:
            raise ConfigError(f"{launcher}: {', '.join(names)} are no numbers ({one_line(error)})") from error
        if not 0 <= rank < world:
            raise ConfigError(f"{launcher}: says rank {rank} of {world} processes")
        return Place(launcher=launcher, rank=rank, world=world, local_rank=local_rank, local_world=local_world)
    return Place()


def _is_step(found: Mapping[str, str], rank: str, world: str) -> bool:
    """Whether srun started this process as that rank of that many."""
    return "SLURM_STEP_ID" in found and (found.get("SLURM_PROCID"), found.get("SLURM_NTASKS")) == (rank, world)


def _on_machine(said: str, machine: int) -> int:
    """Processes on a machine: a number, or one of the list that Slurm gives for all machines, such as 4(x2),3."""
    counts: list[int] = []
    for part in said.split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    return counts[machine] if len(counts) > 1 else counts[0]


class Ranks:
    """The processes of the job, as seen from this one; to be made by all of them.

    Args:
        place: see `discover`.
        device: "cpu", "cuda", or None: the GPU where there is one.
        patience: seconds of silence after which a process is given up, and the job with it.

    Attributes: `rank`, `world`, `local_world` (by which the processes of each machine can be divided: the same on all), `device`;
    `bytes_sent` (by this process, as the usual ring algorithms need) and `seconds` (spent in collectives).
    """

    def __init__(self, place: Place, device: str | None = None, *, patience: float = 8.0):
        self.place, self.rank, self.world = place, place.rank, place.world
        self.local_world = max(1, place.local_world)
        self.device = _device(device, place)
        self.bytes_sent, self.seconds = 0, 0.0
        self._watch: Watch | None = None
        self._owns_group = False
        self._all: Any = None
        if self.world > 1:
            self._join(patience)

    def _join(self, patience: float) -> None:
        backend = "gloo" if self.device.type == "cpu" else "cpu:gloo,cuda:nccl"
        try:
            address, store = _meet(self.place)
            dist.init_process_group(
                backend, store=dist.PrefixStore("gfm", store), rank=self.rank, world_size=self.world, timeout=_JOINING
            )
            self._all = dist.new_group(list(range(self.world)), timeout=_LONG)
        except (RuntimeError, ValueError) as error:
            raise GFMError(
                f"rank {self.rank}: the {self.world} processes do not find each other ({one_line(error)})"
            ) from error
        self._owns_group = True
        if self.rank == 0:
            own = dist.TCPStore("0.0.0.0", 0, None, is_master=True, wait_for_workers=False)
            store.set("gfm-watch", str(own.port))
        self._watch = Watch(
            self.rank, self.world, lambda: dist.TCPStore(
                address, int(store.get("gfm-watch")), None, is_master=False, timeout=timedelta(seconds=patience)
            ), patience,
        )  # fmt: skip
        self._host = own if self.rank == 0 else None  # nobody reads it: the store lives as long as its object does
        self.local_world = math.gcd(*self.tell(self.local_world))  # machines may hold different numbers of processes

    def communicator(self, ranks: Sequence[int]) -> Any:
        """An mpi4py communicator of some ranks, this one among them; to be called by all processes.

        None where they were not started by MPI, or where its library allows one thread only.
        """
        if self.world == 1 or not self.place.launcher.startswith("mpirun"):
            return None
        try:
            from mpi4py import MPI
        except ImportError:
            return None
        if MPI.COMM_WORLD.size != self.world or MPI.Query_thread() != MPI.THREAD_MULTIPLE:
            return None
        return MPI.COMM_WORLD.Split(min(ranks), self.rank)

    # ---- collectives ----

    def group(self, ranks: Sequence[int]) -> dist.ProcessGroup | None:
        """A group of some ranks; to be called by all processes, in the same order.  None for a group of one."""
        return dist.new_group(list(ranks), timeout=_LONG) if len(ranks) > 1 and self.world > 1 else None

    def add_up(self, tensor: Tensor, group: dist.ProcessGroup | None = None, *, size: int | None = None) -> None:
        """Replace `tensor` by its sum over the processes (of `group`, which has `size`)."""
        count = self.world if size is None else size
        if count > 1:
            self._timed(lambda: dist.all_reduce(tensor, group=group or self._all))
            self.bytes_sent += 2 * (count - 1) * tensor.numel() * tensor.element_size() // count

    def scatter_sum(self, parts: Tensor, own: Tensor, group: dist.ProcessGroup | None, size: int) -> None:
        """`own` becomes this process's part of the sum of `parts` [size * len(own)]."""
        self._timed(lambda: dist.reduce_scatter_tensor(own, parts, group=group or self._all))
        self.bytes_sent += (size - 1) * own.numel() * own.element_size()

    def collect(self, own: Tensor, parts: Tensor, group: dist.ProcessGroup | None, size: int) -> None:
        """`parts` [size * len(own)] becomes what every process has as `own`."""
        self._timed(lambda: dist.all_gather_into_tensor(parts, own, group=group or self._all))
        self.bytes_sent += (size - 1) * own.numel() * own.element_size()

    def tell(self, value: Any) -> list[Any]:
        """What every process says, JSON values, by rank; to be called by all."""
        if self.world == 1:
            return [value]
        data = json.dumps(value).encode()
        sizes = torch.zeros(self.world, dtype=torch.int64)
        sizes[self.rank] = len(data)
        self._timed(lambda: dist.all_reduce(sizes, group=self._all))
        width = int(sizes.max())
        buffer = torch.zeros(self.world, width, dtype=torch.uint8)
        buffer[self.rank, : len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        self._timed(lambda: dist.all_reduce(buffer, group=self._all))
        self.bytes_sent += len(data)
        return [json.loads(bytes(buffer[k, : int(size)].tolist())) for k, size in enumerate(sizes)]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            self._timed(lambda: dist.barrier(group=self._all))

    def _timed(self, call: Callable[[], Any]) -> None:
        since = time.perf_counter()
        try:
            call()
        except RuntimeError as error:
            raise LostProcessError(self._why(error)) from error
        self.seconds += time.perf_counter() - since

    # ---- failure ----

    def _why(self, error: BaseException) -> str:
        said = self._watch.diagnosis() if self._watch else None
        return said or f"another process is lost ({one_line(error)})"

    def fail(self, error: BaseException) -> NoReturn:
        """Say why, tell the others, and end this process at once (a normal end would wait for the others)."""
        if self._watch and self._watch.giving_up:
            time.sleep(60)
        message = one_line(error) if isinstance(error, GFMError) else f"{type(error).__name__}: {one_line(error)}"
        is_own = not isinstance(error, LostProcessError)
        if self._watch and self.rank and is_own:
            time.sleep(BEAT)  # what all find wrong, the first process says
        if self._watch and self._watch.is_said(message):
            time.sleep(BEAT)  # whoever says it has the time to
        else:
            where = f"rank {self.rank}: " if self.world > 1 else ""
            print(f"gfm: error: {where}{message}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        if self._watch and is_own:
            self._watch.post(FAILED.format(self.rank, message))
        if self.rank == 0 and self._watch:
            time.sleep(4 * BEAT)  # the others find the cause in the store, which is in this process
        if "mpi4py.MPI" in sys.modules:
            sys.modules["mpi4py.MPI"].COMM_WORLD.Abort(1)
        os._exit(1)

    def close(self) -> None:
        """Leave together; to be called by all processes."""
        if self._owns_group:
            self.wait()
            assert self._watch is not None
            self._watch.stop()
            self.wait()
            dist.destroy_process_group()
            self._owns_group = False


def _device(device: str | None, place: Place) -> torch.device:
    from gfm_calc.predictor import parse_device

    found = parse_device(device)
    if found.type == "cuda" and found.index is None:
        found = torch.device("cuda", place.local_rank % torch.cuda.device_count())
    if found.type == "cuda":
        torch.cuda.set_device(found)
    return found


def _meet(place: Place) -> tuple[str, dist.TCPStore]:
    """The address of the first process, and the store there that all processes are connected to."""
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if place.launcher.startswith("mpirun") and not (address and port):
        return _meet_by_mpi(place)
    if place.launcher == "srun" and not (address and port):
        nodes = os.environ.get("SLURM_JOB_NODELIST", "")
        address = os.environ.get("SLURM_LAUNCH_NODE_IPADDR") or nodes.split(",")[0]
        job = os.environ.get("SLURM_JOB_ID", "")
        port = str(15000 + int(job) % 20000) if job.isdigit() and "[" not in address else None
    if not (address and port):
        raise ConfigError(
            f"{place.launcher}: set MASTER_ADDR and MASTER_PORT to where the {place.world} processes shall meet"
        )
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun has made a store already
    return address, _store(address, int(port), place, is_master=place.rank == 0 and not hosted)


def _meet_by_mpi(place: Place) -> tuple[str, dist.TCPStore]:
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise ConfigError(
            "under mpirun the processes meet by MPI (pip install 'gfm-calc[mpi]'), or where MASTER_ADDR and MASTER_PORT say"
        ) from error
    meeting = bytearray(_MEETING)
    store = None
    if place.rank == 0:
        address = "127.0.0.1" if place.local_world == place.world else platform.node()
        store = _store(address, 0, place, is_master=True)  # any free port
        text = f"{address} {store.port}".encode()
        meeting[: len(text)] = text
    MPI.COMM_WORLD.Bcast(meeting)
    address, port = bytes(meeting).rstrip(b"\0").decode().split()
    return address, store or _store(address, int(port), place, is_master=False)


def _store(address: str, port: int, place: Place, *, is_master: bool) -> dist.TCPStore:
    return dist.TCPStore(address, port, place.world, is_master=is_master, timeout=_JOINING, wait_for_workers=False)
