"""JUnit XML of a bundle, for whatever shows test results: one test suite for each kernel.

A test case's name is the case's id, its class the workload. ``fail`` is a failure; ``crash``,
``timeout`` and ``lost`` are errors: the case did not get to its judgement.
"""

import io
import re
from collections.abc import Callable, Sequence

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from pinstorm.bundle import Bundle
from pinstorm.report import reason
from pinstorm.report.reason import Record

# What XML 1.0 has no way to write: the kernel's log may hold any byte.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def text(bundles: Sequence[Bundle], command: Callable[[Bundle], str]) -> str:
    """The document. ``command``: what repeats a bundle's run; ``--only CASE`` is added to it."""
    document = JUnitXml("pinstorm")
    for bundle in bundles:
        document.add_testsuite(_suite(bundle, command(bundle)))
    document.update_statistics()  # type: ignore[no-untyped-call]
    buffer = io.BytesIO()
    document.write(buffer, pretty=True)
    return buffer.getvalue().decode()


def _suite(bundle: Bundle, command: str) -> TestSuite:
    manifest, cases = bundle.manifest, reason.records(bundle)
    name = (manifest.get("suite") or {}).get("name") or "pinstorm"
    suite = TestSuite(_plain(f"{name} on {reason.kernel_of(bundle)}"))
    host = (manifest.get("lab") or {}).get("host") or manifest.get("hostname") or ""
    suite.hostname = _plain(str(host))
    accel = str(manifest.get("accel"))
    for key, value in (
        ("kernel", reason.kernel_of(bundle)),
        ("kernel_version", (manifest.get("kernel") or {}).get("version")),
        ("accel", accel),
        ("emulated", str(accel == "tcg").lower()),
        ("device", manifest.get("device")),
        ("seed", (manifest.get("suite") or {}).get("seed")),
        ("pinstorm", (manifest.get("tool") or {}).get("version")),
    ):
        suite.add_property(key, "none" if value is None else _plain(str(value)))
    suite.add_testcases(
        [_case(r, n, command) for r, n in zip(cases, reason.names(cases), strict=True)]
    )
    return suite


def _case(record: Record, name: str, command: str) -> TestCase:
    workload = _plain(str(record.get("workload") or record["case"].partition("/")[0]))
    case = TestCase(_plain(name), classname=workload, time=reason.seconds(record))
    verdict, summary = str(record["verdict"]), _plain(reason.summary(record))
    if verdict == "skip":
        case.result = [Skipped(summary, _plain(str(record.get("reason") or "skip")))]
    elif verdict != "pass":
        kind = Failure if verdict == "fail" else Error
        result = kind(summary or _plain(verdict), _plain(verdict))
        result.text = _plain("\n".join(reason.sentences(record, command)))
        case.result = [result]
    elif summary:
        case.system_out = summary
    return case


def _plain(words: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", words)
