"""TFDS data sets: prepared once as array_record files, read without TensorFlow."""

import contextlib
import difflib
import importlib.util
import io
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from attnjax.data import builders
from attnjax.errors import UserError, nearest

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_NAME = re.compile(r"(?P<name>\w+)(/(?P<config>[\w.+-]+))?(:(?P<version>\d+\.\d+\.\d+))?")


def default_data_dir(data_dir: str = "") -> Path:
    """Returns `data_dir`, or if empty TFDS's default: `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def open_prepared(dataset: str, data_dir: str = "") -> "tfds.core.DatasetBuilder":
    """Opens `NAME[/CONFIG][:VERSION]` as a read-only TFDS builder; our own data sets are prepared on first use.

    Raises:
        UserError: an unknown name, config or version; a data set of TFDS that is not prepared as array_record.
    """
    name, config, version = _parse(dataset)
    root = default_data_dir(data_dir)
    if name in builders.names():
        path = _prepare_own(name, config, version, root)
    else:
        path = _find(dataset, name, config, version, root)
    return _open(path)


def prepare(dataset: str, data_dir: str = "") -> "tfds.core.DatasetBuilder":
    """Prepares `NAME[/CONFIG][:VERSION]`, TFDS's or ours, as array_record and returns its read-only TFDS builder.

    Raises:
        UserError: an unknown name, config or version; a data set of TFDS while TensorFlow is not installed.
    """
    import tensorflow_datasets as tfds

    name, config, version = _parse(dataset)
    root = default_data_dir(data_dir)
    if name in builders.names():
        return _open(_prepare_own(name, config, version, root))
    if name not in tfds.list_builders(with_community_datasets=False):
        raise UserError(_unknown(name))
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"preparing TFDS's '{name}' needs TensorFlow, for this step only: run `pip install tensorflow-cpu`, "
            "then repeat the command"
        )
    try:
        builder = tfds.builder(dataset, data_dir=root)
    except (AssertionError, ValueError) as error:  # the message lists the known versions and configs
        raise UserError(str(error).replace("\n", " ")) from error
    if not Path(builder.data_path).exists():
        builder.download_and_prepare(file_format="array_record")
    return _open(builder.data_path)


def _open(path: str | os.PathLike) -> "tfds.core.DatasetBuilder":
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(path)
    file_format = builder.info.file_format.value
    if file_format != "array_record":
        raise UserError(
            f"{path} contains {file_format} files, which cannot be read without TensorFlow: prepare the data set as "
            f"array_record in another folder with `{_command(builder.name, 'ANOTHER_DIR')}`"
        )
    return builder


def _parse(dataset: str) -> tuple[str, str | None, str | None]:
    match = _NAME.fullmatch(dataset)
    if not match:
        raise UserError(f"'{dataset}' is not a TFDS name: write NAME[/CONFIG][:VERSION], such as mnist:3.0.1")
    return match["name"], match["config"], match["version"]


def _command(dataset: str, data_dir: str | Path) -> str:
    return f"python experiments/prepare.py {dataset} --data_dir {data_dir}"


def _unknown(name: str) -> str:
    import tensorflow_datasets as tfds

    close = difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False), n=1)
    hint = f"did you mean TFDS's '{close[0]}'? Ours: {', '.join(builders.names())}" if close else ""
    return f"unknown data set 'tfds:{name}': {hint or nearest(name, builders.names())}"


def _prepare_own(name: str, config: str | None, version: str | None, root: Path) -> Path:
    import tensorflow_datasets as tfds

    builder_class = builders.load(name)
    configs = tuple(builder_class.builder_configs)
    if config not in (None, *configs):
        known = nearest(str(config), configs) if configs else "it has none"
        raise UserError(f"our data set '{name}' has no config '{config}': {known}")
    if version not in (None, str(builder_class.VERSION)):
        raise UserError(f"our data set '{name}' has one version: write tfds:{name}")
    config = config or next(iter(configs), None)
    path = root / name / (config or "") / str(builder_class.VERSION)
    if not path.exists():
        tfds.disable_progress_bar()  # these take seconds
        builder = builder_class(config=config, data_dir=root, file_format="array_record")
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download, but nothing is downloaded
                builder.download_and_prepare()
        except OSError:
            # Another process may have finished first; TFDS moves only complete data sets into place.
            if not path.exists():
                raise
    return path


def _find(dataset: str, name: str, config: str | None, version: str | None, root: Path) -> Path:
    import tensorflow_datasets as tfds

    folder = root / name / (config or "")
    versions = {path.name: path for path in _prepared_versions(folder)}
    if version in versions or (versions and version is None):
        return versions[version or max(versions, key=_version_key)]
    if name not in tfds.list_builders(with_community_datasets=False) and not (root / name).exists():
        raise UserError(_unknown(name))
    configs = sorted({path.parents[1].name for path in folder.glob("*/*/dataset_info.json")})
    if configs:
        raise UserError(f"'{name}' has configs, write tfds:{name}/CONFIG with one of: {', '.join(configs)}")
    raise UserError(f"'{dataset}' is not prepared in {root}: run `{_command(dataset, root)}` once")


def _prepared_versions(folder: Path) -> list[Path]:
    return [path.parent for path in folder.glob("*/dataset_info.json") if re.fullmatch(r"[\d.]+", path.parent.name)]


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
