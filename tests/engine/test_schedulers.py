"""The environments that torchrun, SLURM and MPI make, as tables: places, and refusals."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tatscli.engine.schedulers import Place, counts, find_place, hosts
from tatscli.errors import UsageError

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "one", "MASTER_PORT": "4242",
}  # fmt: skip
STEP = {
    "SLURM_JOB_ID": "123456", "SLURM_STEP_ID": "0", "SLURM_PROCID": "9", "SLURM_NTASKS": "12",
    "SLURM_STEP_NUM_TASKS": "12", "SLURM_LOCALID": "1", "SLURM_NODEID": "2",
    "SLURM_STEP_TASKS_PER_NODE": "4(x3)", "SLURM_STEP_NUM_NODES": "3",
    "SLURM_STEP_NODELIST": "gpu[08-10]",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "prterun-here-17@1",
}  # fmt: skip
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


def where(place: Place | None) -> tuple[int, int, int, int, str]:
    assert place is not None
    return place.rank, place.size, place.local_rank, place.local_size, place.address


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (TORCHRUN, (3, 4, 1, 2, "one")),
        # Kubernetes' operator says nothing of local ranks: one process a pod.
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "pod-0"}, (1, 2, 0, 1, "pod-0")),
        (STEP, (9, 12, 1, 4, "gpu08")),
        (STEP | {"MASTER_ADDR": "10.0.0.7"}, (9, 12, 1, 4, "10.0.0.7")),
        (
            STEP | {"SLURM_STEP_TASKS_PER_NODE": "4(x2),6", "SLURM_STEP_NUM_TASKS": "14"},
            (9, 14, 1, 6, "gpu08"),
        ),
        # On one machine its name need not be known to anybody.
        (
            STEP | {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_TASKS_PER_NODE": "12"}
            | {"SLURM_NODEID": "0", "SLURM_LOCALID": "9"},
            (9, 12, 9, 12, "127.0.0.1"),
        ),
        # Torchrun inside a step of srun, and mpirun's daemons inside one, count for themselves.
        (STEP | TORCHRUN, (3, 4, 1, 2, "one")),
        (STEP | OPEN_MPI, (1, 2, 1, 2, "127.0.0.1")),
        (OPEN_MPI, (1, 2, 1, 2, "127.0.0.1")),
        (HYDRA, (1, 2, 1, 2, "127.0.0.1")),
        (
            {"PMI_RANK": "5", "PMI_SIZE": "8", "PMI_LOCAL_RANK": "1", "PMI_LOCAL_SIZE": "4",
             "MASTER_ADDR": "nid1"},
            (5, 8, 1, 4, "nid1"),
        ),
    ],
)  # fmt: skip
def test_a_group_is_recognised(
    environ: dict[str, str], expected: tuple[int, int, int, int, str]
) -> None:
    assert where(find_place(environ)[0]) == expected


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WORLD_SIZE": "1"},
        {"RANK": "0", "WORLD_SIZE": "1"},
        TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"},  # salloc's shell
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0"},  # sbatch without --ntasks
        STEP | {"SLURM_STEP_ID": "4294967290", "SLURM_PROCID": "0"},  # an interactive step's shell
        STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_NODEID": "0"},
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
    ],
)
def test_who_is_alone_waits_for_nobody(environ: dict[str, str]) -> None:
    assert find_place(environ)[0] is None


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"RANK": "0"}, "`RANK=0` is set without `WORLD_SIZE`"),
        ({"WORLD_SIZE": "8"}, "`WORLD_SIZE=8` is set without `RANK`"),
        (TORCHRUN | {"RANK": "4"}, "`RANK=4` must be less than WORLD_SIZE, which is 4"),
        (TORCHRUN | {"RANK": "one"}, "`RANK=one` must be a whole number of at least 0"),
        (TORCHRUN | {"WORLD_SIZE": "0"}, "`WORLD_SIZE=0` must be a whole number of at least 1"),
        (TORCHRUN | {"LOCAL_RANK": "2"}, "`LOCAL_RANK=2` must be less than LOCAL_WORLD_SIZE"),
        (TORCHRUN | {"MASTER_PORT": "99999"}, "`MASTER_PORT=99999` must be a whole number from 1"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "needs `MASTER_ADDR`"),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "9"}, "`SLURM_PROCID=9` must be less than SLURM_"),
        ({"SLURM_PROCID": "3"}, "`SLURM_PROCID=3` is set without `SLURM_NTASKS`"),
        (STEP | {"SLURM_LOCALID": "4"}, "`SLURM_LOCALID=4` must be less than the tasks of this"),
        (STEP | {"SLURM_STEP_TASKS_PER_NODE": "four"}, "`four` is not a SLURM list of tasks"),
        (STEP | {"SLURM_STEP_NODELIST": "gpu[08-"}, "`gpu[08-` is not a SLURM list of hosts"),
        ({"OMPI_COMM_WORLD_RANK": "1"}, "is set without `OMPI_COMM_WORLD_SIZE`"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
         "nothing says where rank 0 is"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_one_line(environ: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_place(environ)
    assert words in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        ("node1", ["node1"]),
        ("node[01-03,07]", ["node01", "node02", "node03", "node07"]),
        ("a[9-11],b,c-d[1,3]", ["a9", "a10", "a11", "b", "c-d1", "c-d3"]),
        ("r[1-2]n[08-09].hpc", ["r1n08.hpc", "r1n09.hpc", "r2n08.hpc", "r2n09.hpc"]),
    ],
)
def test_hosts_are_spelled_out(listed: str, names: list[str]) -> None:
    assert hosts(listed) == names


@pytest.mark.parametrize("listed", ["", "a[", "a[1", "a]", "a[2-1]", "a[x]", "a,,b", "a[]"])
def test_other_lists_of_hosts_are_refused(listed: str) -> None:
    with pytest.raises(UsageError, match="not a SLURM list of hosts"):
        hosts(listed)


def test_tasks_are_spelled_out() -> None:
    assert counts("2(x3),1") == [2, 2, 2, 1]


def test_ranks_of_a_step_agree_on_a_port_that_other_jobs_do_not_use() -> None:
    ports = set()
    for job in range(100_000, 100_050):
        for step in range(3):
            found = {
                find_place(STEP | {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)}
                           | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": "0"})[0].port
                for rank in (0, 8)
            }  # fmt: skip
            (port,) = found
            assert 15_000 <= port < 30_000
            ports.add(port)
    assert len(ports) == 150


def test_each_process_takes_a_gpu_of_its_own() -> None:
    place, _ = find_place(TORCHRUN)
    assert place is not None and place.gpu(2) == 1
    with pytest.raises(UsageError, match="torchrun starts 2 processes on this machine"):
        place.gpu(1)
    with pytest.raises(UsageError, match="but no GPU is visible"):
        place.gpu(0)
    slurm, _ = find_place(STEP)  # --gpus-per-task=1 shows every task its own as number 0
    assert slurm is not None and (slurm.gpu(1), slurm.gpu(4)) == (0, 1)


def test_reading_the_environment_needs_no_torch() -> None:
    code = "import sys, tatscli.engine.schedulers; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"
