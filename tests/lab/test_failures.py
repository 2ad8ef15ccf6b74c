"""configs/failures.toml on three kernels: the cause that is named is the one that was made, and
what explain says will help does help."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import workloads
from pinstorm import oracle, suite
from pinstorm.lab import run as lab
from pinstorm.lab.kernels import Kernel
from pinstorm.rules.rule import Release
from workloads.spec import Case

# Those that differ most.
KERNELS = ("oldstable", pytest.param("stable", marks=pytest.mark.slow), "backports")

Record = dict[str, Any]

# Whatever else is asked of it, this memory refuses a writable long-term pin.
OF_MEMORY = {
    "dax-shared": "longterm-on-dax",
    "movable-held": "migration-failed",
    "hole": "not-mapped",
    "unmapped": "not-mapped",
    "past-eof": "not-mapped",
    "beyond": "bad-address",
    "prot-none": "protection",
    "prot-read": "protection",
    "secretmem": "secret-memory",
    "io-mapping": "io-mapping",
}
# What Debian's kernels lack before that release: the driver, or its configuration.
LACKING: dict[str, Release] = {"rdma-odp": (6, 15), "udmabuf": (6, 12)}
# Two causes, in the order in which the kernel meets them, and how the case ends with the remedies.
TWO = {
    "rdma-register/dax-shared/rw/64KiB/memlock_bytes=32768/uid=65534": (
        ["memlock-limit", "longterm-on-dax"],
        "EOPNOTSUPP",
    ),
    "rdma-register/anon/rw/64KiB/memlock_bytes=32768/uid=65534/under=rdma-objects-limited": (
        ["cgroup-rdma-limit", "memlock-limit"],
        "ok",
    ),
}
# What a command can do away with while the process stands.
CURABLE = {
    "memlock-limit",
    "capability-missing",
    "pin-budget-of-user",
    "vma-limit",
    "cgroup-rdma-limit",
    "no-memory",
}


def made(case: Case, release: Release) -> str | None:
    """The cause that the case is made of on that kernel; None: nothing refuses."""
    if case.id in TWO:
        return TWO[case.id][0][0]
    if "under" in case.params:
        under = workloads.circumstance_spec(case.params["under"])
        return None if case.workload in under.spares else under.cause
    if "memlock_bytes" in case.params:
        return "memlock-limit"
    if case.workload == "udmabuf":
        return None if case.memory == "memfd" else "kernel-unsupported"
    if case.workload == "rdma-register-odp":
        return "odp-unsupported" if release < (6, 15) else None
    if case.offset_bytes:
        return "misaligned"
    if case.memory.startswith("ext4-") or case.memory == "devdax":
        return of_file(case, release)
    if case.params.get("access") == "ro" and case.memory.startswith("prot-"):
        return "protection" if case.memory == "prot-none" and release >= (6, 2) else None
    return OF_MEMORY.get(case.memory)


def of_file(case: Case, release: Release) -> str | None:
    """Written pages of a shared file: refused by io_uring, and since Linux v6.5 by everybody.

    Linux commit 8ac268436e6d ("mm/gup: disallow FOLL_LONGTERM GUP-nonfast writing to file-backed
    mappings"). Before, io_uring refused private files too: io_uring/rsrc.c of v6.1,
    io_pin_pages().
    """
    late, uring = release >= (6, 5), case.workload == "io-uring-register"
    if case.memory != "ext4-shared":
        return "kernel-unsupported" if uring and not late else None
    if case.params.get("access") == "ro":
        return None
    return "longterm-on-file" if late or uring else None


@pytest.fixture(scope="module")
def confusion(request: pytest.FixtureRequest) -> Iterator[Counter[tuple[str, str]]]:
    """(made, named) -> how often, over the kernels that have run; printed at the end."""
    counted: Counter[tuple[str, str]] = Counter()
    yield counted
    capture = request.config.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        print(table(counted))


def table(counted: Counter[tuple[str, str]]) -> str:
    """A line for each cause that was made, with what it was named and how often."""
    lines = ["", f"{'made':20} {'cases':>5}  named"]
    for cause in sorted({cause for cause, _ in counted}):
        row = {name: count for (one, name), count in counted.items() if one == cause}
        said = ", ".join(f"{name} {count}" for name, count in sorted(row.items()))
        lines.append(f"{cause:20} {sum(row.values()):5}  {said}")
    return "\n".join(lines)


@pytest.mark.parametrize("name", KERNELS)
def test_the_cause_named_is_the_cause_made(
    name: str,
    kernel_named: Callable[[str], Kernel],
    lab_tmp: Path,
    confusion: Counter[tuple[str, str]],
) -> None:
    loaded = suite.load("failures")
    plan, _ = suite.plan(loaded)
    done = lab.run_kernel(loaded, plan, kernel_named(name), lab_tmp, None, lambda line: None, print)
    records = {record["case"]: record for record in done.records}
    assert len(records) == len(plan)
    others = [r for r in done.records if r["verdict"] not in ("pass", "skip")]
    assert not others, [(r["case"], r["verdict"], r["reason"], r.get("expected")) for r in others]
    release = oracle.parse_kernel(done.records[0]["kernel"]).release
    skipped = {r["reason"] for r in done.records if r["verdict"] == "skip"}
    assert skipped == {need for need, since in LACKING.items() if release < since}

    wrong = []
    for planned in plan:
        record = records[planned.case.id]
        if record["verdict"] == "skip":
            continue
        cause = made(planned.case, release)
        confusion[str(cause), str(record["cause"])] += 1
        if record["cause"] != cause or (record["outcome"] == "ok") != (cause is None):
            wrong.append((record["case"], cause, record["cause"], record["explanation"]))
    assert not wrong

    for record in done.records:
        check_remedy(record, records)


def check_remedy(record: Record, records: dict[str, Record]) -> None:
    """Commands that were applied helped, and the case to run instead runs."""
    retries, case = record.get("retries") or [], record["case"]
    if record["cause"] in CURABLE:
        assert retries, (case, record["explanation"])
    if retries:
        causes, end = TWO.get(case, ([record["cause"]], "ok"))
        assert all(retry["applied"]["exit"] == 0 for retry in retries), retries
        cured = [retry["cause"] for retry in retries]
        assert cured == (causes if end == "ok" else causes[:-1]), (case, retries)
        assert retries[-1]["outcome"] == end, (case, retries)
    instead = (record.get("explanation") or {}).get("instead")
    if instead is not None:
        assert records[instead]["outcome"] == "ok", (case, instead, records[instead]["verdict"])


@pytest.mark.slow  # half a million regions
def test_the_device_has_no_more_regions(backports: Kernel, lab_tmp: Path) -> None:
    loaded = suite.load("max-mr")
    plan, _ = suite.plan(loaded)
    done = lab.run_kernel(loaded, plan, backports, lab_tmp, None, lambda line: None, print)
    (record,) = done.records
    assert record["verdict"] == "pass", record["expected"]
    assert record["outcome"] == "EINVAL"
    assert record["cause"] == "device-limit", record["explanation"]
