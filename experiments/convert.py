"""Converts published weights to a run folder, or a run folder to Hugging Face weights.

python experiments/convert.py WEIGHTS --config configs/X.py --workdir runs/x [--classes cat,dog] [--config.a.b=v]
python experiments/convert.py runs/x --huggingface OUT_FOLDER [--checkpoint best]

WEIGHTS is a .npz (Google), .safetensors or torch file, or a Hugging Face folder. Of a torch file with several state
dicts, FILE:NAME is the one called NAME. The config's model must be the weights' model; every mismatch is listed. How
images are resized and normalised is taken from a preprocessor_config.json or timm's config.json beside the weights,
unless --config.data... says otherwise. A translator's folder must have been written by --huggingface, with its subwords
and settings of beam search. Use the run folder with evaluate.py and predict.py, or --config.init_from.

--huggingface writes a ViT, a Swin, or a Transformer for translation with its subwords (token ids stay the run's). A
model that transformers' class cannot compute is refused: its Marian has norm=post, positions=concatenated and
epsilon=1e-5.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from attnjax import cli
from attnjax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict


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
        from attnjax import config as config_lib

        config = config_lib.load(args.config)
        config_lib.override(config, args.overrides)
        if "name" not in config.model:
            raise UserError(f"config '{args.config}' names no model: set config.model by models.fields")
        given = tuple(path for path, _ in args.overrides)
        import_weights(args.source, config, args.workdir, class_names=args.classes, given=given)
    else:
        raise UserError("say what to write: --config FILE and --workdir FOLDER, or --huggingface FOLDER")


def export_run(workdir: Path, checkpoint: str, out: Path) -> None:
    """Writes a run's weights in Hugging Face's format."""
    from attnjax.runs import folder

    run = folder.open_run(workdir, checkpoint)
    readers = run.task.export(out, run.params)
    print(f"{out}: weights of step {run.step:,} for transformers' {readers}")


def import_weights(
    source: Path, config: "ConfigDict", workdir: Path, *, class_names: str | None, given: tuple[str, ...]
) -> None:
    """Writes published weights as a run folder at step 0; `given` are the fields that stay as they are."""
    from attnjax.runs import folder
    from attnjax.runs.reader import has_checkpoint

    if has_checkpoint(workdir):
        raise UserError(f"'{workdir}' already holds a run; choose another --workdir")
    if config.task == "classification":
        experiment, state, report = _classifier(source, config, class_names, given)
        what = f"{config.model.name} of {len(experiment.task.classes)} classes"
    elif config.task == "translation" and not class_names:
        experiment, state, report = _translator(source, config, given)
        what = f"{config.model.name} for {'-'.join(config.data.languages)}"
    else:
        raise UserError("only image classifiers and translators, which have no --classes, become run folders")
    folder.save_weights(workdir, experiment, state)
    for line in report:
        print(line)
    print(f"{workdir}: {what}, from {source}")


def _classifier(source, config, class_names, given):
    """Returns the experiment, its state with the weights, and a report of what was changed."""
    from attnjax.runs.experiment import Experiment
    from attnjax.runs.initialise import load
    from attnjax.weights import published

    weights = published.read(source, config.model, (*config.data.image_size, config.data.channels), adopt=True)
    adopted = [
        *_adopt(config.model, weights.model_fields, "model", given),
        *_adopt(config.data, weights.image_format, "data", given),
    ]
    experiment = Experiment.classifier(config, _classes(weights, class_names))
    state, report = load(experiment.create_state(), weights, config)
    return experiment, state, [*adopted, *report]


def _translator(source, config, given):
    """Returns the same for a Hugging Face folder of a Transformer."""
    from attnjax.runs.experiment import Experiment, make_devices
    from attnjax.tasks.translation import TranslationTask
    from attnjax.weights import marian_files, transformer

    vocabulary, languages = marian_files.read_subwords(source), marian_files.read_languages(source)
    adopted = [
        *_adopt(config.decoding, marian_files.read_decoding(source), "decoding", given),
        *_adopt(config.data, {"languages": languages} if languages else {}, "data", given),
    ]
    devices = make_devices(config)
    experiment = Experiment(config, devices, TranslationTask.with_vocabulary(config, devices, vocabulary))
    state = experiment.create_state()
    return experiment, state.replace(params=transformer.read(source, experiment.task.objective.model)), adopted


def _adopt(group, fields, where, given):
    """Sets the fields of a group that say how the weights are used, but for those `given`; returns a line on each."""
    report = []
    for name, value in fields.items():
        kept = f"{where}.{name}" in given
        if group[name] != value:
            change = "kept, not" if kept else "->"
            report.append(f"{where}.{name} {group[name]} {change} {value}, as beside the weights")
        if not kept:
            group[name] = value
    return report


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
