"""The page at /, on which a person writes a text and asks it; three files, without a build step."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

router = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).with_name("page")
# What users have written is shown on the page, so that nothing but the page's own script may ever run there.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def _sent(name: str) -> FileResponse:
    return FileResponse(_FOLDER / name, headers=_HEADERS)


@router.get("/")
def page() -> FileResponse:
    """Return the page."""
    return _sent("index.html")


@router.get("/page.css")
def style() -> FileResponse:
    """Return how it looks."""
    return _sent("page.css")


@router.get("/page.js")
def script() -> FileResponse:
    """Return what it does."""
    return _sent("page.js")
