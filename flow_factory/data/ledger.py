"""An append-only file of JSON lines that stores results, so that they are computed only once."""

import json
from pathlib import Path
from typing import Any

from flow_factory.utils.errors import file_errors


class Ledger:
    """Results by key.

    A line that cannot be read, or that has another format, is ignored: its result is computed again.

    Args:
        form: the version of the results. Raise it when they are computed in another way.
    """

    def __init__(self, file: Path, form: int):
        self.file, self.form = file, form
        self.known, self.new = dict[str, Any](), dict[str, Any]()
        with file_errors("data.cache_dir", file, "choose another folder"):
            for line in file.read_bytes().splitlines() if file.is_file() else ():
                try:
                    form, key, *fact = json.loads(line)
                except (ValueError, TypeError):
                    continue
                if form == self.form:
                    self.known[key] = tuple(fact)

    def save(self) -> None:
        """Appends the new results in one write of whole lines, since other processes append too."""
        lines = "".join(json.dumps([self.form, key, *fact]) + "\n" for key, fact in self.new.items())
        if lines:
            with file_errors("data.cache_dir", self.file, "choose another folder"):
                self.file.parent.mkdir(parents=True, exist_ok=True)
                with self.file.open("ab", buffering=0) as file:
                    file.write(lines.encode())
            self.known |= self.new
            self.new = {}
