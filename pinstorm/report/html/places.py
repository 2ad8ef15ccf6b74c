"""What ran where, on what machine, and how it is run again: what the manifests say.

Anybody may have edited a manifest: what is not of the form that a run writes is left out.
"""

import json
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import polars as pl

from pinstorm.frames import Frames
from pinstorm.manifest_form import part
from pinstorm.report.html.words import MISSING, us

Command = Callable[[Mapping[str, Any]], str]

MOST_BUNDLES: Final = 12
MOST_MANIFESTS: Final = 8
_MOST_SUITES: Final = 8
_FEW_MACHINES: Final = 4
_YEAR_3000_NS: Final = 32_503_680_000 * 10**9
_MANIFEST_BYTES: Final = 60_000
_SUITE_BYTES: Final = 100_000


# Of a bundle, or of several that were run alike.
HEAD: Final = (
    *("kernel", "run in", "host", "device", "suite", "seed", "rounds"),
    *("runs", "began (UTC)", "bundle"),
)


@dataclass(frozen=True, slots=True)
class Place:
    """A bundle, or several that were run alike: the cells of ``what ran where``."""

    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    bundle: str
    path: str
    lines: tuple[tuple[str, str], ...]
    text: str


@dataclass(frozen=True, slots=True)
class Again:
    """How a suite is run again: the commands, and its text."""

    suite: str
    commands: tuple[str, ...]
    sha256: str
    origin: str
    text: str


def places(frames: "Frames[pl.LazyFrame]", of_bundles: pl.DataFrame) -> list[Place]:
    """A line for each bundle; of very many one for those that were run alike."""
    counts: dict[str, Counter[str]] = {}
    for bundle, verdict, runs in of_bundles.iter_rows():
        counts.setdefault(bundle, Counter())[verdict] += runs
    alike: dict[tuple[str, ...], list[str]] = {}
    for bundle, manifest in frames.manifests.items():
        key = _where(manifest)
        if len(frames.manifests) <= MOST_BUNDLES:
            key = (*key, bundle)
        alike.setdefault(key, []).append(bundle)
    told = []
    for key, bundles in alike.items():
        total: Counter[str] = sum((counts.get(b, Counter()) for b in bundles), Counter())
        runs = ", ".join(f"{count:,} {verdict}" for verdict, count in total.most_common()) or "none"
        began = sorted(filter(None, (_began(frames.manifests[b]) for b in bundles)))
        which = bundles[0] if len(bundles) == 1 else f"{len(bundles):,} bundles"
        told.append(Place((*key[:7], runs, began[0] if began else MISSING, which)))
    return told


def _where(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Kernel, run in, host, device, suite, seed, rounds."""
    kernel = part(manifest, "kernel")
    lab, suite = part(manifest, "lab"), suite_of(manifest)
    identity = part(manifest, "identity")
    accel = manifest.get("accel")
    ways = {"host": "this host", "kvm": "lab, KVM", "tcg": "lab, emulated (TCG)"}
    only = f", --only {manifest['only']}" if manifest.get("only") else ""
    found = (
        kernel.get("release") or identity.get("kernel"),
        ways.get(str(accel), accel),
        lab.get("host") or identity.get("host") or manifest.get("hostname"),
        _device(manifest),
        f"{suite.get('name') or MISSING}{only}",
        suite.get("seed"),
        suite.get("rounds"),
    )
    return tuple(MISSING if value is None else str(value) for value in found)


def pooled(frames: "Frames[pl.LazyFrame]") -> list[str]:
    """A sentence for each kernel whose figures are of several machines."""
    machines: dict[tuple[str, str], dict[str, None]] = {}
    for manifest in frames.manifests.values():
        kernel, way, host, device = _where(manifest)[:4]
        which = host if device == MISSING else f"{host} with {device}"
        machines.setdefault((kernel, way), {})[which] = None
    return [
        f"{kernel} was run on {len(several)} machines "
        f"({', '.join(list(several)[:_FEW_MACHINES])}{', …' * (len(several) > _FEW_MACHINES)}): "
        "its figures are of all of them together, report each alone to tell them apart"
        for (kernel, _), several in machines.items()
        if len(several) > 1
    ]


def _device(manifest: Mapping[str, Any]) -> str | None:
    name = manifest.get("device")
    for one in _list(manifest, "rdma"):
        if isinstance(one, Mapping) and one.get("name") == name:
            more = [one.get("driver"), one.get("firmware")]
            return " ".join([str(name), *(str(word) for word in more if word)])
    return None if name is None else str(name)


def _began(manifest: Mapping[str, Any]) -> str | None:
    """From the first pair of clocks, in UTC: ``2026-11-21 20:01``."""
    pairs = _list(manifest, "clock") or [
        pair
        for boot in _list(manifest, "boots")
        if isinstance(boot, Mapping)
        for pair in _list(boot, "clock")
    ]
    for pair in pairs:
        real = pair.get("realtime_ns") if isinstance(pair, Mapping) else None
        if isinstance(real, int) and 0 <= real < _YEAR_3000_NS:
            return f"{datetime.fromtimestamp(real / 1e9, UTC):%Y-%m-%d %H:%M}"
    return None


def manifests(frames: "Frames[pl.LazyFrame]") -> list[Manifest]:
    shown = []
    for bundle, manifest in list(frames.manifests.items())[:MOST_MANIFESTS]:
        plain = {key: value for key, value in manifest.items() if key != "suite"}
        text = json.dumps(plain, indent=1, ensure_ascii=False)
        if len(text) > _MANIFEST_BYTES:
            text = text[:_MANIFEST_BYTES] + "\n(the rest is in manifest.json)"
        shown.append(Manifest(bundle, str(frames.paths[bundle]), tuple(_known(manifest)), text))
    return shown


def _known(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a reader asks first of a machine."""
    kernel, tool = part(manifest, "kernel"), part(manifest, "tool")
    cpu, memory = part(manifest, "cpu"), part(manifest, "memory")
    selftest = part(manifest, "selftest")
    trace = part(manifest, "trace")
    limits = part(part(manifest, "limits"), "rlimits")
    boots = [boot for boot in _list(manifest, "boots") if isinstance(boot, Mapping)]
    asked = [
        ("kernel", " ".join(str(kernel[key]) for key in ("release", "version") if kernel.get(key))),
        ("pinstorm", " ".join(str(tool[key]) for key in ("version", "commit") if tool.get(key))),
        ("processor", f"{cpu.get('model')}, {cpu.get('online')} online" if cpu else ""),
        ("memory", _gib(memory.get("total_bytes"))),
        ("CMA", _gib(memory.get("cma_bytes"))),
        ("NUMA nodes", str(len(_list(manifest, "numa")) or "")),
        ("QEMU", str(manifest.get("qemu") or "")),
        ("boots", ", ".join(f"{b.get('shape')} ({b.get('cases')} cases)" for b in boots)),
        ("memlock limit", _limit(limits.get("MEMLOCK"))),
        ("counters", _selftest(selftest)),
        ("trace", _trace(trace)),
        ("empty timed call", _call(manifest.get("empty_call_ns"))),
        ("packages", ", ".join(f"{k} {v}" for k, v in part(manifest, "packages").items())),
    ]
    for name, value in asked:
        if value:
            yield name, value


def _gib(size_bytes: Any) -> str:
    return f"{size_bytes / (1 << 30):.1f} GiB" if isinstance(size_bytes, int) else ""


def _limit(pair: Any) -> str:
    if not isinstance(pair, list) or not pair or not isinstance(pair[0], int | None):
        return ""
    return "unlimited" if pair[0] is None else f"{pair[0] // 1024} KiB"


def _selftest(found: Mapping[str, Any]) -> str:
    if not found:
        return ""
    moved = f"{found.get('acquired_pages')} of {found.get('expected_pages')} pages seen"
    return (
        f"{'moved as they must' if found.get('passed') else 'did not move as they must'}: {moved}"
    )


def _trace(found: Mapping[str, Any]) -> str:
    if not found:
        return ""
    if found.get("available"):
        return f"{len(_list(found, 'functions'))} functions of GUP probed"
    return f"none: {found.get('missing') or found.get('why') or 'not available'}"


def _call(found: Any) -> str:
    if not isinstance(found, Mapping) or not all(
        isinstance(found.get(name), int | float) for name in ("median", "maximum")
    ):
        return ""
    return f"median {us(found.get('median'))} µs, maximum {us(found.get('maximum'))} µs"


def again(frames: "Frames[pl.LazyFrame]", command: Command) -> list[Again]:
    """One entry for each text of a suite."""
    found: dict[str, tuple[Mapping[str, Any], dict[str, None]]] = {}
    for manifest in frames.manifests.values():
        suite = suite_of(manifest)
        key = str(suite.get("sha256") or suite.get("name"))
        _, commands = found.setdefault(key, (suite, {}))
        commands[_whole(manifest, suite, command)] = None
    told = []
    for suite, commands in list(found.values())[:_MOST_SUITES]:
        text = str(suite.get("text") or "")
        if len(text) > _SUITE_BYTES:
            text = text[:_SUITE_BYTES] + "\n# the rest is in manifest.json"
        told.append(
            Again(
                str(suite.get("name") or "no name"),
                tuple(commands),
                str(suite.get("sha256") or ""),
                str(suite.get("origin") or ""),
                text,
            )
        )
    return told


def _whole(manifest: Mapping[str, Any], suite: Mapping[str, Any], command: Command) -> str:
    """The command with the options that say which cases ran, how often and how long."""
    words = [command(manifest)]
    rounds, hold_s = suite.get("rounds"), suite.get("hold_s")
    options = {
        "--only": manifest.get("only"),
        "--rounds": rounds if isinstance(rounds, int) and rounds > 1 else None,
        "--hold": f"{hold_s:g}s" if isinstance(hold_s, int | float) and hold_s > 0 else None,
    }
    given = shlex.split(words[0])
    words += [
        f"{option} {shlex.quote(str(value))}"
        for option, value in options.items()
        if value and option not in given
    ]
    return " ".join(words)


def _list(manifest: Mapping[str, Any], name: str) -> list[Any]:
    found = manifest.get(name)
    return found if isinstance(found, list) else []


def suite_of(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    return part(manifest, "suite")
