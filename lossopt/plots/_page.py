"""A page of HTML that holds all that it needs: no script, and nothing from elsewhere."""

import html
from collections.abc import Iterable, Sequence
from typing import NamedTuple

STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59626c; --line: #d9dde2;
  --paper: #ffffff; --wash: #f5f6f8; --alarm: #b42318;
  --rank-0: #440154; --rank-1: #46327e; --rank-2: #365c8d; --rank-3: #277f8e; --rank-4: #1fa187;
  --rank-5: #4ac16d; --rank-6: #a0da39; --rank-7: #d3d81f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e6ea; --soft: #9ba4ae; --line: #363c44;
  --paper: #16191d; --wash: #1e2227; --alarm: #ff8f85;
  --rank-0: #fde725; --rank-1: #b5de2b; --rank-2: #6ece58; --rank-3: #35b779; --rank-4: #1f9e89;
  --rank-5: #26828e; --rank-6: #456ba0; --rank-7: #5c5796; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: clamp(1.25rem, 4vw, 3rem) 1.25rem 3rem; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; font-weight: 650; }
h2 { margin: 0 0 1rem; padding-top: 1.25rem; border-top: 1px solid var(--line);
  font-size: 1.1rem; font-weight: 650; }
h1, p, dd, td, th, figcaption { overflow-wrap: anywhere; }
p { margin: 0 0 1rem; max-width: 44rem; }
.sections { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
  gap: 2.25rem 3rem; margin-top: 2.25rem; align-items: start; }
section { min-width: 0; }
.wide { grid-column: 1 / -1; }
.lead { margin: .35rem 0 0; font-size: 1.1rem; color: var(--soft); }
.alarm { color: var(--alarm); font-weight: 600; }
.notes { margin-top: 1rem; white-space: pre-line; }
.soft, caption, figcaption, dt, thead th, tbody th { color: var(--soft); }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr));
  gap: 1rem 1.5rem; margin: 1.75rem 0 0; }
.facts dt { font-size: .85rem; }
.facts dd { margin: 0; font-size: 1.3rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.figures { display: grid; gap: 1.75rem 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
figure { margin: 0; min-width: 0; break-inside: avoid; }
figure svg { display: block; width: 100%; height: auto; fill: var(--ink); overflow: visible; }
figure svg text { font-family: inherit !important; }
figcaption { margin-bottom: .35rem; font-size: .9rem; }
table { border-collapse: collapse; width: 100%; font-size: .95rem; }
caption { text-align: left; padding-bottom: .5rem; font-size: .9rem; }
td, th { padding: .32rem .5rem .32rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: baseline; font-weight: 400; }
tbody th { width: 38%; padding-right: 1rem; }
.numbers { max-width: 46rem; }
.numbers tbody th { width: 50%; }
.numbers td, .numbers thead th + th { text-align: right; padding: .32rem 0 .32rem .75rem;
  font-variant-numeric: tabular-nums; }
.numbers td { white-space: nowrap; }
.numbers thead th { overflow-wrap: normal; }
.scroll { overflow-x: auto; }
.grid { font-size: .85rem; }
.grid td, .grid th { text-align: right; white-space: nowrap; padding: .32rem 0 .32rem 1rem;
  font-variant-numeric: tabular-nums; }
.grid tbody th, .grid thead th:first-child { width: 1%; padding-left: 0; }
.grid thead th:first-child:empty { padding: 0; }
.grid caption { max-width: 44rem; }
.judge th, .judge td { font-weight: 650; color: var(--ink); }
pre { margin: 0 0 1rem; padding: .7rem .9rem; background: var(--wash); border-radius: 6px;
  white-space: pre-wrap; overflow-wrap: anywhere; font: .875rem/1.5 ui-monospace, SFMono-Regular,
  Menlo, Consolas, "Liberation Mono", monospace; }
footer { margin-top: 2.5rem; font-size: .85rem; color: var(--soft); }
@page { margin: 15mm; }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --line: #ccc;
  --paper: #fff; --wash: #f5f6f8; --alarm: #9b1c12; font-size: 9pt;
  --rank-0: #440154; --rank-1: #46327e; --rank-2: #365c8d; --rank-3: #277f8e; --rank-4: #1fa187;
  --rank-5: #4ac16d; --rank-6: #a0da39; --rank-7: #d3d81f; }
  main { max-width: none; padding: 0; }
  .figures, .sections { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1.5rem 2rem; }
  h2, caption { break-after: avoid; } tr, dl, pre { break-inside: avoid; } }
"""
NOTHING = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Section(NamedTuple):
    """A part of a page.

    Attributes:
      title: text.
      content: HTML; without any there is no section.
      wide: whether it takes the whole width, where two others stand beside each other.
    """

    title: str
    content: str
    wide: bool = False


def page(title: str, head: str, sections: Iterable[Section], foot: str) -> str:
    """A whole page.

    Args:
      title: text.
      head: HTML below the title.
      sections: in the order in which they are read.
      foot: text.
    """
    kinds = {True: '<section class="wide">', False: "<section>"}
    body = "\n".join(
        f"{kinds[section.wide]}<h2>{text(section.title)}</h2>\n{section.content}</section>"
        for section in sections
        if section.content
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{NOTHING}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<header><h1>{text(title)}</h1>
{head}</header>
<div class="sections">
{body}
</div>
<footer>{text(foot)}</footer>
</main>
</body>
</html>
"""


def text(words: object) -> str:
    """What anybody wrote, as text and nothing else."""
    return html.escape(str(words))


def paragraph(words: object, kind: str = "") -> str:
    """A paragraph of text."""
    return f'<p class="{kind}">{text(words)}</p>\n' if kind else f"<p>{text(words)}</p>\n"


def code(words: object) -> str:
    """What can be typed."""
    return f"<pre>{text(words)}</pre>\n"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """A few numbers that are read first, each with its name."""
    cells = (f"<div><dt>{text(name)}</dt><dd>{text(x)}</dd></div>" for name, x in pairs)
    return f'<dl class="facts">{"".join(cells)}</dl>\n'


def table(
    rows: Iterable[Sequence[object]],
    names: Sequence[str] = (),
    *,
    caption: str = "",
    numbers: bool = False,
    grid: bool = False,
    bold: object = None,
) -> str:
    """A table of text whose first column names the rows.

    Args:
      rows: their cells.
      names: of the columns.
      caption: what it shows.
      numbers: whether the other columns are numbers, which stand below each other.
      grid: whether there are many columns, all of them short.
      bold: the name of a row that stands out.
    """
    kind = ' class="numbers"' if numbers else ' class="grid"' if grid else ""
    judge, around = ' class="judge"', ('<div class="scroll">', "</div>\n") if grid else ("", "")
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in names)
    lines = [
        f'<tr{judge if first == bold else ""}><th scope="row">{_breakable(first)}</th>'
        + "".join(f"<td>{text(cell)}</td>" for cell in cells)
        + "</tr>\n"
        for first, *cells in rows
    ]
    return (
        f"{around[0]}<table{kind}>"
        + (f"<caption>{text(caption)}</caption>\n" if caption else "")
        + (f"<thead><tr>{head}</tr></thead>\n" if names else "")
        + f"<tbody>\n{''.join(lines)}</tbody></table>\n{around[1]}"
    )


def wide_figure(svg: str) -> str:
    """A picture as wide as the page."""
    return f"<figure>{svg}</figure>\n"


def figures(drawn: Iterable[tuple[str, str]]) -> str:
    """Pictures beside each other: of each its caption, text, and its SVG."""
    each = (
        f"<figure><figcaption>{text(caption)}</figcaption>{svg}</figure>\n"
        for caption, svg in drawn
    )
    return f'<div class="figures">{"".join(each)}</div>\n'


def _breakable(words):
    """In a narrow column a path breaks between its parts."""
    return text(words).replace("/", "/<wbr>").replace("_", "_<wbr>")
