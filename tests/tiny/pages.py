"""A run's folder all of whose texts are made to break out of a page, what a browser takes for one, and a browser where there is one."""

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

from flow_factory.reporting.metrics import MetricsFile
from flow_factory.reporting.page import store
from flow_factory.types import Sample
from flow_factory.utils.terminal import Remark

EVIL = (
    "</script><script>window.broken=1</script>",
    '<img src=x onerror="window.broken=1">',
    "\"><svg onload=window.broken=1>' onmouseover='window.broken=1",
    '<a href="https://elsewhere.example/">a</a><link rel=stylesheet href=https://elsewhere.example/>',
    "{{ 7 * 7 }} ${window.broken=1} <!--<script> \u2028 \u202e",
)
NAME = EVIL[1].replace("/", "")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


class Page(HTMLParser):
    """What a browser would take for elements, attributes and text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": []}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in self.inside and self.cdata_elem:
            self.inside[self.tags[-1][0]].append(data)
        else:
            self.words.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def picture(shade: int = 0, size: int = 8) -> Image.Image:
    return Image.new("RGB", (size, size), (shade, 255 - shade, 128))


def hostile(folder: Path) -> Path:
    """A run all of whose texts are made to break out of the page."""
    setting = [store.KeptSetting(key=text, value=text, default=text, changed=k % 2 == 0) for k, text in enumerate(EVIL)]
    texts = {text: text for text in EVIL}
    store.begin(folder, store.About(epochs=2, facts=texts, settings=setting, environment=texts), 0)
    for step in (0, 2):
        store.keep_evaluation(folder, [Sample(text, picture(step), {NAME: step / 2, "b": float("nan")}) for text in EVIL], step)
    store.keep_groups(folder, [Sample(text, picture(), {NAME: 0.5}, k / 2, k // 2) for k, text in enumerate(EVIL)], 2)
    store.keep_remarks(folder, [Remark(0.0, text, text) for text in EVIL])
    file = MetricsFile(folder)
    for step in (0, 1, 2):
        file.log({f"eval/reward_{NAME}_mean": step / 2, f"train/{NAME}": 1.0, "train/grad_norm": float("nan")}, step)
    file.finish()
    return folder


def inert(page: Page) -> bool:
    """Whether it has no element, attribute or address that could run or load anything of the data."""
    links = [value or "" for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href", "action")]
    here = all(link.startswith(("data:image/jpeg;base64,", "#", "/")) or link == "data:," for link in links)
    events = [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    tags = {tag for tag, _ in page.tags} & {"svg", "object", "iframe", "base"}
    return here and not events and not tags and all(a["rel"] == "icon" for a in page.of("link"))


def browsed(url: str, profile: Path) -> Page:
    """What a browser makes of a page, at the width of a phone; it may have nothing to complain of."""
    done = subprocess.run(
        [BROWSER or "", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={profile}",
         "--virtual-time-budget=5000", "--window-size=390,844", "--dump-dom", url],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    return Page(done.stdout)
