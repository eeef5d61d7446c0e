"""Page, written from its template."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from ropebridge_conformance.results.files import read_provenance, verdicts_in
from ropebridge_conformance.results.page.gathering import digest


def write_page(results: Path, path: Path) -> None:
    """Write the page of a results file, and the folder it lies in.

    Whatever the file says is text and nothing else: it reaches the page as data, and the page's
    policy lets no script run but its own, which it names by its hash.

    Raises:
        ResultsError: the file holds no results.
    """
    provenance = read_provenance(results)
    data = digest(verdicts_in(results)).data(provenance)
    style, script = (part(f"page.{kind}") for kind in ("css", "js"))
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(
        part("page.html")
    )
    text = template.render(
        data=data,
        style=style,
        script=script,
        style_hash=source_hash(style),
        script_hash=source_hash(script),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def part(name: str) -> str:
    """Return a file of the page's own."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def source_hash(source: str) -> str:
    """Return how a content security policy names a script or a style."""
    return f"sha256-{b64encode(sha256(source.encode()).digest()).decode('ascii')}"
