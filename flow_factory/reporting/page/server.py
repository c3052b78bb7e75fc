"""The pages of `ff-view`: the list of runs, one run, and several runs in one chart. It writes nothing and serves no file."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import FastAPI, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from flow_factory.config import ConfigError
from flow_factory.reporting.page.html import render
from flow_factory.reporting.page.runs import (
    COMPARED,
    differences,
    folders,
    is_running,
    laid_over,
    listed,
    results_of,
    side_by_side,
)
from flow_factory.reporting.page.selection import MOST
from flow_factory.reporting.page.write import live_data, page_of

HEADERS = {
    "Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}  # fmt: skip
SOME = 6
"""The most runs in one comparison: there are six colours."""
Name = Annotated[str, Query(alias="name")]
Names = Annotated[list[str], Query(alias="run")]


def make_app(root: Path) -> FastAPI:
    """The app that shows the runs in `root`. Every answer is read anew from the files.

    Only GET is answered, and only with a loopback name as the host. So a page of another site whose name resolves to this machine (DNS
    rebinding) gets nothing.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    app.middleware("http")(_add_headers)
    for error in (HTTPException, ValueError, ConfigError, OSError):
        app.add_exception_handler(error, _error_page)

    @app.get("/")
    def run_list() -> Response:
        runs = sorted((listed(name, folder) for name, folder in folders(root).items()), key=lambda run: -run.changed)
        data = {"list": True, "most": SOME}
        return HTMLResponse(render("runs.html.jinja", data, "/", root=str(root), runs=runs, keys=COMPARED, most=SOME))

    @app.get("/run")
    def run_page(name: Name) -> Response:
        [folder] = _chosen(root, [name]).values()
        return HTMLResponse(page_of(folder, f"/api/run?{urlencode({'name': name})}", is_running(folder)))

    @app.get("/api/run")
    def run_data(name: Name) -> dict[str, Any]:
        [folder] = _chosen(root, [name]).values()
        return live_data(folder, is_running(folder))

    @app.get("/compare")
    def comparison_page(run: Names) -> Response:
        return _comparison(_chosen(root, run), f"/api/compare?{urlencode({'run': run}, doseq=True)}")

    @app.get("/api/compare")
    def comparison_data(run: Names) -> dict[str, Any]:
        return {"charts": laid_over(_chosen(root, run))}

    return app


async def _add_headers(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await answer(request)
    response.headers.update(HEADERS)
    return response


async def _error_page(request: Request, error: Exception) -> Response:
    """An error as a page, or as JSON under `/api/`."""
    text, status = (str(error.detail), error.status_code) if isinstance(error, HTTPException) else (str(error), 500)
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": text}, status)
    return HTMLResponse(render("error.html.jinja", {}, "/", text=text), status)


def _comparison(chosen: dict[str, Path], live: str) -> Response:
    """The page of several runs. `live`: the address of its newer data."""
    data = {"charts": laid_over(chosen), "live": live}
    page = render(
        "compare.html.jinja", data, "/", names=list(chosen), results=results_of(chosen), differences=differences(chosen),
        cards=side_by_side(chosen, MOST),
    )  # fmt: skip
    return HTMLResponse(page)


def _chosen(root: Path, names: list[str]) -> dict[str, Path]:
    """Name -> folder, for runs of the list only. A request cannot name another folder.

    Raises:
        HTTPException: there is no such run (404), or there are too many (422).
    """
    found, wanted = folders(root), list(dict.fromkeys(names))
    if missing := [name for name in wanted if name not in found]:
        raise HTTPException(404, f"there is no run {missing[0]!r} in {root}")
    if len(wanted) > SOME:
        raise HTTPException(422, f"{len(wanted)} runs were chosen; choose at most {SOME}")
    return {name: found[name] for name in wanted}
