"""Runs in a guest: the benchmarks that a job names, told line by line to a file on the host.

Started by benches.lab: ``python -m benches.lab_guest JOB EVENTS``.
"""

import json
import sys
from pathlib import Path
from typing import Any, TextIO

from benches import registration
from benches.pairs import BenchFailed, Benchmark, Pair
from benches.session import Options, Report, run_pairs
from pinstorm.lab import setup
from workloads import verbs
from workloads.spec import Surroundings


class Teller(Report):
    """A report whose other end is on the host."""

    def __init__(self, events: TextIO):
        super().__init__()
        self._events = events

    def note(self, text: str) -> None:
        self.tell(note=text)

    def begin(self, benchmark: Benchmark, pairs: int) -> None:
        self.tell(name=benchmark.name, begin=pairs)

    def pair(self, benchmark: Benchmark, pair: Pair) -> None:
        self.tell(name=benchmark.name, pair=pair.to_json())

    def failed(self, benchmark: Benchmark, why: str) -> None:
        self.tell(name=benchmark.name, failed=why)

    def tell(self, **line: Any) -> None:
        self._events.write(json.dumps(line) + "\n")
        self._events.flush()


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    given = setup.set_up(["rxe"])
    if given.device is None:
        sys.exit(f"no RDMA device: {given.results['rxe'].detail}")
    verbs.load_providers()
    around = Surroundings(device=given.device, device_can=verbs.capabilities(given.device))
    options = Options(
        job["pairs"], job["seconds"], Path("/nonexistent"), file_bytes=0, kernel="the running one"
    )
    with open(sys.argv[2], "w", encoding="utf-8") as events:
        teller = Teller(events)
        for benchmark in registration.BENCHMARKS:
            if benchmark.name not in job["names"]:
                continue
            beside = registration.Beside(benchmark, options, around)
            if job["what"] == "pairs":
                run_pairs(beside, options.pairs, teller)
                continue
            try:
                text = registration.profile_of(beside, options.seconds)
                teller.tell(name=benchmark.name, profile=text)
            except BenchFailed as error:
                teller.failed(benchmark, str(error))


if __name__ == "__main__":
    main()
