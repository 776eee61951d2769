"""What is refused before anything is written or trained."""

import pytest

from attnjax import config as config_lib
from attnjax import models
from attnjax.errors import UserError
from attnjax.runs.experiment import Experiment
from attnjax.tasks.classification import ClassificationTask
from attnjax.training import devices

RNN = models.fields("rnn", embedding=8, width=8)
BAD = {
    "unknown task": ({"task": "translate"}, "task=translate: did you mean 'translation'"),
    "another task": ({"task": "classification"}, "there is no batch_size, which a config of this task needs"),
    "metric of no task": ({"best_metric": "blue"}, "best_metric=blue: did you mean 'bleu'"),
    "three languages": ({"data.languages": ("en", "de", "fr")}, "it should have 2 values"),
    "unknown language": ({"data.languages": ("en", "ded")}, "no language 'ded' in split 'train': did you mean 'de'"),
    "unknown split": ({"data.train": "tran"}, "did you mean 'train'"),
    "unknown validation": ({"data.validation": "vals"}, "did you mean 'val'"),
    "no vocabulary": ({"data.vocabulary.size": 5000}, "5000 is too large for the sentences of both languages"),
    "kind of vocabulary": ({"data.vocabulary.kind": "bpo"}, "did you mean 'bpe'"),
    "sampling": ({"data.sampling.alpha": 2.0}, "data.sampling.alpha=2.0: it should be from 0 to 1"),
    "method": ({"data.batching.method": "pac"}, "did you mean 'pack'"),
    "pairs too long": ({"data.batching.max_length": 1}, "all of the 250 pairs are longer than max_length 1"),
    "budget": ({"data.batching.max_tokens": 100}, "max_tokens is 100: it should be 256 or more"),
    "no parts": ({"accumulate": 0}, "accumulate=0: it should be 1 or more"),
    "seed": ({"seed": -1}, "seed=-1: it should be 0 or more"),
    "image model": ({"model": models.fields("vit", "S/16")}, "model 'vit' is not for this task. Known: rnn, transf"),
    "model's length": ({"data.batching.max_length": 65}, "max_length=65 is more than model.max_length=64"),
    "packed RNN": ({"model": RNN, "data.batching.method": "pack"}, "pack needs a transformer: a rnn reads on"),
    "search": ({"decoding.length_penalty": "gmnt"}, "length_penalty=gmnt: did you mean 'gnmt'"),
    "beam": ({"decoding.beam_size": 0}, "decoding.beam_size=0: it should be 1 or more"),
    "extra length": ({"decoding.extra_length": -1}, "decoding.extra_length=-1: it should be 0 or more"),
    "BLEU": ({"bleu.tokenize": "14a"}, "bleu.tokenize=14a: did you mean '13a'"),
    "evaluation's budget": ({"data.eval_tokens": 0}, "data.eval_tokens=0: it should be 1 or more"),
}


def changed(config, fields):
    for path, value in fields.items():
        *groups, name = path.split(".")
        group = config
        for part in groups:
            group = group[part]
        if name == "model":
            with group.unlocked():
                group.model = value
        else:
            group[name] = value
    return config


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_one_line(case, make_config, tmp_path):
    fields, message = BAD[case]
    with pytest.raises(UserError) as error:
        experiment = Experiment.from_config(changed(make_config(), fields), tmp_path)
        assert experiment.steps and experiment.task
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "translation"}, "there is no smoothing_form, which a config of this task needs"),
        ({"best_metric": "bleu"}, "best_metric=bleu: Known: accuracy, loss"),
        ({"model": models.fields("transformer", "tiny")}, "model 'transformer' is not for this task. Known: mlp"),
        ({"batch_size": 32, "accumulate": 3}, "batch_size=32 does not divide over 8 devices in 3 parts"),
    ],
)
def test_what_a_classifier_cannot_be(fields, message, tmp_path):
    config = config_lib.classification()
    config.model, config.data.source = models.fields("mlp"), "tfds:digits"
    config.data.image_size, config.data.channels = (8, 8), 1
    with pytest.raises(UserError) as error:
        assert Experiment.from_config(changed(config, fields), tmp_path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_validation_sentence_beyond_the_models_limit_is_named_before_training(make_config, tmp_path, numbers):
    config = make_config()
    config.model.max_length = config.data.batching.max_length = 8
    with pytest.raises(UserError, match=r"val.en line \d+ has \d+ subwords, more than the model's limit of 8"):
        Experiment.from_config(config, tmp_path)
    config.data.validation = ""
    assert Experiment.from_config(config, tmp_path).task.validate(None) == {}


def test_mixed_images_are_remarked():
    config = config_lib.classification()
    config.model, config.data.augment.mixup = models.fields("mlp"), 0.2
    header = ClassificationTask.with_classes(config, devices.make(), ("a", "b")).header
    assert "mixed in pairs: training's loss and accuracy are of these" in header[-1]
