"""Prepares a TFDS data set once, so that training can read it without TensorFlow.

    python experiments/prepare.py mnist [--data_dir DIR]

TFDS's own sets need TensorFlow for this step alone (`pip install tensorflow-cpu`); those of attnjax/data/builders do
not, and are also prepared on first use.
"""

import argparse

from attnjax.cli import run
from attnjax.data.tfds import prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="NAME[/CONFIG][:VERSION], such as mnist")
    parser.add_argument("--data_dir", default="", help="default: $TFDS_DATA_DIR, or ~/tensorflow_datasets")
    args = parser.parse_args()
    builder = prepare(args.name, args.data_dir)
    sizes = ", ".join(f"{name} {split.num_examples:,}" for name, split in builder.info.splits.items())
    print(f"{builder.info.full_name}: {sizes} examples in {builder.data_path}")


if __name__ == "__main__":
    run(main)
