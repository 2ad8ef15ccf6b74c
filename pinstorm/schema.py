"""The table of cases.parquet: one row of this module is one column.

It produces the Parquet schema and the documentation table, and reports take units from it. A
column is found in a record by its path (``pins.acquire.acquired``); a record without it has null
there. Values that are themselves tables are stored as JSON text.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Any, Literal

SCHEMA_VERSION = 1

Type = Literal["String", "Int64", "Float64", "Boolean", "List(Int64)", "List(String)", "Json"]
Scope = Literal["run", "case", "machine", "process", "call"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column: ``type`` is a polars type, or Json for text; ``scope`` is what it is true of."""

    name: str
    type: Type
    unit: str
    scope: Scope
    meaning: str
    path: str = ""

    def value(self, record: Mapping[str, Any]) -> Any:
        """What the record says in this column; None when it says nothing."""
        return _typed(self.type, _at(record, self.path or self.name))


COLUMNS = (
    Column("schema", "Int64", "", "run", "version of the record's form"),
    Column("run", "String", "", "run", "name of the run, the same in every boot of it"),
    Column("boot", "String", "", "run", "boot id of the kernel that ran the case"),
    Column(
        "accel",
        "String",
        "",
        "run",
        "host; kvm or tcg in the lab; tcg on any CPU that QEMU emulates",
    ),
    Column("host", "String", "", "run", "host name"),
    Column("kernel", "String", "", "run", "kernel release"),
    Column("device", "String", "", "run", "RDMA device"),
    Column("seq", "Int64", "", "case", "position in the run, all rounds, from 0"),
    Column("round", "Int64", "", "case", "round, from 0"),
    Column("case", "String", "", "case", "workload/memory/access/size and further parameters"),
    Column("workload", "String", "", "case", "what made the kernel take references"),
    Column("memory", "String", "", "case", "the kind of memory it was applied to"),
    Column("params", "Json", "", "case", "all parameters"),
    Column("access", "String", "", "case", "access flags of a registration", "params.access"),
    Column("size_bytes", "Int64", "bytes", "case", "registered or asked", "params.size_bytes"),
    Column("uid", "Int64", "", "process", "user the case ran as"),
    Column("pid", "Int64", "", "process", "process the case ran in"),
    Column("verdict", "String", "", "case", "pass, fail, skip, crash, timeout or lost"),
    Column("reason", "String", "", "case", "why not pass, or what a pass does not prove"),
    Column("outcome", "String", "", "case", "ok, short or the name of an errno"),
    Column("failed_call", "String", "", "call", "the call the kernel refused"),
    Column("failed_phase", "String", "", "call", "the phase that call was in"),
    Column("done_bytes", "Int64", "bytes", "call", "transferred by a call that may be short"),
    Column("signal", "Int64", "", "process", "signal that ended the child"),
    Column("rule", "String", "", "case", "rule that gave the expectation", "expected.rule"),
    Column(
        "expected_outcomes", "List(String)", "", "case", "outcomes allowed", "expected.outcomes"
    ),
    Column("expected_source", "String", "", "case", "where the rule is from", "expected.source"),
    Column("broken", "List(String)", "", "case", "bounds that did not hold", "expected.broken"),
    Column("cause", "String", "", "case", "why the operation failed, from a closed list"),
    Column("detail", "String", "", "case", "evidence for the reason or the cause"),
    Column("remedy", "String", "", "case", "what to do about it"),
    Column(
        "explanation",
        "Json",
        "",
        "case",
        "the cause, how sure it is, its evidence, a command that helps; other causes",
    ),
    Column(
        "evidence",
        "Json",
        "",
        "process",
        "limits, mappings, groups and devices as the refused process had them",
    ),
    Column("retries", "Json", "", "case", "remedies that were applied, and what came of each"),
    Column("disturbed", "Json", "", "process", "what was done to pinned memory, and its outcome"),
    Column("skip", "Json", "", "case", "every unmet need: code, detail, remedy"),
    Column("pin_class", "String", "", "case", "none, get, pin or pin-longterm"),
    Column("placement_zones", "Json", "pages", "process", "pages by zone", "placement.zones"),
    Column("cma_pages", "Int64", "pages", "process", "pages in CMA", "placement.cma_pages"),
    Column("placement_nodes", "Json", "pages", "process", "pages by node", "placement.nodes"),
    Column(
        "folio_orders", "Json", "pages", "process", "pages by folio order", "placement.folio_orders"
    ),
    Column(
        "pins_exact",
        "Boolean",
        "",
        "machine",
        "counters folded, nobody else pinned near the windows",
        "pins.exact",
    ),
    Column("pins_bound", "Int64", "pages", "machine", "error of each pin figure", "pins.bound"),
    Column("pins_noise", "Int64", "pages", "machine", "pins by others nearby", "pins.noise"),
    Column("pins_recent", "Int64", "pages", "machine", "and shortly before", "pins.recent"),
    Column("pins_flagged", "Boolean", "", "machine", "noise reaches the signal", "pins.flagged"),
    Column(
        "attributed_acquired",
        "Int64",
        "pages",
        "case",
        "of acquired, the case's own; null where that cannot be known",
        "pins.attributed.acquired",
    ),
    Column(
        "attributed_held",
        "Int64",
        "pages",
        "case",
        "of held, the case's own; null where that cannot be known",
        "pins.attributed.held",
    ),
    Column(
        "attribution",
        "Json",
        "",
        "case",
        "how it is known: exact-quiet, trace, vmpin or unattributable",
        "pins.attributed.method",
    ),
    Column("acquired", "Int64", "pages", "machine", "taken in acquire", "pins.acquire.acquired"),
    Column(
        "acquire_released",
        "Int64",
        "pages",
        "machine",
        "given back in acquire",
        "pins.acquire.released",
    ),
    Column(
        "release_acquired", "Int64", "pages", "machine", "taken in release", "pins.release.acquired"
    ),
    Column(
        "released", "Int64", "pages", "machine", "given back in release", "pins.release.released"
    ),
    Column("held", "Int64", "pages", "machine", "between acquire and release", "pins.held"),
    Column("leaked", "Int64", "pages", "machine", "held after release and settle", "pins.leaked"),
    Column("orphaned", "Int64", "pages", "machine", "held after the child", "pins.orphaned"),
    Column(
        "disturb_acquired",
        "Int64",
        "pages",
        "machine",
        "taken while disturbed",
        "pins.disturb.acquired",
    ),
    Column(
        "disturb_released",
        "Int64",
        "pages",
        "machine",
        "given back while disturbed",
        "pins.disturb.released",
    ),
    Column(
        "disturbed_vmpin_bytes",
        "Int64",
        "bytes",
        "process",
        "VmPin after the disturbance",
        "disturbed.vmpin_bytes",
    ),
    Column("killed_phase", "String", "", "process", "phase of the SIGKILL sent", "killed.phase"),
    Column(
        "killed_after_ns", "Int64", "ns", "process", "how far into that phase", "killed.after_ns"
    ),
    Column("killed_inside", "Boolean", "", "process", "that phase was not over", "killed.inside"),
    Column(
        "cycles_acquired", "Int64", "pages", "machine", "in timed cycles", "pins.cycles.acquired"
    ),
    Column(
        "cycles_released", "Int64", "pages", "machine", "in timed cycles", "pins.cycles.released"
    ),
    Column("pins_per_node", "Json", "pages", "machine", "[acquired, released]", "pins.per_node"),
    Column("vmpin_held_bytes", "Int64", "bytes", "process", "VmPin while held", "vmpin_bytes.held"),
    Column(
        "vmpin_after_bytes", "Int64", "bytes", "process", "VmPin after settle", "vmpin_bytes.after"
    ),
    Column(
        "vmlck_bytes",
        "Int64",
        "bytes",
        "process",
        "all of VmLck while held",
        "memory_of_child.vmlck_bytes",
    ),
    Column("vmlck_held_bytes", "Int64", "bytes", "process", "growth of VmLck", "vmlck_bytes.held"),
    Column(
        "vmlck_after_bytes", "Int64", "bytes", "process", "and after settle", "vmlck_bytes.after"
    ),
    Column(
        "vmrss_bytes",
        "Int64",
        "bytes",
        "process",
        "VmRSS while held",
        "memory_of_child.vmrss_bytes",
    ),
    Column("vma_count", "Int64", "", "process", "VMAs while held", "memory_of_child.vma_count"),
    Column("migrate_success", "Int64", "pages", "machine", "pages migrated", "migrate.success"),
    Column("migrate_fail", "Int64", "pages", "machine", "migrations failed", "migrate.fail"),
    Column("gup_calls", "Json", "", "call", "functions of GUP called; null without a trace"),
    Column("no_trace", "String", "", "case", "why gup_calls is null"),
    Column("first_ns", "Int64", "ns", "call", "acquire of the observed cycle", "timing_ns.first"),
    Column("acquire_ns", "List(Int64)", "ns", "call", "each timed acquire", "timing_ns.acquire"),
    Column("release_ns", "List(Int64)", "ns", "call", "each timed release", "timing_ns.release"),
    Column("settle_ns", "Int64", "ns", "machine", "until the counters rest", "timing_ns.settle"),
    Column(
        "settles_ns",
        "List(Int64)",
        "ns",
        "machine",
        "from each release to rest, at most",
        "timing_ns.settles",
    ),
    Column(
        "acquire_median_ns", "Int64", "ns", "call", "lower median of acquire_ns", "acquire_median"
    ),
    Column(
        "release_median_ns", "Int64", "ns", "call", "lower median of release_ns", "release_median"
    ),
    Column("phases", "Json", "ns", "case", "[begin, end] of each phase, CLOCK_MONOTONIC"),
    Column("jobs", "Json", "", "process", "of a load: each job's figures, rates and latencies"),
    Column("load", "Json", "", "case", "of a load: steadiness, soak, sampler, what ended it"),
    Column("outcomes", "Json", "", "case", "cycles by outcome, observed and timed"),
    Column("owner_errors", "List(String)", "", "process", "releases of resources that failed"),
    Column("kmsg", "List(String)", "", "machine", "lines of the kernel log that are judged"),
    Column("taint", "Int64", "", "machine", "taint bits that were set during the case"),
    Column("containment", "String", "", "process", "cgroup or process-group"),
)


def row(record: Mapping[str, Any], columns: Sequence[Column] = COLUMNS) -> dict[str, Any]:
    """One row of the table: column name to value, every one of the columns there."""
    timing = record.get("timing_ns") or {}
    derived = {
        **record,
        "acquire_median": _median(timing.get("acquire")),
        "release_median": _median(timing.get("release")),
    }
    return {column.name: column.value(derived) for column in columns}


def markdown(columns: Sequence[Column] = COLUMNS) -> str:
    """The table of columns for the documentation."""
    lines = ["| column | type | unit | scope | meaning |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {c.name} | {c.type} | {c.unit} | {c.scope} | {c.meaning} |" for c in columns]
    return "\n".join(lines) + "\n"


def _median(times: Any) -> int | None:
    return median_low(times) if times else None


def _at(record: Mapping[str, Any], path: str) -> Any:
    value: Any = record
    for key in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def _typed(kind: Type, value: Any) -> Any:
    if value is None:
        return None
    if kind == "Json":
        return json.dumps(value, separators=(",", ":"))
    if kind == "String":
        return _text(value)
    if kind == "List(String)":
        return [_text(item) for item in value]
    return value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
