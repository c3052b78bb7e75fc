"""The hub's cache as a download leaves it."""

import shutil
from pathlib import Path


def cached(name: str, folder: Path, cache: Path) -> Path:
    """Puts a copy of a folder into the cache under a hub name; returns the snapshot."""
    repository, commit = cache / f"models--{name.replace('/', '--')}", "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    return shutil.copytree(folder, repository / "snapshots" / commit)
