"""Pages as HTML text. Data is escaped, and the page's content security policy allows only its own scripts."""

import json
import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

STATIC = Path(__file__).parent / "static"
STYLES, SCRIPTS = ("uPlot.min.css", "page.css"), ("uPlot.iife.min.js", "charts.js", "page.js")


def render(template: str, data: Any, live: str = "", **values: Any) -> str:
    """A complete page that loads no other file.

    Args:
        template: a file of `static/`.
        data: what its scripts read: mappings, lists, text, finite numbers.
        live: where its scripts ask the server that it comes from; "" where they may ask nobody.
        values: what the template names.
    """
    styles, scripts = [static(name) for name in STYLES], [static(name) for name in SCRIPTS]
    policy = {
        "default-src": ["'none'"], "img-src": ["data:"], "style-src": list(map(_hash, styles)), "script-src": list(map(_hash, scripts)),
        "connect-src": ["'self'" if live else "'none'"], "form-action": ["'self'" if live else "'none'"], "base-uri": ["'none'"],
    }  # fmt: skip
    directives = "; ".join(f"{name} {' '.join(sources)}" for name, sources in policy.items())
    return str(
        _environment()
        .get_template(template)
        .render(policy=directives, styles=styles, scripts=scripts, data=in_script(data), live=live, **values)
    )


def in_script(data: Any) -> Any:
    """JSON that cannot end the script element in which it stands."""
    from markupsafe import Markup

    text = json.dumps(data, allow_nan=False)  # ASCII alone
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


@cache
def static(name: str) -> Any:
    """The text of a file of `static/`."""
    from markupsafe import Markup

    return Markup((STATIC / name).read_text(encoding="utf-8"))


def number(value: float | None, signed: bool = False) -> str:
    """A number with four digits; a dash for a missing one."""
    return "–" if value is None else f"{value:+.3g}" if signed else f"{value:.4g}"


def utc(seconds: float) -> str:
    """A time since 1970 as text."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(loader=FileSystemLoader(STATIC), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    found.policies["json.dumps_kwargs"] = {"sort_keys": False}
    found.filters |= {"number": number, "utc": utc}
    return found


def rows_of(first: Mapping[str, float], last: Mapping[str, float], ends: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """A row for each reward and for the held-out loss: before, after, change and its interval."""
    names = [name for name in sorted(last) if name.endswith("_mean") or name.rpartition("/")[2] == "loss"]
    return [
        {"name": n, "before": first.get(n), "after": last[n], "change": last[n] - first[n] if n in first else None, "ends": ends.get(n)}
        for n in names
    ]
