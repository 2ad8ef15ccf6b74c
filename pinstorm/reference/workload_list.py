"""docs/reference/workloads.md."""

from pinstorm.needs.unmet import ASKED, REMEDIES
from pinstorm.reference import page
from workloads import CIRCUMSTANCES, MEMORY, WORKLOADS
from workloads.antagonists import ANTAGONISTS
from workloads.spec import PAGE_BYTES, AntagonistSpec, MemorySpec, Need, WorkloadSpec, size_text


def text() -> str:
    """Workloads, memories, circumstances, antagonists, and what they need of a machine."""
    lines = page.head(
        "Workloads, memories and what they need",
        "workloads/__init__.py, workloads/antagonists/__init__.py and pinstorm/needs/unmet.py",
        "`pinstorm list` says of all these whether this machine has what they need.",
        "## Workloads",
        "The pin class is what the kernel's call site asks for; for direct IO before Linux 6.5 it "
        "is `get` ([rules](rules.md)). *Held* are references that last until the release, *call* "
        "those that live inside the call.",
    )
    lines += page.table(
        ("workload", "what it does", "pin class", "lasts", "needs", "charged", "in a load"),
        map(_workload, WORKLOADS),
    )
    lines += [
        "",
        page.prose(
            "*Charged* is what counts against RLIMIT_MEMLOCK, and against whose: the bytes, whole "
            "folios (`folio-bytes`), or two pages more a send (`zerocopy-bytes`)."
        ),
        "",
        "## Memories",
        "",
        "*Anew*: the first cycle changes the memory, so it is made again for each, untimed.",
    ]
    lines += page.table(
        ("memory", "what it is", "pages of", "properties", "granule", "anew", "needs"),
        map(_memory, MEMORY),
    )
    lines += ["", "## Circumstances", "", "What `under` makes wrong around a case."]
    lines += page.table(
        ("circumstance", "what is wrong", "cause", "workloads", "needs"),
        (
            (
                f"`{spec.name}`",
                spec.summary,
                f"[{spec.cause}](../causes.md#{spec.cause})",
                page.code(spec.workloads),
                page.code(spec.needs),
            )
            for spec in CIRCUMSTANCES
        ),
    )
    lines += ["", "## Antagonists", "", "What disturbs memory beside a [load](../loads.md)."]
    lines += page.table(("antagonist", "what it does", "params", "needs"), map(_foe, ANTAGONISTS))
    lines += ["", "## Needs", "", "What a skip names, with what was found and the remedy."]
    lines += page.table(("need", "asks for", "remedy"), map(_need, Need))
    return page.whole(lines)


def _workload(spec: WorkloadSpec) -> tuple[str, ...]:
    charged = f"{spec.charged}, of the {spec.charged_to}" if spec.charged else "-"
    loadable = "yes" if spec.engine else "-"
    return (
        f"`{spec.name}`",
        spec.summary,
        spec.pin_class,
        spec.scope,
        page.code(spec.needs),
        charged,
        loadable,
    )


def _memory(spec: MemorySpec) -> tuple[str, ...]:
    granule = "a page" if spec.granule_bytes == PAGE_BYTES else size_text(spec.granule_bytes)
    anew = "yes" if spec.fresh_each_cycle else "-"
    return (
        f"`{spec.name}`",
        spec.summary,
        spec.backing,
        _properties(spec),
        granule,
        anew,
        page.code(spec.needs),
    )


def _properties(spec: MemorySpec) -> str:
    """Those that differ from plain memory, by the names that rules use."""
    words = [name for name in ("shared", "locked", "movable") if getattr(spec, name)]
    words += ["foreign reference"] if spec.foreign_reference else []
    words += ["one page"] if spec.one_page else []
    words += [f"present {spec.present}"] if spec.present != "own" else []
    words += [f"prot {spec.prot}"] if spec.prot != "rw" else []
    words += [f"extent {spec.extent}"] if spec.extent != "whole" else []
    words += [f"with {page.code(sorted(spec.workloads))} only"] if spec.workloads else []
    return ", ".join(words) or "-"


def _foe(spec: AntagonistSpec) -> tuple[str, ...]:
    params = []
    for name in spec.params:
        choices = spec.choices.get(name)
        words = f": {', '.join(choices)}" if choices else ""
        params.append(f"`{name}` ({spec.defaults[name]}){words}")
    return f"`{spec.name}`", spec.summary, "; ".join(params) or "-", page.code(spec.needs)


def _need(need: Need) -> tuple[str, ...]:
    scratch = need.value.startswith("scratch-") or need is Need.TARGET_DIO
    remedy = "name one with `--scratch DIR`, or run in the lab" if scratch else REMEDIES[need]
    return f"`{need}`", ASKED[need], remedy
