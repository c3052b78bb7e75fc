"""The text under which a published reward reads its input. It is its authors' and no part of this project: the entry names their file."""

import ast
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flow_factory.hparams import RewardArguments
from flow_factory.utils.errors import UserError

logger = logging.getLogger(__name__)
KEY = "instruction"
PROMPT = "{text_prompt}"
"""Where the prompt goes in such a text."""


@dataclass(frozen=True)
class Instruction:
    """What is known of a published text."""

    where: str
    """The file of the authors' repository that has it."""
    names: Sequence[str]
    """The constants of that file whose texts follow each other."""
    tokens: Sequence[str]
    """The tokens at whose places the scores are read, in this order."""
    sha256: str
    """Of the published text, in UTF-8."""

    def read(self, config: RewardArguments) -> str:
        """The text that the entry's file has: all of it, or of a Python file, which is read and never run, the constants `names`.

        Raises:
            UserError: the entry names no file; or that cannot be read, or is not that text.
        """
        where = f"reward {config.name!r}: {KEY}"
        if KEY not in config.extra_kwargs:
            raise UserError(
                f"{where} is missing: the scores depend on the authors' instruction, which is not part of this project; "
                f"save {self.where}, and write {KEY}: its path"
            )
        path = Path(str(config.extra_kwargs[KEY])).expanduser()
        try:
            text = path.read_text(encoding="utf-8")
            text = self._constants(text) if path.suffix == ".py" else text
        except (OSError, UnicodeDecodeError, SyntaxError, KeyError) as error:
            raise UserError(f"{where}: {str(path)!r} cannot be read: {error}; it should be {self.where}, or a text file") from error
        places = [text.find(part) for part in self.tokens]
        if any(text.count(part) != 1 for part in (PROMPT, *self.tokens)) or places != sorted(places):
            raise UserError(f"{where}: {str(path)!r} must have {', '.join((PROMPT, *self.tokens))} once each, the tokens in this order")
        return text

    def compare(self, config: RewardArguments, text: str) -> None:
        """Warns of a text that is not the published one."""
        if hashlib.sha256(text.encode()).hexdigest() != self.sha256:
            where, file = f"reward {config.name!r}: {KEY}", config.extra_kwargs[KEY]
            logger.warning("%s: %s is not the published text (sha256); its scores do not compare with published ones", where, file)

    def _constants(self, source: str) -> str:
        found: dict[str, str] = {}
        for line in ast.parse(source).body:
            if isinstance(line, ast.Assign) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str):
                found |= {target.id: line.value.value for target in line.targets if isinstance(target, ast.Name)}
        return "".join(found[name] for name in self.names)
