"""All benchmarks, one after another, each in a process of its own.

    python -m tools.benchmarks --output output/benchmarks       # 15 to 25 minutes on 2 cores
    python -m tools.benchmarks --quick loader matching          # small sizes, only these

One that fails does not keep the others from running; the exit status then tells.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from mask_former.errors import run_cli

BENCHMARKS: dict[str, str] = {
    "criterion": "focal and dice losses of all layers, against autograd through upsampled masks",
    "matching": "assignment of queries to segments, against one image and layer at a time",
    "pisr": "PISR's share of a training step",
    "pisr_cost": "PISR's parameters and multiply-adds",
    "inference": "panoptic, semantic and instance results, against upsampling every query",
    "loader": "training samples a second, against the straightforward mapper",
    "panoptic_quality": "PQ in process, against panopticapi through PNG files",
    "step": "a whole training step, against Hugging Face's MaskFormer",
    "processes": "training with one process and with two",
}
WITHOUT_QUICK = {"pisr_cost"}  # takes seconds anyway


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[[], *BENCHMARKS], help="default: all")
    parser.add_argument("--quick", action="store_true", help="small sizes and few repeats: two minutes")
    parser.add_argument("--output", type=Path, help="folder for one JSON file a table")
    options = parser.parse_args(arguments)
    failed = [name for name in options.names or BENCHMARKS if not run(name, options.quick, options.output)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def run(name: str, quick: bool, output: Path | None) -> bool:
    """Whether the benchmark ended well."""
    print(f"\n== {name}: {BENCHMARKS[name]}", flush=True)
    command = [sys.executable, "-m", f"tools.benchmarks.{name}"]
    if name not in WITHOUT_QUICK:
        command += ["--quick"] * quick + (["--output", str(output)] if output is not None else [])
    began = time.monotonic()
    status = subprocess.run(command, check=False).returncode
    print(f"({name}: {time.monotonic() - began:.0f} s)", flush=True)
    return status == 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
