"""Links out of docs/, which lead to files beside it when the pages are read in a checkout, lead to their pages here."""

import re

PAGES = {
    "../README.md": "index.md",
    "../CONTRIBUTING.md": "contributing.md",
    "../bench/README.md": "benchmarks.md",
    "../CHANGELOG.md": "contributing.md",
}


def on_page_markdown(markdown: str, **_) -> str:
    """Called by MkDocs for each page before it is rendered."""
    return re.sub(r"\]\((\.\./[^)#]+)", lambda link: "](" + PAGES.get(link[1], link[1]), markdown)
