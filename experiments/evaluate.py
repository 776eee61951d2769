"""Measures a run's accuracy on a split, each example counted once.

python experiments/evaluate.py --workdir runs/digits [--split test] [--checkpoint best] [--config.data.source=...]
"""

import argparse
import json
from pathlib import Path

from attnjax import cli, data
from attnjax import config as config_lib
from attnjax.errors import UserError
from attnjax.training import loop, parallel
from attnjax.training.run import open_run
from attnjax.training.step import make_eval_step
from attnjax.weights.transfer import at_image_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="the run folder")
    parser.add_argument("--split", help="a split of the data; default: the config's data.test")
    parser.add_argument("--checkpoint", default="best", help="best (by validation; else the latest), latest, or a step")
    args = cli.parse_args(parser)
    run = open_run(args.workdir, args.checkpoint)
    config = config_lib.resolve(run.config)
    config_lib.override(config, args.overrides)
    if config.data.image_size != run.config.data.image_size:
        run = at_image_size(run, tuple(config.data.image_size))
    parallel.check_batch_size("eval_batch_size", config.eval_batch_size)

    split = args.split or config.data.test
    source = data.open_split(config, split)
    if source.classes != run.classes:
        raise UserError(
            f"the classes of {config.data.source} ({_some(source.classes)}) are not the model's ({_some(run.classes)})"
        )
    eval_step = parallel.data_parallel(make_eval_step(run.task))
    metrics = loop.evaluate(eval_step, (run.params, run.model_state), data.eval_batches(config, source))
    result = {"split": split, "images": len(source), "step": run.step, **metrics}
    (args.workdir / f"evaluation_{_file_name(split)}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"{config.data.source} {split}: {len(source):,} images, checkpoint of step {run.step:,}")
    for name, value in metrics.items():
        print(f"{split} {name} {value:.4f}")


def _some(classes):
    return ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")


def _file_name(split):
    return "".join(c if c.isalnum() else "_" for c in split)


if __name__ == "__main__":
    cli.run(main)
