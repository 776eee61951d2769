"""Converts published weights to a run folder, or a run folder to Hugging Face weights.

python experiments/convert.py WEIGHTS --config configs/X.py --workdir runs/x [--classes cat,dog] [--config.a.b=v]
python experiments/convert.py runs/x --huggingface OUT_FOLDER [--checkpoint best]

WEIGHTS is a .npz (Google), .safetensors or torch file, or a Hugging Face folder. The config's model must be the
weights' model; every mismatch is listed. Use the run folder with evaluate.py and predict.py, or --config.init_from.

--huggingface writes a ViT, a Swin, or a Transformer for translation with its subwords (token ids stay the run's). A
model that transformers' class cannot compute is refused: its Marian has norm=post, positions=concatenated and
epsilon=1e-5.
"""

import argparse
from pathlib import Path

from attnjax import cli
from attnjax import config as config_lib
from attnjax.errors import UserError
from attnjax.runs import folder
from attnjax.runs.checkpoint import Checkpoints
from attnjax.runs.experiment import Experiment
from attnjax.runs.initialise import load
from attnjax.weights import published


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="weights; with --huggingface, a run folder")
    parser.add_argument("--config", help="config file of the weights' model")
    parser.add_argument("--workdir", type=Path, help="the run folder to write")
    parser.add_argument(
        "--classes", help="class names, separated by commas; default: id2label of config.json, or 0,1,..."
    )
    parser.add_argument(
        "--huggingface", type=Path, metavar="FOLDER", help="the folder to write Hugging Face weights to"
    )
    parser.add_argument("--checkpoint", default="best", help=cli.CHECKPOINT_HELP)
    args = cli.parse_args(parser)
    if args.huggingface:
        if args.config or args.workdir or args.classes or args.overrides:
            raise UserError("--huggingface uses the config and classes of the run folder; leave other options out")
        export_run(args.source, args.checkpoint, args.huggingface)
    elif args.config and args.workdir:
        config = config_lib.load(args.config)
        config_lib.override(config, args.overrides)
        import_weights(args.source, config, args.workdir, args.classes)
    else:
        raise UserError("say what to write: --config FILE and --workdir FOLDER, or --huggingface FOLDER")


def export_run(workdir: Path, checkpoint: str, out: Path) -> None:
    """Writes a run's weights in Hugging Face's format."""
    run = folder.open_run(workdir, checkpoint)
    readers = run.task.export(out, run.params)
    print(f"{out}: weights of step {run.step:,} for transformers' {readers}")


def import_weights(source: Path, config, workdir: Path, class_names: str | None) -> None:
    """Writes published weights as a run folder at step 0."""
    if workdir.exists() and any((workdir / name).exists() for name in ("config.json", "checkpoints")):
        raise UserError(f"'{workdir}' already holds a run; choose another --workdir")
    weights = published.read(source, config.model, (*config.data.image_size, config.data.channels))
    classes = _classes(weights, class_names)
    experiment = Experiment.classifier(config, classes)
    converted, report = load(experiment.create_state(), weights, config)
    checkpoints = Checkpoints(workdir, config.best_metric)
    checkpoints.save_weights(converted)
    checkpoints.close()
    folder.write_description(workdir, experiment)
    for line in report:
        print(line)
    print(f"{workdir}: {config.model.name} of {len(classes)} classes, from {source}")


def _classes(weights, names):
    if not weights.num_classes:
        raise UserError(f"'{weights.source}' has no head to evaluate; train one from it with --config.init_from")
    if names is None:
        return weights.classes or tuple(str(i) for i in range(weights.num_classes))
    classes = tuple(names.split(","))
    if len(classes) != weights.num_classes:
        raise UserError(f"--classes names {len(classes)} classes, '{weights.source}' has {weights.num_classes}")
    return classes


if __name__ == "__main__":
    cli.run(main)
