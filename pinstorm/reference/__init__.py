"""The documents that are made from the code: each a room with ``text()``, and no file is edited.

``scripts/docs`` writes them, ``scripts/docs --check`` says which are stale.
"""

from collections.abc import Callable, Mapping
from typing import Final

from pinstorm.explain import causes
from pinstorm.reference import commands, data, exit_codes, record, rules, suite_keys, workload_list

# Path below docs/ -> what it must contain.
DOCUMENTS: Final[Mapping[str, Callable[[], str]]] = {
    "causes.md": causes.markdown,
    "data.md": data.text,
    "reference/commands.md": commands.text,
    "reference/exit-codes.md": exit_codes.text,
    "reference/record.md": record.text,
    "reference/rules.md": rules.text,
    "reference/suite.md": suite_keys.text,
    "reference/workloads.md": workload_list.text,
}
