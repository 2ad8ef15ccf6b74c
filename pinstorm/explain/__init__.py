"""Why it failed: one cause out of a closed list, with the evidence, how sure it is, and what to do.

``of_record`` for a case, ``of_failure`` for what somebody else's program printed. Pure functions of
what was gathered (pinstorm.evidence): nothing is read here, so an old bundle is explained anew.

pinstorm.explain.calls says what each call makes the kernel do, pinstorm.explain.view what is known
of the failure; each check (limits, mapping, resources, arguments) says whether a cause's condition
holds, where the kernel meets it and which errnos it answers with; pinstorm.explain.engine ranks.
"""

from pinstorm.explain.causes import KNOWLEDGE, MEANING, Cause
from pinstorm.explain.engine import of_failure, of_record
from pinstorm.explain.finding import Confidence, Explanation, Failure, Finding

__all__ = [
    "KNOWLEDGE",
    "MEANING",
    "Cause",
    "Confidence",
    "Explanation",
    "Failure",
    "Finding",
    "of_failure",
    "of_record",
]
