"""The benchmarks that need an RDMA device, in a guest of the lab: all in one boot.

Both programs of a pair run inside the guest, one after the other (benches.lab_guest); the guest
writes each pair to a file that the host reads as it grows, so that nothing is lost with the guest.
"""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benches import registration
from benches.pairs import BenchFailed, Benchmark, Pair
from benches.session import Options, Report
from pinstorm import cache, host
from pinstorm.lab import boot, kernels
from pinstorm.lab.shape import PLAIN, shapes_for
from workloads.spec import Need

SCRIPTS = Path(__file__).parents[1]
# Until the guest's first word, and from one to the next beyond what a pair takes.
_BOOT_DEADLINE_S = 300.0
_GRACE_S = 120.0
_POLL_S = 0.1


def run(chosen: Sequence[Benchmark], options: Options, report: Report) -> None:
    """All of them in one guest; those that it did not get to are told as failed."""
    why = "the guest ended before it"
    try:
        _in_guest("pairs", chosen, options, report)
    except BenchFailed as error:
        why = str(error)
    for benchmark in chosen:
        done = len(report.pairs.get(benchmark.name, ()))
        if done < options.pairs and benchmark.name not in report.failures:
            report.failed(benchmark, why)


def profile(benchmark: Benchmark, options: Options, report: Report) -> str:
    return "".join(_in_guest("profile", [benchmark], options, report))


def _in_guest(
    what: str, chosen: Sequence[Benchmark], options: Options, report: Report
) -> list[str]:
    """What it told goes to the report; the profiles are returned."""
    registration.build("rdma")
    kernel = kernels.resolve(options.kernel, note=report.note)
    (shape,) = shapes_for(kernel, {PLAIN: (Need.RDMA_DEVICE,)})
    parent = cache.cache_dir() / "bench"
    parent.mkdir(parents=True, exist_ok=True)
    share = Path(tempfile.mkdtemp(dir=parent))
    job, events = share / "job.json", share / "events.jsonl"
    job.write_text(
        json.dumps(
            {
                "what": what,
                "names": [benchmark.name for benchmark in chosen],
                "pairs": options.pairs,
                "seconds": options.seconds,
            }
        )
    )
    # As pinstorm.lab.run has it: what site does with .pth files takes 2 s in a guest.
    command = [sys.executable, "-S", "-m", "benches.lab_guest", str(job), str(events)]
    paths = f"{SCRIPTS}:{host.module_path()}"
    environment = {"PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"}
    report.note(f"booting {kernel.release} for {', '.join(one.name for one in chosen)}")
    try:
        with boot.boot(kernel, shape, command, share, share / "console", environment) as guest:
            report.note(f"the guest runs under {guest.accel.name}")
            return _watch(guest, events, chosen, options, report)
    finally:
        shutil.rmtree(share, ignore_errors=True)


def _watch(
    guest: boot.Guest,
    events: Path,
    chosen: Sequence[Benchmark],
    options: Options,
    report: Report,
) -> list[str]:
    by_name = {benchmark.name: benchmark for benchmark in chosen}
    profiles: list[str] = []
    seen_bytes, give_up_s = 0, time.monotonic() + _BOOT_DEADLINE_S
    while True:
        code = guest.poll()
        lines, seen_bytes = _new_lines(events, seen_bytes)
        for line in lines:
            _tell(line, by_name, report, profiles)
            give_up_s = time.monotonic() + 4 * options.seconds + _GRACE_S
        if code is not None:
            break
        if time.monotonic() > give_up_s:
            raise BenchFailed("the guest said nothing any more")
        time.sleep(_POLL_S)
    if code:
        said = guest.output()[1].strip().splitlines() or ["it said nothing"]
        raise BenchFailed(f"the guest's program ended with {code}: {said[-1]}")
    return profiles


def _new_lines(events: Path, seen_bytes: int) -> tuple[list[dict[str, Any]], int]:
    """The whole lines that were not seen yet, and where the next one begins."""
    try:
        with events.open("rb") as file:
            file.seek(seen_bytes)
            data = file.read()
    except FileNotFoundError:
        return [], seen_bytes
    whole = data[: data.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], seen_bytes + len(whole)


def _tell(
    line: Mapping[str, Any],
    by_name: Mapping[str, Benchmark],
    report: Report,
    profiles: list[str],
) -> None:
    """One thing that the guest said."""
    if "note" in line:
        report.note(line["note"])
        return
    benchmark = by_name[line["name"]]
    if "pair" in line:
        report.pair(benchmark, Pair.from_json(line["pair"]))
    elif "failed" in line:
        report.failed(benchmark, line["failed"])
    elif "profile" in line:
        profiles.append(line["profile"])
    else:
        report.begin(benchmark, line["begin"])
