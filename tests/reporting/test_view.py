"""`ff-view`: the list of runs, runs over each other, and a server that gives away nothing else and changes nothing."""

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import uvicorn
from fastapi.testclient import TestClient

from flow_factory.commands.serving import listening, serve_until_signal
from flow_factory.commands.view import main
from flow_factory.reporting.metrics import MetricsFile
from flow_factory.reporting.page import store
from flow_factory.reporting.page.runs import differences, folders, is_running, laid_over, listed, side_by_side
from flow_factory.reporting.page.server import HEADERS, SOME, make_app
from flow_factory.types import Sample
from tests.tiny.pages import BROWSER, EVIL, NAME, Page, browsed, hostile, inert, picture
from tests.tiny.run import ROOT


def small(folder: Path, rate: float, epochs: int = 2) -> Path:
    """A run with metrics, a config and an evaluation."""
    store.begin(folder, store.About(epochs=2), 0)
    file = MetricsFile(folder)
    for step in range(epochs + 1):
        file.log({"train/reward_r_mean": rate * step, "eval/reward_r_mean": rate * step, "time/rollout_s": 1.0}, step)
        store.keep_evaluation(folder, [Sample("a cube", picture(step), {"r": 1.0}), Sample(f"alone {rate}", picture(), {})], step)
    file.finish()
    (folder / "config.yaml").write_text(f"train:\n  trainer_type: nft\n  learning_rate: {rate}\nrewards:\n- api_key: s3cr3t\n  weight: 1\n")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two runs, one of them below a folder; one with hostile texts; and what is none."""
    small(tmp_path / "save" / "one", 0.5)
    small(tmp_path / "save" / "group" / "two", 0.25, epochs=1)
    hostile(tmp_path / "save" / NAME)
    small(tmp_path / "outside", 1.0)
    (tmp_path / "save" / ".test-run" / "run").mkdir(parents=True)
    (tmp_path / "save" / "other").mkdir()
    return tmp_path / "save"


@pytest.fixture
def client(root: Path) -> TestClient:
    return TestClient(make_app(root), base_url="http://127.0.0.1:8095")


def test_the_runs_of_a_folder_are_found(root: Path) -> None:
    assert set(folders(root)) == {"one", "group/two", NAME} and set(folders(root / "one")) == {"one"}
    one, two = listed("one", root / "one"), listed("group/two", root / "group/two")
    assert (one.state, two.state) == ("epoch 2 of 2, finished", "epoch 1 of 2") and one.config["train.trainer_type"] == "nft"
    assert [(row["name"], row["after"], row["change"]) for row in one.results] == [("reward_r_mean", 1.0, 1.0)]


def test_every_page_is_inert_whatever_the_data(client: TestClient) -> None:
    for path, params in (("/", {}), ("/run", {"name": NAME}), ("/compare", {"run": [NAME, "one"]}), ("/run", {"name": EVIL[0]})):
        answer = client.get(path, params=params)
        page = Page(answer.text)
        assert inert(page) and len(page.of("script")) == 4, path
        assert answer.headers["content-type"].startswith("text/html")
        assert all(answer.headers[name] == value for name, value in HEADERS.items())
        [policy] = [a["content"] or "" for a in page.of("meta") if a.get("http-equiv")]
        assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "unsafe" not in policy
        assert NAME in "".join(page.words) or path == "/run", "a name is shown as it is"


def test_no_other_folder_can_be_named_and_nothing_can_be_written(client: TestClient, root: Path) -> None:
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    for name in ("../outside", str(root.parent / "outside"), "other", ".test-run/run", "one/../one", ""):
        assert client.get("/run", params={"name": name}).status_code == client.get("/api/run", params={"name": name}).status_code == 404
    for path in ("/run", "/compare"):
        assert client.get(path).status_code == 422
    for path in ("/one/config.yaml", "/docs", "/openapi.json", "/..%2foutside/metrics.jsonl"):
        assert client.get(path).status_code == 404
    assert {client.request(method, "/").status_code for method in ("POST", "PUT", "DELETE")} == {405}
    assert client.get("/", headers={"host": "elsewhere.example"}).status_code == 400, "a name of elsewhere that was led here"
    many = [f"run{k}" for k in range(SOME + 1)]
    for name in many:
        small(root / name, 0.1, epochs=0)
    assert client.get("/compare", params={"run": many}).status_code == 422
    assert before == {path: path.read_bytes() for path in before}


def test_runs_are_laid_over_each_other(root: Path, client: TestClient) -> None:
    chosen = {"one": root / "one", "two": root / "group/two"}
    assert differences(chosen) == [("train.learning_rate", ["0.5", "0.25"])], "and the keys that are alike are not told"
    [reward, times] = laid_over(chosen)["main"]
    assert [(line["label"], line["colour"], line["dash"]) for line in reward["lines"]] == [
        ("one: training", 0, False), ("one: evaluation", 0, True), ("two: training", 1, False), ("two: evaluation", 1, True),
    ]  # fmt: skip
    assert times["title"] == "Time" and [line["label"] for line in times["lines"]] == ["one", "two"]
    [card] = side_by_side(chosen, 10**6)
    assert card.prompt == "a cube" and [label for label, _ in card.shown] == ["one, epoch 2", "two, epoch 1"]
    assert side_by_side(chosen, 100) == []
    text = client.get("/compare", params={"run": ["one", "group/two"]}).text
    assert "s3cr3t" not in text and "0.25" in text


def test_a_run_is_followed_while_it_trains(client: TestClient, root: Path) -> None:
    before = client.get("/api/run", params={"name": "group/two"}).json()
    lock = os.open(root / "group/two/.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    small(root / "group/two", 0.25)
    after = client.get("/api/run", params={"name": "group/two"}).json()
    assert (before["state"], after["state"]) == ("epoch 1 of 2", "epoch 2 of 2, running")
    assert before["stamp"] != after["stamp"] and after["charts"]["main"][0]["lines"][0]["x"][-1] == 2
    os.close(lock)
    assert not is_running(root / "group/two"), "a lock that nobody holds is of a run that was killed"
    (root / "group/two/.lock").write_text(json.dumps({"process": 1, "machine": f"not-{socket.gethostname()}"}))
    assert is_running(root / "group/two"), "of another machine, with fresh metrics"


def test_a_damaged_run_is_told_and_hides_no_other(root: Path, client: TestClient) -> None:
    (root / "one/metrics.jsonl").write_text('{"step": 0}\nno json\n')
    (root / "group/two/config.yaml").write_text("a: [")
    text = client.get("/").text
    assert text.count("damaged: ") == 2 and "metrics.jsonl:2: not JSON" in text and NAME.replace("<", "&lt;")[:8] in text
    for path in ("/run", "/api/run"):
        answer = client.get(path, params={"name": "one"})
        assert answer.status_code == 500 and "metrics.jsonl:2" in answer.text


@pytest.mark.parametrize(("arguments", "said"), [
    (["nowhere"], r"nowhere: there is no such folder; name the log\.save_dir of runs"),
    ([".", "--port", "70000"], "--port: 70000 is not a port; write 0 to 65535"),
])  # fmt: skip
def test_what_cannot_be_served_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert re.fullmatch(f"error: {said}\n", capsys.readouterr().err)


def test_a_port_in_use_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main([str(tmp_path), "--port", str(port)]) == 2
    assert f"--port: cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_server_listens_for_it_ends_the_server(tmp_path: Path, number: signal.Signals) -> None:
    """The address is printed before uvicorn has its handlers."""

    class Early(uvicorn.Server):
        def run(self, sockets: list[socket.socket] | None = None) -> None:
            signal.raise_signal(number)
            super().run(sockets)

    before = signal.getsignal(number)
    app = make_app(tmp_path)
    serve_until_signal(Early(uvicorn.Config(app, log_config=None)), listening("127.0.0.1", 0, "--port"), "it", "Ctrl-C ends")
    assert signal.getsignal(number) is before


@pytest.mark.exhaustive
def test_the_command_serves_until_a_signal_and_a_browser_shows_its_pages(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flow_factory.commands.view", str(root), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert server.stdout is not None
    found = re.fullmatch(r"3 runs at (http://127\.0\.0\.1:\d+), Ctrl-C ends\n", server.stdout.readline())
    assert found
    if BROWSER is not None:
        assert len(browsed(f"{found[1]}/", tmp_path / "a").of("tr")) == 4
        page = browsed(f"{found[1]}/compare?run=one&run=group/two", tmp_path / "b")
        assert len(page.of("canvas")) == 2 and sum(a.get("class") == "compare" for a in page.of("div")) == 1
    server.send_signal(signal.SIGINT)
    assert server.wait() == 0
