"""The weights of a run that has ended, with a model card, in the folder `hub`, and on the hub."""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING

from flow_factory.reporting.model_card import Published, write_card
from flow_factory.runs.provenance import prompts_of
from flow_factory.training.kept_rollouts import FOLDER as ROLLOUTS
from flow_factory.utils.errors import UserError
from flow_factory.utils.hub import push
from flow_factory.utils.terminal import note

if TYPE_CHECKING:
    from flow_factory.training.run import Run

logger = logging.getLogger(__name__)
KEY = "log.push_to_hub"


def publish(run: Run) -> None:
    """Uploads the best checkpoint by `log.keep_best`, or the last. A failure is told: the run is complete, and its folder has all."""
    config = run.context.config
    repo, checkpoint = config.log.push_to_hub, run.interventions.best or run.checkpoint()
    if repo is None:
        return
    folder = run.folder / "hub"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("state", ROLLOUTS, ".*"))
    write_card(Published(config, folder, run.folder, checkpoint.name, repo, prompts_of(config)))
    try:
        note(f"uploaded: {push(folder, repo, KEY, private=True)}")
    except UserError as error:
        logger.warning("%s; upload it later: hf upload %s %s", error, repo, folder)
