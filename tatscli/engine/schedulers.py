"""Rank and world size of this process, from the variables of torchrun, SLURM or MPI.

Nothing here needs torch. A launcher sets one family of variables. A family that is incomplete or
contradicts itself is refused: a training that trusted it would wait for peers that never arrive.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from tatscli.errors import UsageError

LAUNCHED = "TATS_LAUNCHED"
"""Set by `--nproc` for the processes that it starts."""

LOST = 75
"""Exit code of such a process after another one failed, which has reported why."""

LOCALHOST = "127.0.0.1"
DEFAULT_PORT = 29500  # torchrun's
_PORTS = range(15_000, 30_000)
"""Where derived ports lie: below those that Linux hands out to outgoing connections."""

_NO_STEPS = {"4294967290", "4294967291", "4294967292"}
"""Numbers SLURM gives to an interactive shell, a batch script and what it runs outside of steps."""

_OF_STEPS = ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE")


@dataclass(frozen=True, slots=True)
class Place:
    """This process among those that were started together.

    Attributes:
        rank: 0 to size - 1.
        size: Number of processes.
        local_rank: Rank on this machine.
        local_size: Processes on this machine.
        address: Where rank 0 waits for the others.
        port: The port of that machine.
        source: The launcher that says so.
        isolated: Whether the launcher may let each process see only its own GPU, as SLURM and MPI
            do; that GPU is number 0 whatever the local rank.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    source: str
    isolated: bool = False

    def __str__(self) -> str:
        """Describe it in a line."""
        return f"rank {self.rank} of {self.size}, meeting at {self.address}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The same as torchrun's variables, for code that reads those."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_size),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }

    def gpu(self, count: int) -> int:
        """Return the index of this process's GPU among `count` visible ones.

        Raises:
            UsageError: If there are fewer GPUs than processes on this machine.
        """
        if self.isolated and count == 1:
            return 0
        if self.local_rank >= count:
            raise UsageError(
                f"{self.source} starts {self.local_size} processes on this machine, but "
                f"{_gpus(count)} visible (this is local rank {self.local_rank})",
                hint="start one process for each GPU, or train with `run.device=cpu`",
            )
        return self.local_rank


def find_place(environ: Mapping[str, str]) -> tuple[Place | None, str]:
    """Return this process's place among its peers, or None where it is alone, and the reason.

    The first of these counts: torchrun's `RANK` and `WORLD_SIZE` (also set by Kubernetes' training
    operator), Open MPI's `OMPI_COMM_WORLD_*`, MPICH's `PMI_*` with `MPI_LOCALRANKID`, SLURM's in a
    step of `srun`, other `PMI_*`. MPI comes before SLURM because `mpirun` starts its daemons
    with `srun`, whose variables they hand down.

    Raises:
        UsageError: If the variables are incomplete or contradict each other.
    """
    if "RANK" in environ or "WORLD_SIZE" in environ:
        return _torchrun(environ)
    if "OMPI_COMM_WORLD_SIZE" in environ or "OMPI_COMM_WORLD_RANK" in environ:
        return _mpi(environ, "Open MPI", "OMPI_COMM_WORLD_{}", "LOCAL_RANK", "LOCAL_SIZE")
    if "PMI_RANK" in environ and "MPI_LOCALRANKID" in environ:
        return _mpi(environ, "MPICH", "PMI_{}", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
    if any(name in environ for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_JOB_ID")):
        return _slurm(environ)
    if "PMI_RANK" in environ:
        return _mpi(environ, "MPI", "PMI_{}", "LOCAL_RANK", "LOCAL_SIZE")
    return None, "no launcher's variables are set"


def hosts(listed: str) -> list[str]:
    """Expand SLURM's short form of host names: `a[01-03,07],b` is a01, a02, a03, a07, b.

    Raises:
        UsageError: If brackets or ranges are malformed.
    """
    entry = r"(?:[^,\[\]\s]+|\[[\d,-]+\])+"
    if re.fullmatch(f"{entry}(?:,{entry})*", listed) is None:
        raise _bad_list(listed)
    found: list[str] = []
    for one in re.findall(entry, listed):
        names = [""]
        for literal, group in re.findall(r"([^\[\]]+)|\[([^\]]*)\]", one):
            ends = [literal] if literal else _numbers(group, listed)
            names = [name + end for name in names for end in ends]
        found += names
    return found


def _numbers(group: str, listed: str) -> list[str]:
    """The numbers of one bracket, with their leading zeros."""
    found: list[str] = []
    for part in group.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None:
            raise _bad_list(listed)
        first, last = match[1], match[2] or match[1]
        if int(last) < int(first) or int(last) - int(first) > 100_000:
            raise _bad_list(listed)
        found += [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return found


def _bad_list(listed: str) -> UsageError:
    return UsageError(f"`{listed}` is not a SLURM list of hosts, such as `node[01-03,07]`")


def counts(listed: str) -> list[int]:
    """Expand SLURM's tasks per node: `2(x3),1` is 2, 2, 2, 1.

    Raises:
        UsageError: If it is of another form.
    """
    found: list[int] = []
    for part in listed.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise UsageError(f"`{listed}` is not a SLURM list of tasks per node, such as `2(x3),1`")
        found += [int(match[1])] * int(match[2] or 1)
    return found


def _torchrun(environ: Mapping[str, str]) -> tuple[Place | None, str]:
    for given, missing in (("RANK", "WORLD_SIZE"), ("WORLD_SIZE", "RANK")):
        if missing not in environ:
            if given == "WORLD_SIZE" and environ[given].strip() == "1":
                return None, "WORLD_SIZE is 1"
            raise UsageError(
                f"`{given}={environ[given]}` is set without `{missing}`: a process of a group"
                " needs both",
                hint=f"`unset {given}` trains in one process; torchrun, `srun` and `--nproc` set "
                "both",
            )
    size = _number(environ, "WORLD_SIZE", least=1)
    rank = _rank(environ, "RANK", size, "WORLD_SIZE")
    local_size = _number(environ, "LOCAL_WORLD_SIZE", least=1, default=1)
    local_rank = _number(environ, "LOCAL_RANK", default=0)
    if "LOCAL_WORLD_SIZE" in environ and local_rank >= local_size:
        raise _beyond("LOCAL_RANK", local_rank, "LOCAL_WORLD_SIZE", local_size)
    if size > 1 and "MASTER_ADDR" not in environ:
        raise UsageError(
            f"`RANK={rank}` of `WORLD_SIZE={size}` needs `MASTER_ADDR`, the address of rank 0",
            hint="torchrun, `srun` and `--nproc` set it; "
            "`unset RANK WORLD_SIZE` trains in one process",
        )
    source = "`--nproc`" if LAUNCHED in environ else "torchrun"
    if size == 1:
        return None, f"{source}: WORLD_SIZE is 1"
    address, port = _meeting(environ, LOCALHOST, DEFAULT_PORT)
    place = Place(rank, size, local_rank, local_size, address, port, source)
    return place, f"{source}: RANK and WORLD_SIZE"


def _slurm(environ: Mapping[str, str]) -> tuple[Place | None, str]:
    step = environ.get("SLURM_STEP_ID", environ.get("SLURM_STEPID"))
    if "SLURM_PROCID" not in environ:
        return None, "SLURM, but not in a step of srun: SLURM_PROCID is not set"
    total = next(
        (name for name in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS")
         if name in environ),
        None,
    )  # fmt: skip
    if total is None and environ["SLURM_PROCID"].strip() != "0":
        raise UsageError(
            f"`SLURM_PROCID={environ['SLURM_PROCID']}` is set without `SLURM_NTASKS`",
            hint="`srun` sets both; `unset SLURM_PROCID` trains in one process",
        )
    if step in _NO_STEPS or total is None:
        return None, "SLURM, but not in a step of srun"
    size = _number(environ, total, least=1)
    rank = _rank(environ, "SLURM_PROCID", size, total)
    in_step = step is not None or any(name in environ for name in _OF_STEPS)
    if not in_step and rank == 0 and size > 1:
        return None, f"a batch script or shell of SLURM: {total}={size}, but no step of srun"
    if size == 1:
        return None, f"SLURM: {total} is 1"
    per_node = environ.get("SLURM_STEP_TASKS_PER_NODE", environ.get("SLURM_TASKS_PER_NODE"))
    each = counts(per_node) if per_node is not None else []
    node = _number(environ, "SLURM_NODEID", default=0)
    local_rank = _number(environ, "SLURM_LOCALID", default=0)
    if node < len(each):
        local_size = each[node]
        if local_rank >= local_size:
            raise _beyond("SLURM_LOCALID", local_rank, "the tasks of this node", local_size)
    else:
        local_size = _number(environ, "SLURM_NTASKS_PER_NODE", least=1, default=1)
    address, port = _meeting(environ, _slurm_address(environ), _slurm_port(environ, step))
    place = Place(
        rank, size, local_rank, max(local_size, local_rank + 1), address, port, "SLURM", True
    )
    return place, f"SLURM: SLURM_PROCID and {total}"


def _slurm_address(environ: Mapping[str, str]) -> str | None:
    """The first machine of the step, where rank 0 is."""
    nodes = environ.get("SLURM_STEP_NUM_NODES", environ.get("SLURM_NNODES"))
    listed = environ.get("SLURM_STEP_NODELIST", environ.get("SLURM_JOB_NODELIST"))
    listed = listed or environ.get("SLURM_NODELIST")
    if nodes == "1" or (nodes is None and not listed):
        return LOCALHOST  # whose own name need not be known in a container
    names = hosts(listed) if listed else []
    return LOCALHOST if len(names) == 1 else next(iter(names), None)


def _slurm_port(environ: Mapping[str, str], step: str | None) -> int:
    """A port that jobs, and steps of a job, on the same machine do not share."""
    job = environ.get("SLURM_JOB_ID", environ.get("SLURM_JOBID", "0"))
    number = int(job) if job.isdecimal() else zlib.crc32(job.encode())
    number += 101 * int(step) if step is not None and step.isdecimal() else 0
    return _PORTS[number % len(_PORTS)]


def _mpi(
    environ: Mapping[str, str], source: str, form: str, local_rank: str, local_size: str
) -> tuple[Place | None, str]:
    names = [one if one.startswith("MPI") else form.format(one) for one in (local_rank, local_size)]
    rank_name, size_name = form.format("RANK"), form.format("SIZE")
    for given, missing in ((rank_name, size_name), (size_name, rank_name)):
        if missing not in environ:
            raise UsageError(f"`{given}={environ[given]}` is set without `{missing}`")
    size = _number(environ, size_name, least=1)
    rank = _rank(environ, rank_name, size, size_name)
    if size == 1:
        return None, f"{source}: {size_name} is 1"
    local, many = _number(environ, names[0], default=0), _number(environ, names[1], default=1)
    if local >= many and names[1] in environ:
        raise _beyond(names[0], local, names[1], many)
    job = next((environ[name] for name in _MPI_JOBS if name in environ), "")
    port = _PORTS[zlib.crc32(job.encode()) % len(_PORTS)] if job else DEFAULT_PORT
    address, port = _meeting(environ, LOCALHOST if many == size else None, port)
    place = Place(rank, size, local, many, address, port, source, True)
    return place, f"{source}: {rank_name} and {size_name}"


_MPI_JOBS = ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "PMI_JOBID", "PMI_ID", "SLURM_JOB_ID")


def _meeting(environ: Mapping[str, str], address: str | None, port: int) -> tuple[str, int]:
    """Where rank 0 waits: `MASTER_ADDR` and `MASTER_PORT`, else what was derived."""
    found = environ.get("MASTER_ADDR") or address
    if found is None:
        raise UsageError(
            "the processes run on several machines, but nothing says where rank 0 is",
            hint="set `MASTER_ADDR` to its host name in every process",
        )
    return found, _number(environ, "MASTER_PORT", least=1, most=65_535, default=port)


def _rank(environ: Mapping[str, str], name: str, size: int, size_name: str) -> int:
    rank = _number(environ, name)
    if rank >= size:
        raise _beyond(name, rank, size_name, size)
    return rank


def _beyond(name: str, rank: int, size_name: str, size: int) -> UsageError:
    return UsageError(
        f"`{name}={rank}` must be less than {size_name}, which is {size}",
        hint="these variables were not set by the same launcher; `tats env` shows what is read",
    )


def _number(
    environ: Mapping[str, str],
    name: str,
    *,
    least: int = 0,
    most: int | None = None,
    default: int | None = None,
) -> int:
    """Read a variable that must be a whole number; a default makes it optional."""
    text = environ.get(name)
    if text is None and default is not None:
        return default
    text = (text or "").strip()
    if text.isdecimal() and least <= int(text) and (most is None or int(text) <= most):
        return int(text)
    bound = f"from {least} to {most}" if most is not None else f"of at least {least}"
    raise UsageError(f"`{name}={text}` must be a whole number {bound}")


def _gpus(count: int) -> str:
    return "no GPU is" if count == 0 else "1 GPU is" if count == 1 else f"only {count} GPUs are"
