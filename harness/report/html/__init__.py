"""The report: one HTML file with everything in it, for a browser without a network.

`chart` draws (pure SVG text), `timeline` and `figures` say what of a run is drawn, `page` puts it together with the templates beside this file;
`trends` is the page of many nights.
"""

from __future__ import annotations

from harness.report.html.page import Source, render
from harness.report.html.trends import Nights, render_trends

__all__ = ["Nights", "Source", "render", "render_trends"]
