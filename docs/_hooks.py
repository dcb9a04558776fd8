"""What mkdocs does for this project beyond its plugins.

Formulas become MathML while the site is built, so that a page needs no script and no other host.
Pictures are drawn meanwhile, too. A public name that no page documents fails the build, and so does
a word of a signature that the page Signatures does not explain.
"""

import html
import importlib
import pkgutil
import re
import zlib
from pathlib import Path

import _pictures
from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

import lossopt

FORMULA = re.compile(
    r'<(?P<tag>div|span) class="arithmatex">\\[\[(](?P<tex>.*?)\\[\])]</(?P=tag)>(?P<stop>[,.;:]?)',
    re.DOTALL,
)

# What stands apart in one formula may stand below each other on a narrow screen.
APART = re.compile(r"(?<=,)\s*\\q?quad\b")

# Bars around a number or a norm have no space of their own.
BAR = re.compile(r'<mo(?: \w+="false")*>(?=&#x0007C;|&#x02016;)')

# A word of a signature that no page documents as a member.
WORD = re.compile(r'<span title="(?:lossopt\.(?:\w+\.)?_|optax\.)[\w.]*?(\w+)">(.*?)</span>')
EXPLAINED = re.compile(r"<td><code>(?=(\w+))")

CELL = re.compile(r"<td.*?</td>", re.DOTALL)

FUNCTION = r"\\(?:cos|exp|log|max|min|sin|tanh)(?![a-z])"


def on_files(files: Files, config, **_) -> Files:
    """Pictures that the pages show are files of the site."""
    for name, draw in _pictures.PICTURES.items():
        files.append(File.generated(config, f"pictures/{name}.svg", content=_pictures.svg(draw)))
    return files


def on_page_content(content: str, page, **_) -> str:
    """Formulas become MathML, or fail the build; names in tables may break between words."""

    def formula(match):
        tex = _spelled(html.unescape(match["tex"]))
        if match["tag"] == "span":
            return f'<span class="together">{mathml(tex, "inline")}{match["stop"]}</span>'
        parts = [mathml(part, "block") for part in APART.split(tex)]
        return f'<div class="formula">{"".join(parts)}</div>{match["stop"]}'

    def mathml(tex, display):
        math = BAR.sub('<mo lspace="0" rspace="0" stretchy="false">', convert(tex, display=display))
        if "\\" in math:
            raise PluginError(f"{page.file.src_uri}: this formula cannot be rendered: {tex}")
        return math

    if page.file.src_uri == "signatures.md":
        content = EXPLAINED.sub(r'<td id="\1"><code>', content)
    return CELL.sub(_breakable, FORMULA.sub(formula, content))


def on_post_page(output: str, **_) -> str:
    """Words of signatures lead to the page that explains them."""
    return WORD.sub(r'<a href="../signatures/#\1">\2</a>', output)


def on_post_build(config, **_) -> None:
    """Fails unless every public name, and every word of the signatures, is found in the site."""
    inventory = Path(config.site_dir, "objects.inv").read_bytes()
    lines = zlib.decompress(inventory.split(b"\n", 4)[4]).decode().splitlines()
    documented = {line.split()[0] for line in lines}
    missing = sorted(public_names() - documented)
    if missing:
        raise PluginError(f"Undocumented public names: {', '.join(missing)}.")
    pages = {page.parent.name: page.read_text() for page in Path(config.site_dir).glob("*/*.html")}
    used = {word for page in pages.values() for word in re.findall(r"signatures/#(\w+)", page)}
    unexplained = sorted(used - set(re.findall(r'<td id="(\w+)"', pages["signatures"])))
    if unexplained:
        raise PluginError(f"Not explained in signatures.md: {', '.join(unexplained)}.")


def public_names() -> set[str]:
    """Every name without underscore that the front door or one of the rooms exports."""
    rooms = [name for _, name, package in pkgutil.iter_modules(lossopt.__path__) if package]
    modules = [lossopt, *(importlib.import_module(f"lossopt.{room}") for room in rooms)]
    return {
        f"{module.__name__}.{name}"
        for module in modules
        for name, member in vars(module).items()
        if not name.startswith("_") and not isinstance(member, type(lossopt))
    }


def _breakable(cell):
    """In a narrow column, names in code font break between their words, and ranges do not."""
    words = lambda code: re.sub(r"((?<=[_/:])|(?<=\w{3}\.))(?=\w)", "<wbr>", code[0])
    text = re.sub(r"(?<=<code>)[^<]*", words, cell[0])
    return re.sub(r"\([\d.+-]+\)", r'<span class="together">\g<0></span>', text)


def _spelled(tex):
    """What latex2mathml does not know: `arg`, and the thin spaces around functions."""
    tex = tex.replace(r"\arg", r"\operatorname{arg}")
    tex = re.sub(rf"(?<=[\w)}}])\s*({FUNCTION})", r"\\, \1", tex)
    return re.sub(rf"({FUNCTION}(?:\^\w)?)\s+(?=[\w\\])", r"\1 \\, ", tex)
