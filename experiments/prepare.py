"""Prepares a TFDS dataset once, so that training can read it without TensorFlow.

    python experiments/prepare.py mnist [--data_dir DIR]

For TFDS's own datasets this step alone needs TensorFlow (`pip install tensorflow-cpu`). Those in attnjax/data/builders
do not need it, and are otherwise prepared on first use.
"""

import argparse

from attnjax import cli
from attnjax.data.tfds import prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="NAME[/CONFIG][:VERSION], such as mnist")
    parser.add_argument("--data_dir", default="", help="default: $TFDS_DATA_DIR, or ~/tensorflow_datasets")
    args = cli.parse_args(parser, overrides_allowed=False)
    builder = prepare(args.name, args.data_dir)
    sizes = ", ".join(f"{name} {split.num_examples:,}" for name, split in builder.info.splits.items())
    print(f"{builder.info.full_name}: {sizes} examples in {builder.data_path}")


if __name__ == "__main__":
    cli.run(main)
