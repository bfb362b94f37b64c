"""Convert a torchvision ResNet checkpoint to the ImageNet weights detectron2's ResNet backbone starts from.

    python tools/convert_torchvision_resnet.py --input resnet101-63fe2227.pth --output weights/R-101.pkl

Then set MODEL.WEIGHTS to the output, with MODEL.RESNETS.STRIDE_IN_1X1 False, INPUT.FORMAT RGB and
torchvision's mean and standard deviation times 255, as the configs of this repository have.
"""

import argparse
import sys
from collections.abc import Sequence

import _path  # noqa: F401
from mask_former.errors import run_cli
from mask_former.weights_conversion import (
    read_state_dict,
    torchvision_resnet_to_detectron2,
    write_detectron2_weights,
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", required=True, help="torchvision's .pth file, ResNet-18 to 152")
    parser.add_argument("--output", required=True, help="file to write, .pkl or .pth")
    args = parser.parse_args(argv)

    weights = torchvision_resnet_to_detectron2(read_state_dict(args.input))
    write_detectron2_weights(weights, args.output, author="torchvision")
    print(f"wrote {len(weights)} entries to {args.output}")


if __name__ == "__main__":
    sys.exit(run_cli(main))
