"""Bundles on disk made of times and verdicts, for tests of what compares them."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pinstorm import bundle

KERNEL = "7.2.11"
KIB = 1 << 10

Change = Callable[[dict[str, Any]], None]


def case_record(workload: str, memory: str, size: int, **more: Any) -> dict[str, Any]:
    """What a case's records have in common."""
    return {
        "schema": 1,
        "accel": "host",
        "kernel": KERNEL,
        "case": f"{workload}/{memory}/{size // KIB}KiB",
        "workload": workload,
        "memory": memory,
        "params": {"size_bytes": size},
        "verdict": "pass",
        "reason": None,
        "outcome": "ok",
        "expected": {"rule": "made", "outcomes": ["ok"]},
        "uid": 0,
        **more,
    }


def pins(acquired: int = 16, held: int = 16, leaked: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "exact": True,
        "bound": 0,
        "noise": 0,
        "recent": 0,
        "acquire": {"acquired": acquired, "released": 0},
        "held": held,
        "leaked": leaked,
        **more,
    }


def cases(count: int = 12) -> list[dict[str, Any]]:
    return [case_record("vmsplice", "anon", 4 * KIB * (1 + n), pins=pins()) for n in range(count)]


def write(
    path: Path,
    records: Sequence[Mapping[str, Any]],
    *,
    manifest: Mapping[str, Any] | None = None,
) -> Path:
    """A finished bundle of these records."""
    path.mkdir(parents=True)
    about = {
        "accel": "host",
        "kernel": {"release": KERNEL, "version": "#1"},
        "suite": {"name": "made", "rounds": 1},
        **(manifest or {}),
    }
    bundle.write_manifest(path, about)
    lines = [json.dumps({"seq": seq, "round": 0, **record}) for seq, record in enumerate(records)]
    (path / bundle.JOURNAL).write_text("".join(f"{line}\n" for line in lines))
    bundle.finish(path)
    return path


def timed(
    about: Sequence[Mapping[str, Any]],
    rounds: int,
    *,
    seed: int,
    factors: Mapping[str, float] | None = None,
    cycles: int = 20,
    spread: float = 0.02,
) -> list[dict[str, Any]]:
    """Each case in each round, with times that vary; ``factors``: case -> how much slower it is."""
    random = np.random.default_rng(seed)
    found = []
    for number in range(rounds):
        for place, one in enumerate(about):
            level = 10_000 * (1 + place) * math.exp(random.normal(0, spread))
            level *= (factors or {}).get(one["case"], 1.0)
            times = [max(1, int(level * math.exp(e))) for e in random.normal(0, 0.01, cycles)]
            found.append({**one, "round": number, "timing_ns": {"first": 1, "acquire": times}})
    return found
