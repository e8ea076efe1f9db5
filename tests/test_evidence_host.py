import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tcsweep.evidence.facts import HostState
from tcsweep.evidence.host import Ticks, foreign_load, own_ticks, ticks, watch


def put(root: Path, **files: str) -> None:
    """Write files, "/" in a name as "__"."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def process(root: Path, pid: int, parent: int, *times: int, name: str = "python") -> str:
    text = f"{pid} ({name}) S {parent} 1 1 0 -1 4194304 1 2 3 4 {' '.join(map(str, times))} 20 0 1 0 99 5 6\n"
    (root / f"proc/{pid}").mkdir(parents=True, exist_ok=True)
    (root / f"proc/{pid}/stat").write_text(text)
    return text


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """4 CPUs, 2.5 of them in the quota of a version 2 group, in use by this process (pid 50), its child and init."""
    put(
        tmp_path,
        proc__stat="cpu  1000 0 500 8000 500 0 0 0 0 0\ncpu0 250 0 125 2000 125 0 0 0 0 0\nintr 5\n",
        proc__loadavg="3.25 2.00 1.00 2/300 4711\n",
        proc__self__status="Name:\tpython\nCpus_allowed:\tf\nCpus_allowed_list:\t0-2,8\nMems_allowed_list:\t0\n",
        proc__self__cgroup="0::/batch/job\n",
    )
    put(tmp_path, proc__self__stat=process(tmp_path, 50, 1, 100, 20, 0, 0))
    process(tmp_path, 51, 50, 30, 0, 0, 0)
    process(tmp_path, 1, 0, 700, 0, 9, 9)
    group = tmp_path / "sys/fs/cgroup/batch/job"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text("250000 100000\n")
    (group / "cpu.stat").write_text("usage_usec 5\nnr_periods 100\nnr_throttled 7\nthrottled_usec 1\n")
    return tmp_path


def test_everything_is_read_from_a_host_that_tells_all(host: Path) -> None:
    state = watch(threads=2, root=host)
    # 400 ticks pass on 4 CPUs: 240 busy, of which this process took 100 and its child 60.
    put(host, proc__stat="cpu  1150 0 590 8140 520 0 0 0 0 0\n")
    process(host, 50, 1, 180, 40, 0, 0)
    process(host, 51, 50, 80, 10, 0, 0)
    (host / "sys/fs/cgroup/batch/job/cpu.stat").write_text("nr_periods 110\nnr_throttled 10\n")
    assert state() == HostState(
        cpu_quota=2.5, affinity=4, threads=2, throttled=3, load_1m=3.25, foreign_load=(240 - 160 - 2) / 400
    )


def test_a_child_that_ended_and_was_waited_for_is_still_our_own(host: Path) -> None:
    state = watch(root=host)
    put(host, proc__stat="cpu  1300 0 500 8100 500 0 0 0 0 0\n")
    process(host, 50, 1, 100, 20, 130, 100)  # the child's 230 ticks, 30 of them from before, are its parent's now
    (host / "proc/51/stat").unlink()
    assert state().foreign_load == (300 - 200 - 2) / 400


def test_time_stolen_by_another_virtual_machine_is_foreign_and_guest_time_is_not_counted_twice(host: Path) -> None:
    before = ticks(host)
    put(host, proc__stat="cpu  1000 0 500 8150 500 0 0 50 999 0\n")
    assert before == Ticks(total=10_000, busy=1_500, own=150)
    assert ticks(host) == Ticks(total=10_200, busy=1_550, own=150)
    assert foreign_load(before, ticks(host)) == 48 / 200


def test_a_process_is_no_descendant_by_a_confusing_name_or_a_ring_of_reused_pids(host: Path) -> None:
    process(host, 60, 61, 1000, 0, 0, 0, name="a) S 50 (b")
    process(host, 61, 60, 1000, 0, 0, 0)
    process(host, 62, 51, 5, 0, 0, 0, name="x y) z")  # a grandchild
    assert own_ticks(host) == 155


@pytest.mark.parametrize(
    ("before", "after", "load"),
    [
        (Ticks(0, 0, 0), Ticks(200, 100, 100), 0.0),
        (Ticks(0, 0, 0), Ticks(200, 100, 110), 0.0),  # ticks are rounded, each process's on its own
        (Ticks(0, 0, 0), Ticks(200, 102, 100), 0.0),  # and each count is of whole ticks
        (Ticks(0, 0, 0), Ticks(200, 200, 0), 0.99),
        (Ticks(0, 0, 0), Ticks(20, 3, 0), 0.05),
        (Ticks(0, 0, 0), Ticks(19, 19, 0), None),
        (None, Ticks(200, 100, 0), None),
        (Ticks(0, 0, 0), None, None),
    ],
)
def test_the_foreign_load_is_what_is_busy_beyond_our_own(
    before: Ticks | None, after: Ticks | None, load: float | None
) -> None:
    assert foreign_load(before, after) == load


def test_a_version_1_group_is_read_too_and_of_groups_in_each_other_the_most_throttled_counts(tmp_path: Path) -> None:
    put(tmp_path, proc__self__cgroup="5:memory:/a\n4:cpu,cpuacct:/a/b\n")
    groups = {tmp_path / "sys/fs/cgroup/cpu,cpuacct" / group: (1, 5) for group in ("a", "a/b")}
    groups[tmp_path / "sys/fs/cgroup/cpu,cpuacct/a"] = (3, 5)
    for folder, (count, _) in groups.items():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.stat").write_text(f"nr_periods 9\nnr_throttled {count}\nthrottled_time 0\n")
    (tmp_path / "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us").write_text("150000\n")
    (tmp_path / "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us").write_text("100000\n")
    state = watch(root=tmp_path)
    for folder, (_, count) in groups.items():
        (folder / "cpu.stat").write_text(f"nr_throttled {count}\n")
    assert state() == HostState(cpu_quota=1.5, throttled=4)


@pytest.mark.parametrize(
    "files",
    [
        pytest.param({}, id="nothing is there"),
        pytest.param(
            {
                "proc__stat": "cpu x y\n",
                "proc__self__stat": "?",
                "proc__loadavg": "",
                "proc__self__status": "Cpus_allowed_list:\t\n",
                "proc__self__cgroup": "nonsense\n",
            },
            id="nonsense is there",
        ),
    ],
)
def test_a_host_that_tells_nothing_gives_absent_figures_and_raises_nothing(
    tmp_path: Path, files: dict[str, str]
) -> None:
    put(tmp_path, **files)
    assert watch(threads=4, root=tmp_path)() == HostState(threads=4)


def test_on_this_machine_what_a_child_does_is_ours_and_the_affinity_is_the_systems() -> None:
    before = own_ticks(Path("/"))
    state = watch()
    spin = (
        "import time; e = time.process_time() + 0.3\nwhile time.process_time() < e: pass\nprint(1, flush=True); input()"
    )
    child = subprocess.Popen([sys.executable, "-c", spin], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        alive = own_ticks(Path("/")) - before
    finally:
        child.communicate(b"\n")
    assert alive >= 0.25 * os.sysconf("SC_CLK_TCK")
    assert own_ticks(Path("/")) - before >= alive
    seen = state()
    assert seen.affinity == len(os.sched_getaffinity(0))
    assert seen.load_1m is not None
    assert seen.foreign_load is None or 0 <= seen.foreign_load <= 1


def test_a_watch_costs_less_than_a_tenth_of_a_second() -> None:
    began = time.process_time()
    watch()()
    assert time.process_time() - began < 0.1


def test_what_moved_to_and_from_swap_meanwhile_is_counted_in_mib(tmp_path: Path) -> None:
    vmstat = tmp_path / "proc/vmstat"
    vmstat.parent.mkdir(parents=True)
    vmstat.write_text("nr_free_pages 7\npswpin 100\npswpout 256\n")
    state = watch(root=tmp_path)
    vmstat.write_text("nr_free_pages 7\npswpin 356\npswpout 512\n")
    assert state().swapped_mib == 512 * os.sysconf("SC_PAGE_SIZE") / 2**20
    vmstat.write_text("nr_free_pages 7\n")
    assert state().swapped_mib is None
