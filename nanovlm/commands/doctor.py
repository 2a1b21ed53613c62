"""`nanovlm doctor`: is this environment fit for the course?"""

from __future__ import annotations

from collections.abc import Sequence

from nanovlm.commands.options import parse


def main(arguments: Sequence[str]) -> int:
    parse(check, "doctor", arguments)
    from nanovlm.commands.environment import examine, report

    findings = examine()
    print(report(findings))
    return 1 if any(finding.state == "problem" for finding in findings) else 0


def check() -> None:
    """Check Python, the packages and their versions, the device, memory and disk, and that the pocket model answers."""
