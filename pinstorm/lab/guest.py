"""The guest's side of ``pinstorm lab run``: set the guest up, then run the cases of one boot.

The host has expanded the suite and hands over a job, a JSON file in the shared directory. This
writes the journal while it lives, and beside it a report on the boot. Started as
``python -m pinstorm.lab.guest JOB``; nothing here may be slow to import.
"""

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import workloads
from pinstorm import needs
from pinstorm.journal import Journal
from pinstorm.lab import setup
from pinstorm.runner import Identity, Runner
from pinstorm.spawn import Zygote
from pinstorm.witness import witness
from telemetry import clock, fingerprint, kmsg
from telemetry.vmstat import Counters
from workloads.spec import Need, Planned

# The needs that are not met when a piece of the set-up failed.
NEEDS_OF_PIECE = {
    "rxe": (Need.RDMA_DEVICE, Need.RDMA_ODP),
    "loopback": (Need.MSG_ZEROCOPY,),
    "scratch-ext4": (Need.SCRATCH_EXT4, Need.TARGET_DIO),
    "scratch-xfs": (Need.SCRATCH_XFS,),
    "scratch-btrfs": (Need.SCRATCH_BTRFS,),
    "scratch-tmpfs": (Need.SCRATCH_TMPFS,),
    "pmem-dax": (Need.SCRATCH_DAX,),
    "devdax": (Need.DEVDAX,),
    "hugepages": (Need.HUGETLB_2M,),
    "hugepages-1g": (Need.HUGETLB_1G,),
    "movable": (Need.MOVABLE,),
    "numa": (Need.NUMA,),
    "ksm": (Need.KSM,),
    "vfio": (Need.VFIO,),
    "v4l2": (Need.V4L2,),
    "gup-test": (Need.GUP_TEST,),
}


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    try:
        _run(job)
    except Exception as error:
        # What a guest prints just before it goes down can be lost with it; a file is not.
        _write(Path(job["failed"]), {"error": f"{type(error).__name__}: {error}"})
        raise


def _run(job: dict[str, Any]) -> None:
    for module_name in job["include"]:
        workloads.include(module_name)
    zygote = Zygote(job["include"])  # imports while the set-up runs
    provided = setup.set_up(job["pieces"])
    machine = fingerprint.collect()
    zygote.warm_up()
    log = kmsg.KernelLog.open()
    survey = needs.survey(
        device=provided.device,
        scratch=[Path(directory) for directory in dict.fromkeys(provided.scratch.values())],
        capabilities=zygote.capabilities,
        pyverbs_error=zygote.pyverbs_error,
        log=log,
        nodes=provided.nodes,
        setup_failures=_failures(provided),
        may_change=True,
        lab=True,
        destructive=True,
    )
    identity = Identity(
        run=job["run"],
        boot=clock.boot_id() or "",
        accel=job["accel"],
        host=job["host"],
        kernel=platform.release(),
        kernel_version=platform.version(),
        device=survey.around.device,
        lab=True,
    )
    lines = Journal.append_to(job["journal"])
    with (
        Counters() as counters,
        witness(job["trace"], stays_armed=job["accel"] == "tcg") as seen,
    ):
        runner = Runner(identity, survey, counters, zygote, log, lambda line: None, seen)
        report = {**_report(provided, runner), "fingerprint": machine}
        _write(Path(job["report"]), report)
        runner.run([Planned.from_json(planned) for planned in job["plan"]], lines)
        _write(Path(job["report"]), {**report, "clock": [*report["clock"], clock.pair()]})
        runner.close()


def _failures(provided: setup.Lab) -> dict[Need, str]:
    return {
        need: f"{piece}: {result.detail}"
        for piece, result in provided.results.items()
        if not result.ok
        for need in NEEDS_OF_PIECE.get(piece, ())
    }


def _report(provided: setup.Lab, runner: Runner) -> dict[str, Any]:
    """What the manifest says of this boot."""
    return {
        "boot": runner.identity.boot,
        "identity": runner.identity.fields(),
        "setup": provided.to_json(),
        "clock": [clock.pair()],
        "selftest": runner.self_test(),
        "trace": runner.witness.report(),
        "device": runner.survey.around.device,
        "unmet": [entry.to_json() for entry in runner.survey.lacking.values()],
        "containment": runner.containment_kind,
    }


def _write(path: Path, value: dict[str, Any]) -> None:
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(value))
    os.replace(beside, path)


if __name__ == "__main__":
    main()
