"""Prepares a TFDS dataset once, so that training can read it without TensorFlow; or checks the images of any source.

    python experiments/prepare.py mnist [--data_dir DIR]
    python experiments/prepare.py --check folder:PATH    # decodes every image, and names those that cannot be read

For TFDS's own datasets the first step alone needs TensorFlow (`pip install tensorflow-cpu`). Those in
attnjax/data/builders do not need it, and are otherwise prepared on first use.
"""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from attnjax import cli
from attnjax.errors import UserError

if TYPE_CHECKING:
    from attnjax.data.images.sources import ImageSource


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="NAME[/CONFIG][:VERSION], such as mnist; with --check a data.source of images")
    parser.add_argument("--data_dir", default="", help="default: $TFDS_DATA_DIR, or ~/tensorflow_datasets")
    parser.add_argument("--check", action="store_true", help="decode every image of folder:PATH, captions:FOLDER, ...")
    args = cli.parse_args(parser, overrides_allowed=False)
    if args.check:
        check(args.name, args.data_dir)
        return
    from attnjax.data.tfds import prepare

    builder = prepare(args.name, args.data_dir)
    sizes = ", ".join(f"{name} {split.num_examples:,}" for name, split in builder.info.splits.items())
    print(f"{builder.info.full_name}: {sizes} examples in {builder.data_path}")


def check(spec: str, data_dir: str) -> None:
    """Prints a line on each image that cannot be read, and one per split; UserError if there are any."""
    from attnjax.data.images.probe import unreadable

    total = bad = 0
    for split, source in _images(spec, data_dir):
        before = bad
        for line in unreadable(source):
            print(line)
            bad += 1
        total += len(source)
        print(f"{split}: {len(source):,} images, {bad - before:,} of them cannot be read", flush=True)
    if bad:
        skip = "train with --config.data.skip_corrupt=true"
        raise UserError(f"{bad:,} of {total:,} images cannot be read: repair or remove them, or {skip}")


def _images(spec: str, data_dir: str) -> Iterator[tuple[str, "ImageSource"]]:
    from attnjax.data.captions import CaptionOptions, caption_splits, open_captions
    from attnjax.data.images.sources import open_source, split_names

    if spec.startswith(("flickr8k:", "captions:")):
        for split in caption_splits(spec):
            yield split, open_captions(spec, split, CaptionOptions(("image", "text"))).images
    else:
        for split in split_names(spec, data_dir):
            yield split, open_source(spec, split, data_dir=data_dir, cache_bytes=0)


if __name__ == "__main__":
    cli.run(main)
