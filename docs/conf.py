"""How `make docs` builds the site: the pages of this folder, and a reference out of docstrings and commands."""

from __future__ import annotations

from typing import Any

import typer.main
from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

import aibox
from aibox.cli.app import app as commands

project = "aibox"
author = "the aibox authors"
project_copyright = "the aibox authors, MIT licence"
version = release = aibox.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "contents"
exclude_patterns = ["*.py", "*.json"]
html_theme = "furo"
html_title = f"aibox {release}"
html_show_sourcelink = False
myst_heading_anchors = 3
# Pages link to files beside this folder, as readers of the repository want; the tests hold every such link.
suppress_warnings = ["myst.xref_missing"]

# A docstring is a text with `names` in it, and no RST.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True


class Commands(Directive):
    """Each command with its help, arguments and options, out of the program itself."""

    def run(self) -> list[nodes.Node]:
        return list(described(typer.main.get_command(commands), "aibox"))


def described(command: Any, path: str) -> list[nodes.Node]:
    inner = getattr(command, "commands", {})
    if inner:
        return [node for name in inner for node in described(inner[name], f"{path} {name}")]
    said = [(", ".join(one.opts), one.help) for one in command.params]
    arguments = [(name.upper(), text) for name, text in said if not name.startswith("-")]
    options = [(name, text) for name, text in said if name.startswith("-")]
    words = " ".join([path, *(name for name, _ in arguments), *(["[OPTIONS]"] if options else [])])
    section = nodes.section(ids=[nodes.make_id(path)])
    section += [nodes.title(text=path), nodes.literal_block(text=words)]
    section += nodes.paragraph(text=" ".join((command.help or "").split()))
    listed = nodes.definition_list()
    for name, text in arguments + options:
        term = nodes.term("", "", nodes.literal(text=name))
        listed += nodes.definition_list_item("", term, nodes.definition("", nodes.paragraph(text=text or "")))
    if listed.children:
        section += listed
    return [section]


def setup(app: Sphinx) -> None:
    app.add_directive("commands", Commands)
