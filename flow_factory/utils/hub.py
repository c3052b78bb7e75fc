"""Tells folders from hub names, and tests once whether the hub is reachable, because libraries retry five times."""

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import ModelCard, constants, create_repo, get_token, model_info, try_to_load_from_cache, upload_folder
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from flow_factory.utils.errors import UserError
from flow_factory.utils.registry import nearest

PATIENCE = 5
"""Timeout in seconds of the connection to the hub."""


def require_source(name: str, key: str, file: str, kind: type[UserError] = UserError, now: bool = True) -> None:
    """Args:
        file: a file of the repository, which may be in the hub's cache.
        now: whether the hub must be reachable if the file is not cached.

    Raises:
        UserError: of the given kind: `name` is neither a folder nor a hub name that can be read.
    """
    path = Path(name)
    if path.is_dir():
        return
    if os.path.lexists(path):
        raise kind(f"{key}: {name} is a file or a broken link; it must be a folder")
    if looks_local(name):
        there = [str(p) for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        raise kind(f"{key}: {name!r} is neither a folder nor a hub name such as black-forest-labs/FLUX.1-dev.{nearest(name, there)}")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise kind(f"{key}: {name!r} is neither a folder nor a hub name: {str(error).partition(':')[0]}") from error
    if now and cached(name, file) is None and (reason := unreachable()):
        raise kind(f"{key}: the hub name (there is no such folder) {name!r} is not in the hub's cache, and {reason}")


def cached(name: str, file: str) -> Path | None:
    """The folder of the hub's cache that has this file of a repository; None if it is not cached."""
    found = try_to_load_from_cache(name, file)
    return Path(found).parent if isinstance(found, str) else None


def looks_local(name: str) -> bool:
    """Whether a name was meant as a folder: a hub name has one slash, and the part before it is not a folder here."""
    owner, slash, _ = name.partition("/")
    folder = Path(owner).is_dir() and owner != "diffusers"  # an owner on the hub, and a folder of this repository
    return name.startswith((".", "~")) or name.count("/") != 1 or "\\" in name or not slash or not owner or folder


def unreachable() -> str | None:
    """The reason why the hub is unreachable; None if it is reachable, or behind a proxy and so unknown."""
    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    address = urlsplit(constants.ENDPOINT)
    if address.scheme in getproxies() or address.hostname is None:
        return None
    try:
        socket.create_connection((address.hostname, address.port or 443), PATIENCE).close()
    except OSError as error:
        return f"{address.hostname} cannot be reached ({error.strerror or error})"
    return None


def licence_of(name: str) -> str | None:
    """The licence that the card of a model names: of a folder, of the hub's cache, or where the hub may be asked, of the hub."""
    found = str(Path(name, "README.md")) if Path(name).is_dir() else None
    if found is None and not looks_local(name):
        cached_card = try_to_load_from_cache(name, "README.md")
        found = cached_card if isinstance(cached_card, str) else None
    try:
        if found is not None and Path(found).is_file():
            return ModelCard.load(found).data.license
        if looks_local(name) or Path(name).is_dir() or unreachable() is not None:
            return None
        card = model_info(name).card_data
        return None if card is None else card.license
    except (HfHubHTTPError, OSError, ValueError):
        return None  # the card says then that it is not known


def require_push(repo: str, key: str) -> None:
    """Raises:
    UserError: it is not the name of a repository, the hub is not reachable, or nobody is logged in.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{key}: {repo!r} is not the name of a repository: {str(error).partition(':')[0]}") from error
    if repo.count("/") != 1:
        raise UserError(f"{key}: {repo!r} has no owner; write owner/{repo}")
    if reason := unreachable():
        raise UserError(f"{key}: {repo} cannot be uploaded: {reason}")
    if get_token() is None:
        raise UserError(f"{key}: you are not logged in to the hub; run hf auth login, or set HF_TOKEN")


def push(folder: Path, repo: str, key: str, private: bool = False) -> str:
    """Makes the repository, if it is not there, and uploads a folder as one commit; returns the page's address.

    Raises:
        UserError: the hub refuses it, or the connection is lost; the folder is as it was.
    """
    token = get_token() or ""
    try:
        create_repo(repo, private=private, exist_ok=True)
        upload_folder(repo_id=repo, folder_path=folder, commit_message=f"Weights and card of {folder.name}")
    except (HfHubHTTPError, OSError, ValueError) as error:
        message = " ".join(str(error).split())
        message = (message.replace(token, "***") if token else message)[:300]
        raise UserError(f"{key}: {repo} was not uploaded: {message}; {folder} has all files") from error
    return f"{constants.ENDPOINT}/{repo}"
