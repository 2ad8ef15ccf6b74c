"""Antagonists that disturb nobody but themselves: each has its effect, and leaves nothing.

What disturbs the whole machine, or wants NUMA or CMA, is shown in the lab: test_antagonists.py.
"""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from lone_antagonist import DEADLINE_S, counters, job, rise, run, running

from pinstorm.needs import scratch
from telemetry import thp
from workloads.antagonists import ANTAGONISTS
from workloads.spec import MIB, PAGE_BYTES, Need, Surroundings

SIZE = 4 * MIB
PAGES = SIZE // PAGE_BYTES
ACTS = 6
HUGE = 2 * MIB
# What happens to the machine's counters besides is added to a figure, never taken from it.
OWN = [spec.name for spec in ANTAGONISTS if not spec.whole_machine and Need.NUMA not in spec.needs]

NeedFixture = Callable[[bool, str], None]


@pytest.fixture
def around(tmp_path: Path) -> Surroundings:
    return Surroundings(scratch=scratch.directories([tmp_path]))


def require(name: str, around: Surroundings, need: NeedFixture) -> None:
    if name == "reclaim":
        need("target" in around.scratch, "the temporary directory has no page cache of a disk")
    if name == "thp-split":
        need(thp.read().on_request, "transparent huge pages are switched off")


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.001)


@pytest.mark.parametrize("name", OWN)
def test_it_does_what_its_job_counts_and_leaves_nothing(
    name: str, around: Surroundings, need: NeedFixture
) -> None:
    require(name, around, need)
    before = psutil.Process().children()
    done = run(job(name, SIZE, count=ACTS), around)
    assert (done["operations"], done["latencies"], done["more"]) == (ACTS, ACTS, False)
    assert (done["errors"], done["children"], done["refused"]) == ([], 0, {})
    assert done["bytes"] > 0
    assert psutil.Process().children() == before


@pytest.mark.parametrize("name", OWN)
def test_it_ends_when_it_is_told_to_and_not_with_its_interval(
    name: str, around: Surroundings, need: NeedFixture
) -> None:
    """The interval is an hour; at this rate the first act would come after a quarter of one."""
    require(name, around, need)
    with running(job(name, SIZE, rate_ops_s=0.001), around) as antagonist:
        antagonist.stop()
        done = antagonist.done()
    assert (done["operations"], done["more"], done["errors"]) == (0, True, [])


@pytest.mark.parametrize("name", ["dontneed-churn", "munmap-churn"])
def test_churn_faults_every_page_in_again(name: str) -> None:
    done = run(job(name, SIZE, count=ACTS))
    assert done["bytes"] == ACTS * SIZE
    assert done["minor_faults"] >= ACTS * PAGES


@pytest.mark.parametrize("name", ["dontneed-churn", "munmap-churn"])
def test_churn_holds_no_more_than_its_size(name: str) -> None:
    """What it does not give back would add up to 64 times as much."""
    few, many = (run(job(name, SIZE, count=count))["peak_bytes"] for count in (1, 64))
    assert abs(many - few) < SIZE


def test_forked_children_copy_their_share_and_are_few(around: Surroundings) -> None:
    alive = 3
    one = job("fork-storm", SIZE, params={"alive": alive})
    most = 0
    with running(one, around) as antagonist:
        worker = psutil.Process(antagonist.pid)
        wait_until(lambda: len(worker.children()) >= alive, "it has fewer children than it may")
        for _ in range(30):
            most = max(most, len(worker.children()))
        antagonist.stop()
        done = antagonist.done()
    assert 0 < most <= alive
    assert (done["children"], done["errors"]) == (0, [])
    assert done["operations"] > 0
    # the last ones were told to stop on the way
    copied = (done["operations"] - alive) * (PAGES // alive)
    assert done["childrens_minor_faults"] >= copied > 0


def test_forked_children_die_with_their_parent() -> None:
    """The parent is killed without a word, and the child stands still: it cannot end by itself."""
    with running(job("fork-storm", 16 * MIB, params={"alive": 1})) as antagonist:
        child = stopped_child(psutil.Process(antagonist.pid))
        antagonist.kill()
        try:
            wait_until(lambda: gone(child), f"{child} outlives its parent")
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


def stopped_child(parent: psutil.Process) -> psutil.Process:
    """A child that was stopped before it could end, and after it asked to die with its parent."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        for child in parent.children():
            # A moment later it has written to some of its memory.
            with contextlib.suppress(psutil.NoSuchProcess):
                wait_until(lambda child=child: written_bytes(child) > MIB, "it writes nothing")
                child.suspend()
                wait_until(lambda child=child: gone(child) or halted(child), "it does not stop")
                if halted(child):
                    return child
    raise AssertionError("no child could be stopped")


def written_bytes(process: psutil.Process) -> int:
    """What it has for itself; NoSuchProcess, also of a zombie."""
    if gone(process):
        raise psutil.NoSuchProcess(process.pid)
    return int(process.memory_full_info().uss)


def halted(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False


def gone(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize(
    ("how", "counted"),
    [
        ("madv-free", "thp_split_page"),
        ("madv-dontneed", "thp_deferred_split_page"),
        ("munmap", "thp_deferred_split_page"),
        ("mprotect", "thp_split_pmd"),
    ],
)
def test_huge_pages_are_split_and_made_huge_again(
    how: str, counted: str, around: Surroundings, need: NeedFixture
) -> None:
    """Every act splits one; each of the two is split several times, so it was huge in between."""
    require("thp-split", around, need)
    before = counters()
    done = run(job("thp-split", 2 * HUGE, count=ACTS, params={"how": how}), around)
    rose = rise(before, counters())
    assert done["operations"] == ACTS
    assert rose.get(counted, 0) >= ACTS
    assert rose.get("thp_split_pmd", 0) >= ACTS
    huge = rose.get("thp_collapse_alloc", 0) + rose.get("thp_fault_alloc", 0)
    assert huge >= 2 + ACTS


def test_page_cache_is_given_up_and_read_in_again(around: Surroundings, need: NeedFixture) -> None:
    """A fault that has to read is a major one: after the first act there are more."""
    require("reclaim", around, need)
    before = counters()
    once = run(job("reclaim", SIZE, count=1), around)
    often = run(job("reclaim", SIZE, count=ACTS), around)
    rose = rise(before, counters())
    assert often["major_faults"] >= once["major_faults"] + ACTS - 1
    assert often["bytes"] >= ACTS * SIZE // 2
    assert rose.get("workingset_refault_file", 0) * PAGE_BYTES >= often["bytes"] - 2 * SIZE
    assert os.listdir(around.scratch["target"]) == []


def test_it_is_the_first_that_the_kernel_would_kill() -> None:
    with running(job("dontneed-churn", SIZE)) as antagonist:
        score = Path(f"/proc/{antagonist.pid}/oom_score_adj").read_text()
    assert int(score) == 1000
