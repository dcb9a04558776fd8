"""What mkdocs does for this project beyond its plugins.

Formulas become MathML while the site is built, so that a page needs no script and no other host.
A public name that no page documents fails the build.
"""

import html
import importlib
import pkgutil
import re
import zlib
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

import lossopt

FORMULA = re.compile(
    r'<(?P<tag>div|span) class="arithmatex">\\[\[(](?P<tex>.*?)\\[\])]</(?P=tag)>', re.DOTALL
)

FUNCTION = r"\\(?:cos|exp|log|max|min|sin)(?![a-z])"


def on_page_content(content: str, page, **_) -> str:
    """Turns each formula of a page into MathML; one that cannot be read fails the build."""

    def formula(match):
        tex = _spelled(html.unescape(match["tex"]))
        math = convert(tex, display="block" if match["tag"] == "div" else "inline")
        if "\\" in math:
            raise PluginError(f"{page.file.src_uri}: this formula cannot be rendered: {tex}")
        return math

    return FORMULA.sub(formula, content)


def on_post_build(config, **_) -> None:
    """Fails unless every public name stands in the inventory of the site that was built."""
    inventory = Path(config.site_dir, "objects.inv").read_bytes()
    lines = zlib.decompress(inventory.split(b"\n", 4)[4]).decode().splitlines()
    documented = {line.split()[0] for line in lines}
    missing = sorted(public_names() - documented)
    if missing:
        raise PluginError(f"Undocumented public names: {', '.join(missing)}.")


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


def _spelled(tex):
    """What latex2mathml does not know: `arg`, and the thin spaces around functions."""
    tex = tex.replace(r"\arg", r"\operatorname{arg}")
    tex = re.sub(rf"(?<=[\w)}}])\s*({FUNCTION})", r"\\, \1", tex)
    return re.sub(rf"({FUNCTION})\s+(?=[\w\\])", r"\1 \\, ", tex)
