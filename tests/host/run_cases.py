"""Runs a list of cases as ``pinstorm run`` does, faulty ones among them: for tests that kill it.

``python run_cases.py '{"cases": […], "out": …, "resume": …, "scratch": …}'``: a suite's TOML
cannot name workloads outside the registry.
"""

import json
import sys
import time
from pathlib import Path

import workloads
from pinstorm import session, suite
from pinstorm.errors import PinstormError
from workloads.spec import Case, Planned

LOCKED = "another pinstorm run"
TEXT = """
[run]
name = "faulty"
seed = {seed}
[[matrix]]
workload = "vmsplice"
memory = "anon"
size = "4KiB"
"""


def main() -> int:
    asked = json.loads(sys.argv[1])
    workloads.include("faulty_workloads")
    loaded = suite.parse(TEXT.format(seed=asked.get("seed", 1)), "faulty.toml")
    cases = [Case.from_json(case) for case in asked["cases"]]
    plan = [Planned(seq, 0, case) for seq, case in enumerate(cases)]
    options = session.Options(
        out=Path(asked["out"]) if "out" in asked else None,
        resume=Path(asked["resume"]) if "resume" in asked else None,
        scratch=(Path(asked["scratch"]),) if "scratch" in asked else (),
        setup=asked.get("setup", False),
        include=("faulty_workloads",),
    )
    deadline = time.monotonic() + 120  # as the tests that start us
    while True:
        try:
            outcome = session.run(loaded, plan, options, lambda line: None)
            break
        except KeyboardInterrupt:
            return 130
        except PinstormError as error:
            if LOCKED in str(error) and time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            print(f"pinstorm: {error}", file=sys.stderr)
            return int(error.exit_code)
    for note in outcome.notes:
        print(note)
    return 130 if outcome.interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
