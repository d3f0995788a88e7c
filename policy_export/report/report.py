"""The page that shows and proves what has been built: ``results/report.html``, complete in itself.

Beside it lies ``results/browser``, with which a browser proves the ONNX programs itself where the folder is served.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from policy_export.config import params
from policy_export.report.browser import prepare
from policy_export.report.charts import Chart, batch_chart, make_charts, write_charts
from policy_export.report.film import record_film
from policy_export.report.findings import Findings, read_all
from policy_export.stage.files import write_text

PAGE, BROWSER = Path("results/report.html"), Path("results/browser")
HIGHEST = 1e-3  # of what is written as a power of ten


def report() -> None:
    """Write the page, and the tables of ``dvc plots``, of all policies of ``matrix``."""
    everything = params.load()
    found = read_all(everything.matrix)
    charts = make_charts(found, everything.parity_check.tolerance)
    write_charts(charts)
    proofs = prepare(BROWSER, everything.matrix)
    write_text(PAGE, render(found, [*charts, *filter(None, [batch_chart(found)])], proofs))
    print(f"report  {PAGE}")


def render(found: Sequence[Findings], charts: Sequence[Chart], proofs: Sequence[str]) -> str:
    """Return the page.

    Args:
        found: of each policy.
        charts: that it shows.
        proofs: the policies that a browser can prove.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("policy_export.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "picture": picture}
    return environment.get_template("report.html.j2").render(
        found=found,
        proofs=proofs,
        films={each.policy: data_uri("image/webp", film) for each in found if (film := record_film(each))},
        charts=[(chart, Markup(chart.draw("light")), Markup(chart.draw("dark"))) for chart in charts],
        machine=_read(Path("results/machine.json")),
        versions=_read(Path("results/versions.json")),
    )


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return content


def data_uri(kind: str, content: bytes) -> str:
    """Return a file's content as an address, so that the page needs no other file."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def picture(path: str) -> str:
    """Return a PNG file as an address; nothing if there is no such file."""
    file = Path(path)
    return data_uri("image/png", file.read_bytes()) if file.exists() else ""


def number(value: float | None, digits: int = 3) -> str:
    """Return a number as a person reads it: thousands separated, small ones with a power of ten."""
    if value is None:
        return "-"
    if value == 0 or isinstance(value, int):
        return f"{value:,}" if isinstance(value, int) else "0"
    if abs(value) < HIGHEST:
        return f"{value:.{digits - 2}e}".replace("e-0", "e-")
    whole = len(f"{abs(int(value))}")
    return f"{value:,.{max(0, digits - whole)}f}"
