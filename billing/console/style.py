"""The one stylesheet of the console."""

from __future__ import annotations

import hashlib
from pathlib import Path

from flask import Blueprint, Response, request

from billing.telemetry import observed

page = Blueprint("style", __name__)

SHEET = (Path(__file__).parent / "console.css").read_bytes()
TAG = hashlib.sha256(SHEET).hexdigest()[:16]


@page.get("/console.css")
@observed("console.style")
def sheet() -> Response:
    """The stylesheet. Its address changes with it, so that copies of it can be kept."""
    response = Response(SHEET, content_type="text/css; charset=utf-8")
    kept = request.args.get("v") == TAG
    response.headers["Cache-Control"] = "public, max-age=31536000, immutable" if kept else "no-cache"
    return response
