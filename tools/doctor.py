"""Shows what this machine and environment have, what is missing, and how to mend it.

    python tools/doctor.py [--json]

ok: as it should be. none: not there, and training works without. mend: something will not work as it is.
MISSING: nothing can be trained without it; then, and only then, the exit code is 1.
Runs without torch and detectron2.
"""

import argparse
import json
import sys
from dataclasses import asdict

import _path  # noqa: F401
from tools.checks.data_sets import check_data_sets, datasets_root
from tools.checks.finding import Finding
from tools.checks.gpus import check_gpus
from tools.checks.machine import check_machine
from tools.checks.packages import check_packages


def examine() -> list[Finding]:
    """All findings, in the order they are shown."""
    return [*check_machine(), *check_packages(sys.path), *check_gpus(), *check_data_sets(datasets_root())]


def summary(findings: list[Finding]) -> str:
    """What can be trained here, in one line."""
    missing = [finding.name for finding in findings if finding.status == "MISSING"]
    if missing:
        return f"cannot train: {', '.join(missing)} missing or unusable"
    gpu = all(finding.status == "ok" for finding in findings if finding.section == "GPU")
    return "ready to train on GPU and CPU" if gpu else "ready to train on the CPU"


def show(findings: list[Finding]) -> str:
    """The findings as a table, and the summary."""
    lines, section = [], ""
    for finding in findings:
        if finding.section != section:
            section = finding.section
            lines += ["", section]
        lines.append(f"  {finding.status:8}{finding.name:18}{finding.value}")
        if finding.mend:
            lines.append(f"  {'':26}-> {finding.mend}")
    return "\n".join([*lines[1:], "", summary(findings)])


def main(arguments: list[str] | None = None) -> int:
    """Command line; exit code 1 when something is missing without which nothing can be trained."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    options = parser.parse_args(arguments)
    findings = examine()
    print(json.dumps([asdict(finding) for finding in findings], indent=1) if options.json else show(findings))
    return int(any(finding.status == "MISSING" for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
