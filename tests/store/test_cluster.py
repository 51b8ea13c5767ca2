"""Jobs on a Ray cluster: the contract of the local pool, and what is lost when a node is."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

import pytest
from safetensors.numpy import load_file

from tatscli.console import Reporter
from tatscli.errors import DataError, UsageError
from tatscli.store import prepare as pipeline
from tatscli.store.cluster import Lost, connected, run_on_ray
from tatscli.store.convert import convert_together
from tatscli.store.pool import Crash, Timeout, run_in_order
from tatscli.store.schema import Settings, read_rows
from tatscli.store.sources import find_sources
from tests.clips import pan, render
from tests.processes import hear_interrupts

ROOT = Path(__file__).resolve().parents[2]
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra `ray`")
MEMORY = 100 << 20  # Ray's store of results on each node


def work(jobs):
    return map(do, jobs)


def do(job):
    kind, value = job
    if kind == "sleep":
        time.sleep(value)
    elif kind == "kill":
        os.kill(os.getpid(), value)
    elif kind == "kill ray":
        with open(value, "a") as attempts:
            attempts.write("x")
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    elif kind == "touch and hang":
        with open(value, "a") as attempts:
            attempts.write("x")
        time.sleep(60)
    elif kind == "pid":
        return os.getpid()
    elif kind == "list":
        return sorted(os.listdir(value))
    return value


def traced_convert(jobs):
    """Convert, and leave a trace of each attempt; the third video on the victim never ends."""
    traces = Path(os.environ["TEST_TRACES"])
    victim = (traces / "victim").read_text()
    here = os.environ["RAY_RAYLET_PID"]
    with (traces / jobs[0].path.name).open("a") as trace:
        trace.write(f"{here}\n")
    results = list(convert_together(jobs))
    if here == victim:
        with (traces / "on victim").open("a") as count:
            count.write("x")
        if count_of(traces) == 3:
            time.sleep(600)
    return results


def count_of(traces):
    path = traces / "on victim"
    return len(path.read_text()) if path.exists() else 0


def ray_processes():
    """Command lines of what Ray runs on this machine."""
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    names = ("raylet", "gcs_server", "ray::", "/ray/_private/", "/ray/dashboard/")
    return [line for line in listed.stdout.splitlines() if any(name in line for name in names)]


def await_the_end_of_ray(but):
    """Wait until nothing of Ray is left that was not there before."""
    deadline = time.monotonic() + 300
    while set(ray_processes()) - but and time.monotonic() < deadline:
        time.sleep(0.2)
    assert set(ray_processes()) - but == set()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """A cluster whose head has one CPU; tests may add nodes."""
    with suppress(UsageError), connected("127.0.0.1:9"):
        pass  # so that Ray is imported as `tats` does it
    from ray.cluster_utils import Cluster

    before = set(ray_processes())
    traces = tmp_path_factory.mktemp("traces")
    os.environ["TEST_TRACES"] = str(traces)
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)  # workers find this file
    head = {"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()
    del os.environ["TEST_TRACES"], os.environ["PYTHONPATH"]
    if inherited is not None:
        os.environ["PYTHONPATH"] = inherited
    await_the_end_of_ray(but=before)


@pytest.fixture(scope="module")
def cluster(nodes):
    """Its address, with this process connected, so that the tests do not wait for that."""
    with connected(nodes.address):
        yield nodes.address


def singly(jobs):
    """Groups of one job each."""
    return ([job] for job in jobs)


def run(jobs, *, ahead=8, **options):
    return [result for _, result in run_on_ray(work, singly(jobs), ahead=ahead, **options)]


def test_without_ray_the_hint_is_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="needs the package Ray") as caught:
        run([("echo", 1)])
    assert caught.value.hint == 'pip install "tats[ray]"'


@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1:9", "nonsense", "auto"])
def test_an_address_without_a_cluster_is_named_at_once(address, monkeypatch):
    if address == "auto":
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(UsageError, match=f"Ray cluster at `{address}`"):
        run([("echo", 1)], address=address)
    assert time.monotonic() - start < 120


def test_what_ray_gave_up_is_a_crash():
    lost = Lost(reason="its node was lost")
    assert isinstance(lost, Crash)
    assert str(lost) == "crashed: its node was lost"


@needs_ray
@pytest.mark.slow
def test_bad_jobs_cost_only_themselves_and_keep_their_place(cluster, tmp_path):
    attempts = tmp_path / "attempts"
    jobs = [
        ("sleep", 0.5),
        ("kill", signal.SIGSEGV),
        ("echo", 2),
        ("touch and hang", attempts),
        ("kill", signal.SIGKILL),
        ("echo", 5),
    ]
    found = list(run_on_ray(work, singly(jobs), ahead=8, timeout=5, address=cluster))
    assert [job for job, _ in found] == jobs
    assert [result for _, result in found] == [
        0.5,
        Crash(-signal.SIGSEGV),
        2,
        Timeout(5),
        Crash(-signal.SIGKILL),
        5,
    ]
    assert attempts.read_text() == "x"  # a video that is too slow is not tried again


@needs_ray
@pytest.mark.slow
def test_a_bad_job_costs_its_group_nothing(cluster, tmp_path):
    attempts = tmp_path / "attempts"
    groups = [
        [("echo", 1), ("kill", signal.SIGSEGV), ("echo", 2)],
        [("echo", 3), ("kill ray", attempts)],
    ]
    found = [result for _, result in run_on_ray(work, groups, address=cluster)]
    assert found[:4] == [1, Crash(-signal.SIGSEGV), 2, 3]
    assert str(found[4]) == "crashed: its Ray worker died in each of 4 attempts"


@needs_ray
@pytest.mark.slow
def test_time_in_the_queue_does_not_count(cluster):
    jobs = [("sleep", 1.0), ("sleep", 1.1), ("sleep", 1.2)]
    assert run(jobs, timeout=3, address=cluster) == [1.0, 1.1, 1.2]


@needs_ray
@pytest.mark.slow
def test_a_worker_of_ray_that_dies_is_replaced_three_times(cluster, tmp_path):
    attempts = tmp_path / "attempts"
    found = run([("kill ray", attempts), ("echo", 1)], address=cluster)
    assert attempts.read_text() == "xxxx"
    assert str(found[0]) == "crashed: its Ray worker died in each of 4 attempts"
    assert isinstance(found[0], Crash) and found[1] == 1


@needs_ray
@pytest.mark.slow
def test_jobs_are_not_started_far_ahead(cluster):
    taken = []

    def jobs():
        for index in range(20):
            taken.append(index)
            yield ("echo", index)

    for index, (_, result) in enumerate(run_on_ray(work, singly(jobs()), ahead=3, address=cluster)):
        assert result == index
        assert len(taken) <= index + 1 + 3


@needs_ray
@pytest.mark.slow
def test_leaving_ends_what_runs(cluster, tmp_path):
    attempts = tmp_path / "attempts"
    jobs = [("pid", 0), ("touch and hang", attempts), ("echo", 1)]
    with closing(run_on_ray(work, singly(jobs), ahead=3, address=cluster)) as running:
        _, pid = next(running)
        while not attempts.exists():
            time.sleep(0.05)
    deadline = time.monotonic() + 300
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{pid}")
    assert run([("echo", 2)], address=cluster) == [2]


@needs_ray
@pytest.mark.slow
def test_a_node_that_does_not_see_the_folders_stops_the_run(cluster, tmp_path):
    assert run([("echo", 1)], address=cluster, shared=[tmp_path]) == [1]
    with pytest.raises(DataError, match="does not see `/no/such/folder`"):
        run([("echo", 1)], address=cluster, shared=[Path("/no/such/folder")])


@needs_ray
@pytest.mark.slow
def test_relative_paths_mean_the_same_on_a_node(cluster, tmp_path, monkeypatch):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "one.mp4").touch()
    monkeypatch.chdir(tmp_path)
    found = run([("list", "videos")], address=cluster, shared=[Path("videos")])
    assert found == [["one.mp4"]]


@needs_ray
@pytest.mark.slow
def test_a_node_that_dies_costs_nothing(nodes, cluster, tmp_path, capsys):
    for index in range(40):
        clip = pan((index % 5, 1), frames=6 + index % 4, height=64, width=96, seed=index)
        render(tmp_path / "videos" / f"clip{index:02}.mp4", clip)
    (tmp_path / "videos" / "clip17.mp4").write_bytes(b"no video")
    sources = find_sources(tmp_path / "videos")
    victim = nodes.add_node(num_cpus=1, object_store_memory=MEMORY)
    traces = Path(os.environ["TEST_TRACES"])
    (raylet,) = victim.all_processes["raylet"]
    (traces / "victim").write_text(str(raylet.process.pid))

    def remove_the_victim():
        while count_of(traces) < 3:
            time.sleep(0.05)
        nodes.remove_node(victim, allow_graceful=False)

    removal = Thread(target=remove_the_victim, daemon=True)
    removal.start()
    run = partial(run_on_ray, ahead=16, address=cluster, shared=[tmp_path])
    prepare(sources, tmp_path / "ray", lambda _, jobs: run(traced_convert, jobs))
    removal.join()
    attempts = [path.read_text().split() for path in traces.glob("clip*")]
    assert sorted(map(len, attempts)) == [1] * 39 + [2]
    prepare(sources, tmp_path / "local", partial(run_in_order, workers=1, ahead=16))
    assert same_store(tmp_path / "ray", tmp_path / "local")
    assert capsys.readouterr().out == ""
    rows = read_rows(tmp_path / "ray" / "manifest.jsonl")
    assert [row.status for row in rows].count("ok") == 39 and len(rows) == 40
    assert {path.name[:6] for path in (tmp_path / "ray").glob(".*")} <= {".lock"}


def prepare(sources, out, run):
    return pipeline.prepare(
        sources,
        out,
        Settings(short_side=48),
        run=run,
        reporter=Reporter(quiet=True),
        shard_bytes=100_000,
    )


def same_store(one, other):
    """Compare manifests row by row and shards tensor by tensor."""
    assert read_rows(one / "manifest.jsonl") == read_rows(other / "manifest.jsonl")
    shards = sorted(path.name for path in (one / "shards").iterdir())
    assert shards == sorted(path.name for path in (other / "shards").iterdir()) and len(shards) > 1
    for name in shards:
        left, right = load_file(one / "shards" / name), load_file(other / "shards" / name)
        assert left.keys() == right.keys()
        for key in left:
            assert left[key].dtype == right[key].dtype and (left[key] == right[key]).all(), key
    return True


DRIVER = """
import sys
from tatscli.store.cluster import run_on_ray
from tests.store.test_cluster import singly, work
jobs = [("echo", 1), ("sleep", 60), ("sleep", 60)]
for _, result in run_on_ray(work, singly(jobs), ahead=3, workers=2):
    print("result", result, flush=True)
"""


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, -2), (signal.SIGTERM, 143)])
def test_a_cluster_of_our_own_ends_with_us(number, code):
    before = set(ray_processes())
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_interrupts,
    )
    assert driver.stdout is not None
    assert driver.stdout.readline() == "result 1\n"  # and no banner of Ray
    if number == signal.SIGINT:  # as from a terminal
        os.killpg(driver.pid, number)
    else:
        driver.send_signal(number)
    stdout, stderr = driver.communicate(timeout=60)
    assert stdout == ""
    assert driver.returncode == code
    assert "KeyboardInterrupt" in stderr if number == signal.SIGINT else stderr == ""
    await_the_end_of_ray(but=before)
