import json
from pathlib import Path

import pytest

from attnjax import __version__, models
from attnjax import config as config_lib
from attnjax.errors import UserError


@pytest.fixture
def config():
    config = config_lib.classification()
    config.model = models.fields("mlp")
    return config


def test_overrides_are_typed(config):
    config_lib.override(
        config,
        [
            ("batch_size", "64"),
            ("epochs", "3"),
            ("optimizer.learning_rate", "1e-4"),
            ("data.augment.flip", "true"),
            ("data.image_size", "(28, 30)"),
            ("data.mean", "0.1,0.2,0.3"),
            ("data.source", "folder:a=b"),
            ("model.widths", "(7,)"),
        ],
    )
    assert config.batch_size == 64 and config.epochs == 3.0 and config.optimizer.learning_rate == 1e-4
    assert config.data.augment.flip is True and config.data.image_size == (28, 30)
    assert config.data.mean == (0.1, 0.2, 0.3) and config.data.source == "folder:a=b" and config.model.widths == (7,)


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("optimizer.learning_rat", "1", r"config.optimizer has no field 'learning_rat', did you mean 'learning_rate'"),
        ("batchsize", "1", "did you mean 'batch_size'"),
        ("batch_size", "1.5", r"--config.batch_size=1.5: expected int, like 128"),
        ("batch_size", "many", "expected int"),
        ("epochs", "ten", "expected float, like 10.0"),
        ("data.augment.flip", "yes", "expected bool, like False"),
        ("data.image_size", "28", "expected tuple"),
        ("data.image_size", "(28.5, 28)", "expected int"),
        ("optimizer", "sgd", "this is a group; its fields: b1"),
        ("seed.x", "1", "config.seed is a value, it has no fields"),
        ("model.depth", "3", "config.model has no field 'depth'"),
    ],
)
def test_a_wrong_override_says_what_would_be_right(config, path, text, message):
    with pytest.raises(UserError, match=message):
        config_lib.override(config, [(path, text)])


def test_a_config_of_another_version_is_one_clear_line(config, tmp_path):
    path = tmp_path / "config.json"
    config_lib.save(config, path)
    saved = json.loads(path.read_text())
    assert saved["attnjax"] == __version__
    for version, writer in (("0.0.1", "attnjax 0.0.1"), (None, "an unknown version of attnjax")):
        saved.pop("attnjax", None)
        path.write_text(json.dumps(saved | ({"attnjax": version} if version else {})))
        with pytest.raises(UserError, match=rf"was written by {writer}, which this one, {__version__}, cannot open"):
            config_lib.read(path)


def test_saved_and_read_back_is_the_same(config, tmp_path):
    config_lib.save(config, tmp_path / "config.json")
    assert config_lib.read(tmp_path / "config.json") == config
    assert config_lib.differences(config_lib.read(tmp_path / "config.json"), config) == []


def test_fields_that_came_later_than_a_run_have_their_defaults(config, tmp_path):
    path = tmp_path / "config.json"
    config_lib.save(config, path)
    saved = json.loads(path.read_text())
    del saved["accumulate"], saved["data"]["augment"]["erase"], saved["model"]["widths"]
    path.write_text(json.dumps(saved))
    assert config_lib.differences(config_lib.read(path), config) == []
    del saved["model"]["name"]
    path.write_text(json.dumps(saved))
    with pytest.raises(UserError, match=r"config\.json' is damaged"):
        config_lib.read(path)


def test_differences_name_fields_and_leave_out_the_cadence(config):
    other = config.copy_and_resolve_references()
    other.log_every, other.optimizer.learning_rate = 7, 0.5
    assert config_lib.differences(config, other) == ["optimizer.learning_rate: 0.001 -> 0.5"]


def test_config_files_take_arguments(tmp_path):
    path = tmp_path / "c.py"
    path.write_text(
        "from attnjax import config\n"
        "def get_config(width=8, name='a'):\n"
        "    c = config.classification(); c.seed = width; c.data.source = name; return c\n"
    )
    assert config_lib.load(str(path)).seed == 8
    assert config_lib.load(f"{path}:width=9,name=b").seed == 9
    with pytest.raises(UserError, match="takes no argument 'widht', did you mean 'width'"):
        config_lib.load(f"{path}:widht=9")
    with pytest.raises(UserError, match="expected int"):
        config_lib.load(f"{path}:width=x")
    with pytest.raises(UserError, match="no config file"):
        config_lib.load(str(tmp_path / "missing.py"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("c.epochss = 3.0", r"config has no field 'epochss', did you mean 'epochs'"),
        ("c.data.augment.flop = True", r"config\.data\.augment has no field 'flop', did you mean 'flip'"),
        ("c.data = {'tran': 'train'}", r"config\.data has no field 'tran', did you mean 'train'"),
        ("c.epochs = 'ten'", r"line 4: .*'epochs'.*<class 'float'>"),
        ("c.otpimizer.clip_norm = 1.0", r"line 4: .*Did you mean \"optimizer\""),
        ("c.task = 'clasification'", r"returns none of attnjax\.config\.classification\(\), "),
        ("c = None", r"returns none of attnjax\.config\.classification\(\), "),
    ],
)
def test_a_wrong_line_of_a_config_file_is_named(tmp_path, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    Path("c.py").write_text(
        "from attnjax import config\ndef get_config():\n    c = config.classification()\n    "
        + line
        + "\n    return c\n"
    )
    with pytest.raises(UserError, match=message) as raised:
        config_lib.load("c.py")
    assert str(raised.value).startswith("config 'c.py'") and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def get_config():\n    return None + 1\n", r"c\.py', line 2: TypeError: unsupported operand"),
        ("def get_config(:\n", r"c\.py', line 1: SyntaxError: invalid syntax"),
        ("import nothing_such\n", r"c\.py', line 1: ModuleNotFoundError: No module named 'nothing_such'"),
        ("def get_config():\n    return {}['a']\n", r"c\.py', line 2: KeyError: a"),
    ],
)
def test_an_error_of_a_config_file_names_its_line(tmp_path, body, message):
    (tmp_path / "c.py").write_text(body)
    with pytest.raises(UserError, match=message):
        config_lib.load(str(tmp_path / "c.py"))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return None", "should return a list of overrides, as attnjax.sweeps.seeds"),
        ("return [3]", "should return a list of overrides"),
        ("return sweeps.zip(sweeps.seeds(2), sweeps.seeds(3))", r"line 3: ValueError: zip\(\) argument 2 is longer"),
    ],
)
def test_a_wrong_sweep_is_named(tmp_path, body, message):
    (tmp_path / "c.py").write_text(f"from attnjax import sweeps\ndef sweep():\n    {body}\n")
    with pytest.raises(UserError, match=message):
        config_lib.load_sweep(str(tmp_path / "c.py"))


def test_lists_and_numpys_numbers_are_read_back_as_they_were(tmp_path):
    """So that a config that has them can be resumed by its own command."""
    file = tmp_path / "lists.py"
    file.write_text(
        "import numpy as np\nfrom attnjax import config as config_lib, models\n"
        "def get_config():\n"
        "    config = config_lib.classification()\n"
        "    config.model = models.fields('mlp', widths=[2, 2], dropout=np.float32(0.5))\n"
        "    config.data.image_size = [8, 8]\n"
        "    return config\n"
    )
    config = config_lib.load(str(file))
    config_lib.save(config, tmp_path / "config.json")
    assert config_lib.differences(config_lib.read(tmp_path / "config.json"), config) == []
    assert config.model.widths == (2, 2) and config.data.image_size == (8, 8)
