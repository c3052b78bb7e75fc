"""An append-only file of JSON lines that remembers results, so that they need not be computed again."""

import json
from pathlib import Path
from typing import Any

from flow_factory.utils.errors import file_errors


class Ledger:
    """Facts by key.

    A line that cannot be read, or is of another format, counts for nothing: its fact is found again.

    Args:
        form: the format of facts: to be raised when they are found out otherwise.
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
        """Appends what is new, whole lines at once, since other processes append too."""
        lines = "".join(json.dumps([self.form, key, *fact]) + "\n" for key, fact in self.new.items())
        if lines:
            with file_errors("data.cache_dir", self.file, "choose another folder"):
                self.file.parent.mkdir(parents=True, exist_ok=True)
                with self.file.open("ab", buffering=0) as file:
                    file.write(lines.encode())
            self.known |= self.new
            self.new = {}
