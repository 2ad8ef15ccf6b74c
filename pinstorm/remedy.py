"""Carrying out the command that explain gives, so that a test can show that it helps."""

import subprocess

_DEADLINE_S = 20.0


def apply(command: str) -> dict[str, object]:
    """Run it: ``{"exit": code, "said": text}``. ``exit`` is null when it did not end in time."""
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", command], capture_output=True, text=True, timeout=_DEADLINE_S
        )
    except subprocess.TimeoutExpired:
        return {"exit": None, "said": f"not done after {_DEADLINE_S:.0f} s"}
    return {"exit": done.returncode, "said": (done.stdout + done.stderr).strip()}
