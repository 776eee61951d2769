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
from attnjax.files import reason

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_NAME = re.compile(r"(?P<name>\w+)(/(?P<config>[\w.+-]+))?(:(?P<version>\d+\.\d+\.\d+))?")


def open_prepared(dataset: str, data_dir: str = "") -> "tfds.core.DatasetBuilder":
    """Opens `NAME[/CONFIG][:VERSION]` as a read-only TFDS builder; our own data sets are prepared on first use.

    `data_dir` is by default TFDS's: `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`. UserError if the name, config or
    version is unknown, or TFDS's data set is not prepared as array_record.
    """
    name, config, version, root = _parse(dataset, data_dir)
    own = name in builders.names()
    return _open(_prepare_own(name, config, version, root) if own else _find(dataset, name, config, version, root))


def prepare(dataset: str, data_dir: str = "") -> "tfds.core.DatasetBuilder":
    """Prepares `NAME[/CONFIG][:VERSION]`, TFDS's or ours, as array_record and returns its read-only TFDS builder.

    UserError if the name, config or version is unknown, or TFDS's data set needs TensorFlow and it is not installed.
    """
    import tensorflow_datasets as tfds

    name, config, version, root = _parse(dataset, data_dir)
    if name in builders.names():
        return _open(_prepare_own(name, config, version, root))
    _check_known(name)
    if importlib.util.find_spec("tensorflow") is None:
        install = "run `pip install tensorflow-cpu`, then repeat the command"
        raise UserError(f"preparing TFDS's '{name}' needs TensorFlow, for this step only: {install}")
    try:
        builder = tfds.builder(dataset, data_dir=root)
    except (AssertionError, ValueError) as error:  # the message lists the known versions and configs
        raise UserError(str(error).replace("\n", " ")) from error
    if not Path(builder.data_path).exists():
        try:
            builder.download_and_prepare(file_format="array_record")
        except _FAILURES as error:
            raise _unprepared(name, root, error) from error
    return _open(builder.data_path)


# Of a full disk, the writer of records tells as a RuntimeError.
_FAILURES = (OSError, RuntimeError)


def _unprepared(name: str, root: Path, error: Exception) -> UserError:
    return UserError(f"cannot prepare '{name}' in {root}: {reason(error)}")


def _open(path: str | os.PathLike) -> "tfds.core.DatasetBuilder":
    import tensorflow_datasets as tfds

    again = "delete this folder, and prepare the data set again with experiments/prepare.py"
    try:
        builder = tfds.builder_from_directory(path)
    except Exception as error:  # which one depends on what is damaged
        raise UserError(f"the description of the data set in {path} is damaged ({reason(error)}): {again}") from error
    file_format = builder.info.file_format.value
    if file_format != "array_record":
        raise UserError(
            f"{path} contains {file_format} files, which cannot be read without TensorFlow: prepare the data set as "
            f"array_record in another folder with `{_command(builder.name, 'ANOTHER_DIR')}`"
        )
    for file in (Path(file) for split in builder.info.splits.values() for file in split.filepaths):
        if not file.is_file():
            raise UserError(f"{file} is missing: {again}")
    return builder


def _parse(dataset: str, data_dir: str) -> tuple[str, str | None, str | None, Path]:
    match = _NAME.fullmatch(dataset)
    if not match:
        raise UserError(f"'{dataset}' is not a TFDS name: write NAME[/CONFIG][:VERSION], such as mnist:3.0.1")
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    return match["name"], match["config"], match["version"], root


def _command(dataset: str, data_dir: str | Path) -> str:
    return f"python experiments/prepare.py {dataset} --data_dir {data_dir}"


def _check_known(name: str) -> None:
    import tensorflow_datasets as tfds

    # Ours are among TFDS's once they are loaded.
    known = set(tfds.list_builders(with_community_datasets=False)) - set(builders.names())
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean TFDS's '{close[0]}'? Ours: {', '.join(builders.names())}" if close else ""
        raise UserError(f"unknown data set 'tfds:{name}': {hint or nearest(name, builders.names())}")


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
        except _FAILURES as error:
            # Another process may have finished first; TFDS moves only complete data sets into place.
            if not path.exists():
                raise _unprepared(name, root, error) from error
    return path


def _find(dataset: str, name: str, config: str | None, version: str | None, root: Path) -> Path:
    folder = root / name / (config or "")
    folders = [path.parent for path in folder.glob("*/dataset_info.json")]
    versions = {path.name: path for path in folders if re.fullmatch(r"\d+(\.\d+)*", path.name)}
    if version in versions or (versions and version is None):
        return versions[version or max(versions, key=lambda found: [int(part) for part in found.split(".")])]
    if not (root / name).exists():
        _check_known(name)
    configs = sorted({path.parents[1].name for path in folder.glob("*/*/dataset_info.json")})
    if configs:
        raise UserError(f"'{name}' has configs, write tfds:{name}/CONFIG with one of: {', '.join(configs)}")
    raise UserError(f"'{dataset}' is not prepared in {root}: run `{_command(dataset, root)}` once")
