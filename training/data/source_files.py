"""The files that a source is read from, for those who ask whether it has changed."""

from pathlib import Path

from training.data.completejourney import find_package_data
from training.data.files import NAMES
from training.preset.data import DataConfig


def source_files(config: DataConfig) -> dict[str, Path]:
    """Files by their names below the source: of `parquet` all that make up a table, also in folders of it.

    Raises:
        FileNotFoundError: the package of `completejourney` is not installed.
    """
    if config.path is None:
        return {file.name: file for file in sorted(find_package_data().glob("*.parquet"))}
    folder = Path(config.path)
    tables = [path for path in sorted(folder.glob("*")) if path.name.partition(".")[0] in NAMES]
    files = [file for table in tables for file in (sorted(table.rglob("*")) if table.is_dir() else [table])]
    return {str(file.relative_to(folder)): file for file in files if file.is_file()}
