"""Times layers, complete training steps, decoding and the data pipeline on this machine.

python experiments/benchmark.py layouts [--tokens 197 --width 384 --heads 6 --batch 8]
python experiments/benchmark.py step --config configs/fashion_vit.py [--config.model.attention_kernel=xla ...]
python experiments/benchmark.py step --config configs/A.py configs/B.py --length 16 32 64 [--figure parallelism.png]
python experiments/benchmark.py generate [--batch 8 --beam 4 --new_tokens 48]
python experiments/benchmark.py data --config configs/folder_vit.py [--config.data.source=folder:... --workers 1 2 8]

Alternatives are run in turn, many times; the minimum time of each counts, and its ratio to the fastest. "data" reads a
config's training batches without training, and shows the share of each stage of the work.
"""

import argparse
from pathlib import Path

from attnjax import cli
from attnjax.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["layouts", "step", "generate", "data"])
    parser.add_argument("--config", nargs="+", help="for step and data: one or several")
    parser.add_argument("--length", type=int, nargs="+", default=[32], help="for step: tokens per sentence")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="for step: plot time against length, and write CSV")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 0], help="for data: threads, 0: one per core")
    parser.add_argument("--seconds", type=float, default=5, help="for data: of reading with each number of threads")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch", type=int, default=8, help="for layouts and generate")
    parser.add_argument("--tokens", type=int, default=197, help="for layouts")
    parser.add_argument("--width", type=int, default=384, help="for layouts")
    parser.add_argument("--heads", type=int, default=6, help="for layouts")
    parser.add_argument("--beam", type=int, default=4, help="for generate")
    parser.add_argument("--new_tokens", type=int, default=48, help="for generate")
    args = cli.parse_args(parser)
    if args.figure and args.what != "step":
        raise UserError("--figure is for step")
    from attnjax.reports import benchmarks, data_benchmark

    kinds = {"layouts": benchmarks.layouts, "step": benchmarks.step, "generate": benchmarks.generate}
    {**kinds, "data": data_benchmark.data}[args.what](args)


if __name__ == "__main__":
    cli.run(main)
