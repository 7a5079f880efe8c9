"""How `make docs` builds the site: the pages of this folder, and a reference out of docstrings and commands."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
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
    if hasattr(command, "list_commands"):
        names = command.list_commands(None)
        return [node for name in names for node in described(command.get_command(None, name), f"{path} {name}")]
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


class Routes(Directive):
    """Each route of the OpenAPI document, by group: who may ask, what it takes, what it answers."""

    def run(self) -> list[nodes.Node]:
        document = json.loads(Path(__file__).with_name("openapi.json").read_text("utf-8"))
        routes = [
            (one["tags"][0], f"{method.upper()} {path}", one)
            for path, methods in document["paths"].items()
            for method, one in methods.items()
        ]
        made = []
        for tag, group in groupby(sorted(routes, key=lambda route: route[0]), key=lambda route: route[0]):
            section = nodes.section(ids=[nodes.make_id(f"http-{tag}")])
            section += nodes.title(text=tag)
            listed = nodes.definition_list()
            for _, line, one in group:
                listed += nodes.definition_list_item("", nodes.term("", "", nodes.literal(text=line)), _route(one))
            section += listed
            made.append(section)
        return made


def _route(one: dict[str, Any]) -> nodes.definition:
    said = nodes.definition("", nodes.paragraph(text=f"{one['summary']} {one.get('description', '')}".strip()))
    facts = [("for", ", ".join(one["x-roles"]) or "everybody")]
    # What many routes share, a header each, is a reference and no query.
    facts += [("query", ", ".join(field["name"] for field in one.get("parameters", ()) if field.get("in") == "query"))]
    facts += [("body", _shapes(one.get("requestBody", {}))), ("answer", _shapes(next(iter(one["responses"].values()))))]
    said += nodes.paragraph(text="; ".join(f"{name}: {text}" for name, text in facts if text))
    return said


def _shapes(said: dict[str, Any]) -> str:
    named = [
        content["schema"].get("$ref", media).rpartition("/")[2] for media, content in said.get("content", {}).items()
    ]
    return " or ".join(named)


def setup(app: Sphinx) -> None:
    app.add_directive("commands", Commands)
    app.add_directive("routes", Routes)
