"""Reproduces a paper's table with this code, and prints it.

python experiments/tables.py vit_sizes    # or swin_sizes, resnet_sizes, crossvit_sizes, transformer_sizes
python experiments/tables.py swin_cost [--image_size 56 112 224] [--memory 4] [--rounds 3] [--out swin_cost.png]

..._sizes: parameters in millions and multiply-adds in billions, beside the paper's; != marks a number that does not
round to the paper's. Models are only traced, which takes seconds.

swin_cost: time and memory of attention in the first stage of Swin-T, in shifted windows and over all tokens at the same
width, against image size (Liu et al. 2021, section 3.2, equations 1 and 2), on the current device; --out also plots
them, and writes the numbers as CSV. Time is the minimum over rounds, which alternate between both; it is left out where
the memory, the compiler's plan, exceeds --memory GiB.
"""

import argparse
from pathlib import Path

from attnjax import cli
from attnjax.errors import UserError

NAMES = ("swin_cost", "vit_sizes", "swin_sizes", "resnet_sizes", "crossvit_sizes", "transformer_sizes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES)
    swin = parser.add_argument_group("swin_cost")
    swin.add_argument("--out", type=Path, metavar="FILE", help="plot to this file")
    swin.add_argument("--rounds", type=int, default=3)
    swin.add_argument(
        "--image_size", type=int, nargs="+", default=[56, 112, 168, 224, 336, 448, 672], help="pixels per side"
    )
    swin.add_argument("--memory", type=float, default=4.0, help="do not time what needs more GiB")
    args = cli.parse_args(parser, overrides_allowed=False)
    if args.rounds < 1 or min(args.image_size) < 1:
        raise UserError("--rounds and --image_size should be 1 or more")
    from attnjax.reports import swin_cost, tables

    if args.name == "swin_cost":
        swin_cost.print_swin_cost(args)
    elif args.out:
        raise UserError(f"{args.name} has no figure: --out is for swin_cost")
    else:
        tables.print_sizes(args.name)


if __name__ == "__main__":
    cli.run(main)
