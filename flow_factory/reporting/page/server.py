"""The pages of `ff-view`: the list of runs, a run while it trains, and runs laid over each other. It writes nothing and serves no file."""

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
"""Runs that are laid over each other, at most: so many colours there are."""
Name = Annotated[str, Query(alias="name")]
Names = Annotated[list[str], Query(alias="run")]


def make_app(root: Path) -> FastAPI:
    """The pages of the runs in `root`. Every answer is read anew from the files.

    Of a request only GET is answered, with a loopback name as its host: a page of elsewhere that has its own name led here gets nothing.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])

    @app.middleware("http")
    async def guarded(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await answer(request)
        response.headers.update(HEADERS)
        return response

    @app.exception_handler(HTTPException)
    @app.exception_handler(ValueError)
    @app.exception_handler(ConfigError)
    @app.exception_handler(OSError)
    async def said(request: Request, error: Exception) -> Response:
        text, status = (str(error.detail), error.status_code) if isinstance(error, HTTPException) else (str(error), 500)
        page = render("error.html.jinja", {}, "/", text=text)
        return JSONResponse({"error": text}, status) if request.url.path.startswith("/api/") else HTMLResponse(page, status)

    @app.get("/")
    def every() -> Response:
        runs = sorted((listed(name, folder) for name, folder in folders(root).items()), key=lambda run: -run.changed)
        return HTMLResponse(
            render("runs.html.jinja", {"list": True, "most": SOME}, "/", root=str(root), runs=runs, keys=COMPARED, most=SOME)
        )

    @app.get("/run")
    def one(name: Name) -> Response:
        [folder] = _chosen(root, [name]).values()
        return HTMLResponse(page_of(folder, f"/api/run?{urlencode({'name': name})}", is_running(folder)))

    @app.get("/api/run")
    def news(name: Name) -> dict[str, Any]:
        [folder] = _chosen(root, [name]).values()
        return live_data(folder, is_running(folder))

    @app.get("/compare")
    def compare(run: Names) -> Response:
        chosen = _chosen(root, run)
        data = {"charts": laid_over(chosen), "live": f"/api/compare?{urlencode({'run': run}, doseq=True)}"}
        page = render(
            "compare.html.jinja", data, "/", names=list(chosen), results=results_of(chosen), differences=differences(chosen),
            cards=side_by_side(chosen, MOST),
        )  # fmt: skip
        return HTMLResponse(page)

    @app.get("/api/compare")
    def over(run: Names) -> dict[str, Any]:
        return {"charts": laid_over(_chosen(root, run))}

    return app


def _chosen(root: Path, names: list[str]) -> dict[str, Path]:
    """Name -> folder of runs that are listed: no other folder can be named.

    Raises:
        HTTPException: there is no such run, or there are too many.
    """
    found, wanted = folders(root), list(dict.fromkeys(names))
    if missing := [name for name in wanted if name not in found]:
        raise HTTPException(404, f"there is no run {missing[0]!r} in {root}")
    if len(wanted) > SOME:
        raise HTTPException(422, f"{len(wanted)} runs; choose at most {SOME}")
    return {name: found[name] for name in wanted}
