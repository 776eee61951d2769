"""Every field refuses what it cannot be, in one line, before anything is written."""

import pytest

from attnjax import config as config_lib
from attnjax import models
from attnjax.config import ranges
from attnjax.errors import UserError
from attnjax.runs import loop

BAD = [
    ("optimizer.clip_norm", "-1.0", r"^optimizer\.clip_norm=-1\.0: it should be from 0 to 1e\+30$"),
    ("optimizer.learning_rate", "-1", "it should be from 0"),
    ("optimizer.learning_rate", "1e999", "learning_rate=inf: it should be from 0"),
    ("optimizer.boundaries", "('a',)", r"^optimizer\.boundaries=\('a',\): of a: it should be 1 or more$"),
    ("optimizer.name", "sdg", r"optimizer\.name=sdg: did you mean 'sgd'\? Known: adam, adamw, lamb, sgd"),
    ("ema_decay", "1.5", "it should be from 0 and below 1"),
    ("ema_decay", "1", "it should be from 0 and below 1"),
    ("seed", str(2**32 + 7), "it should be at most 4,294,967,295"),
    ("seed", "-1", "0 or more"),
    ("seed", "1" + 20 * "0", "at most"),
    ("seed", 5000 * "1", "expected int, like 0"),
    ("epochs", 400 * "1", "expected float, like 10.0"),
    ("batch_size", "0", r"^batch_size=0: it should be 1 or more$"),
    ("eval_batch_size", "0", "1 or more"),
    ("log_every", "0", r"log_every=0: it should be 1 or more"),
    ("keep_checkpoints", "0", "1 or more"),
    ("data.image_size", "()", r"data\.image_size=\(\): it should have 2 values"),
    ("data.image_size", "(8,0)", r"data\.image_size=\(8, 0\): of 0: it should be 1 or more"),
    ("data.train", "", r"data\.train=: it should be a name, not empty"),
    ("data.source", 3000 * "é", r"one line of UTF-8, of at most 255 bytes"),
    ("data.source", "\udce9", r"one line of UTF-8, of at most 255 bytes"),
    ("data.std", "(0.0,)", r"data\.std=\(0\.0,\): of 0.0: it should be from 1e-06 to 1000"),
    ("task", "clasification", "task=clasification: did you mean 'classification'"),
    ("task", "translation", "which a config of this task needs"),
    ("model.patch_size", "0", r"model\.patch_size=0: it should be 1 or more"),
    ("precision", "bf16", r"precision=bf16: .*Known: auto, bfloat16, float32"),
    ("model.drop_path", "1.0", "it should be from 0 and below 1"),
    ("model.depth", "10000000", "at most 1,000"),
]


@pytest.mark.parametrize(("path", "text", "message"), BAD, ids=[f"{path}={text[:20]}" for path, text, _ in BAD])
def test_a_value_out_of_range_says_what_would_be_right(path, text, message, make_config):
    with pytest.raises(UserError, match=message) as raised:
        config_lib.override(make_config(), [(path, text)])
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 250


def test_a_typo_that_used_to_be_found_when_the_step_was_compiled():
    config = config_lib.translation()
    with pytest.raises(UserError, match="smoothing_form=fairsq: did you mean 'fairseq'"):
        config_lib.override(config, [("smoothing_form", "fairsq")])


def test_defaults_and_published_sizes_are_in_range():
    for name, default in config_lib.DEFAULTS.items():
        config_lib.check(default())
        assert default().task == name
    for name, row in models.MODELS.items():
        for size in row.sizes:
            config = config_lib.classification()
            config.model = models.fields(name, size)
            config_lib.check(config)


def test_every_number_of_our_models_has_a_range():
    for name, row in models.MODELS.items():
        for size in [*row.sizes][:1] or [None]:
            if name != "captioner":
                for field, value in models.fields(name, size).items():
                    first = value[0] if isinstance(value, tuple) and value else value
                    assert type(first) not in (int, float) or field in ranges.MODEL_RULES, f"{name}.{field}"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scan": "no"}, r"model\.scan=no: it should be true or false"),
        ({"depth": (2,)}, r"model\.depth=\(2,\): it should be 0 or more"),
        ({"depth": 1.5}, r"model\.depth=1\.5: it should be 0 or more"),
        ({"dropout": "0.1"}, r"model\.dropout=0\.1: it should be from 0 and below 1"),
    ],
)
def test_a_config_file_s_model_has_the_types_of_its_fields(fields, message, make_config):
    with pytest.raises(UserError, match=message):
        config_lib.check(make_config(**fields))
    config = make_config()
    config.model = models.fields("swin", "T", num_heads=3)
    with pytest.raises(UserError, match=r"model\.num_heads=3: it should have 1 to 1,000 values"):
        config_lib.check(config)


def test_a_model_of_one_s_own_may_give_a_name_another_meaning():
    model = config_lib.classification().model
    with model.unlocked():
        model.update({"name": "mine.py:Mine", "width": 0.5, "depth": -3})
    ranges.check_model(model, "model.")
    model.width = float("nan")
    with pytest.raises(UserError, match=r"model\.width=nan"):
        ranges.check_model(model, "model.")


# The fuzz

TEXTS = ["0", "-1", "1e400", "nan", "inf", "1" + 30 * "0", "0.5", "''", "", "()", "(0,)", "('a',)", "(1,2,3,4)"]
TEXTS += ["((1,),)", "None", "true", "x" * 5000, "ü" * 200, "\u2028", "a\nb", "\udce9", "(" * 500]


def configs():
    """Returns a config of images and one of captions, which together have all fields, with the smallest of models."""
    images, text, captions = (default() for default in config_lib.DEFAULTS.values())
    images.model = models.fields("vit", patch_size=4, width=8, depth=1, num_heads=2, mlp_dim=8)
    images.data.source, images.data.image_size = "tfds:digits", (8, 8)
    text.model = models.fields("transformer", width=8, encoder_depth=1, decoder_depth=1, num_heads=2, mlp_dim=8)
    captions.model = models.fields("captioner", encoder=images.model.to_dict(), text=text.model.to_dict())
    return images, captions


def overridden(config):
    """Yields (path, text) of each override that is taken, while it holds; all others are refused in one short line."""
    for path, value in config_lib.flat(config).items():
        group = config
        for name in path.split(".")[:-1]:
            group = group[name]
        for text in TEXTS:
            try:
                config_lib.override(config, [(path, text)])
                yield path, text
            except UserError as error:
                lengths = [len(line) for line in str(error).splitlines()]
                assert len(lengths) == 1 and lengths[0] < 600, (path, text[:20])
            group[path.split(".")[-1]] = value


def test_any_override_is_taken_or_refused_in_one_line():
    before = configs()[1]
    config = before.copy_and_resolve_references()
    taken = list(overridden(config))
    assert config == before and 200 < len(taken) < 600
    for text in ("nan", "inf", "1e400"):  # as text they may be names
        assert not [path for path, given in taken if given == text and type(config_lib.flat(config)[path]) is not str]


@pytest.mark.thorough
def test_what_is_taken_can_begin_or_is_refused_before_the_folder_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_train", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    config, begun, refused, failed = configs()[0], [], [], []
    for path, text in overridden(config):
        try:
            loop.train(config, tmp_path / "run")
            begun.append(path)
        except UserError as error:
            (refused if len(str(error).splitlines()) == 1 else failed).append((path, text[:20]))
        except Exception as error:
            failed.append((path, text[:20], repr(error)[:200]))
    assert not failed
    print(f"\n{len(begun)} overrides begin, {len(refused)} are refused when the data are opened")
    assert begun and [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]
