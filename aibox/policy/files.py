"""A policy file, TOML or YAML, and the signature beside it: read once, so that what was checked is what is used.

YAML is read so that nothing in it can surprise: no aliases (so no cycles), no tags, no key twice, and only `true`,
`false`, `null` and plain decimal numbers mean something else than the text they are.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
import tomllib
from pathlib import Path
from typing import Any

from aibox.audit.checkpoint import verify_signature
from aibox.audit.signer import Signer
from aibox.errors import ConfigError, IntegrityError

YAML = (".yaml", ".yml")
SUFFIXES = (".toml", *YAML)
MAX_BYTES = 1 << 20
_CONTEXT = "aibox policy 1"


def read(path: Path, *, key: str | None = None) -> dict[str, Any]:
    """The tables of a file. With a `key` (a verifier key) the file must have a signature of it, in `FILE.sig`.

    Raises ConfigError for a file that cannot be read, IntegrityError for one that this key has not signed.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the policy {path}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"the policy {path} has {len(data)} bytes; at most {MAX_BYTES} are read")
    if key is not None:
        _check(data, path, key)
    return parse(data, source=str(path), yaml=path.suffix.lower() in YAML)


def parse(data: bytes, *, source: str, yaml: bool = False) -> dict[str, Any]:
    """The tables in a file's bytes. Raises ConfigError that names `source`."""
    try:
        text = data.decode("utf-8")
        return _yaml(text, source) if yaml else tomllib.loads(text)
    except ValueError as error:  # not UTF-8, not TOML, or a number of a thousand digits
        raise ConfigError(f"{source} is not {'YAML' if yaml else 'TOML'}: {error}") from None
    except RecursionError:
        raise ConfigError(f"{source} is nested too deeply") from None


def sign(path: Path, signer: Signer) -> Path:
    """Write `FILE.sig` for a policy as it is now; returns its path. Raises ConfigError, StoreError."""
    try:
        data = path.read_bytes()
        beside = path.with_name(f"{path.name}.sig")
        signature = base64.b64encode(signer.sign_bytes(_statement(data))).decode()
        beside.write_text(f"{_CONTEXT}\n{signature}\n", "ascii")
    except OSError as error:
        raise ConfigError(f"the policy {path} cannot be signed: {error.strerror}") from None
    return beside


def _check(data: bytes, path: Path, key: str) -> None:
    beside = path.with_name(f"{path.name}.sig")
    try:
        # What is no signature of a policy has another first line, and what it signs is another statement.
        context, signature, _ = beside.read_text("ascii").split("\n")
        verify_signature(key, base64.b64decode(signature, validate=True), _statement(data, context))
    except OSError:
        raise IntegrityError(f"the policy {path} is not signed", hint=f"aibox policy sign {path}") from None
    except ValueError as error:
        raise IntegrityError(
            f"the policy {path} is not what the trusted key signed: {error}",
            hint="restore it, or have its owner sign it anew: aibox policy sign",
        ) from None


def _statement(data: bytes, context: str = _CONTEXT) -> bytes:
    if context != _CONTEXT:
        raise ValueError("it is not the signature of a policy")
    return f"{_CONTEXT}\n{hashlib.sha256(data).hexdigest()}\n".encode()


def _yaml(text: str, source: str) -> dict[str, Any]:
    import yaml

    try:
        value = yaml.load(text, Loader=_loader())  # noqa: S506 - a loader that makes plain values only
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{source} is not YAML{where}: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{source} is no policy: it must be keys with values")
    return value


_PLAIN = (
    ("bool", r"true|false", "tf"),
    ("null", r"null|~|", ["n", "~", ""]),
    ("int", r"-?(?:0|[1-9][0-9]*)", "-0123456789"),
    ("float", r"-?(?:0|[1-9][0-9]*)\.[0-9]+", "-0123456789"),
)


@functools.cache
def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Text, lists, mappings, and what `_PLAIN` says; nothing else can be made of a document."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]  # not in the stubs
            mark: Any = event.start_mark
            if isinstance(event, yaml.AliasEvent):
                raise yaml.composer.ComposerError(None, None, "aliases are not read", mark)
            if getattr(event, "tag", None) is not None:
                raise yaml.composer.ComposerError(None, None, "tags are not read", mark)
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key_node, _ in node.value:
                # A threshold is written 0.5 and means the key "0.5"; every key is the text that it is written as.
                if not isinstance(key_node, yaml.ScalarNode):
                    raise yaml.constructor.ConstructorError(None, None, "a key must be text", key_node.start_mark)
                key_node.tag = "tag:yaml.org,2002:str"
                if key_node.value in seen:
                    problem = f"{key_node.value} comes twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
                seen.add(key_node.value)
            return super().construct_mapping(node, deep=deep)

    Loader.yaml_implicit_resolvers = {}
    for name, pattern, first in _PLAIN:
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(rf"(?:{pattern})\Z"), list(first))
    return Loader
