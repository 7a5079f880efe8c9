"""Models on disk: what is staged is whole and signed, what is broken is told, and the store is never harmed."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seaweed import put, seaweed

import aibox
from aibox.audit.keys import Keyring
from aibox.cli.app import run
from aibox.errors import BackendError, ConfigError, IntegrityError, StoreError
from aibox.inference.manifest import Manifest, check_path
from aibox.inference.s3 import Bucket
from aibox.inference.sources import S3, Folder
from aibox.inference.staging import MANIFEST, ModelStore


def safetensors(size: int = 64) -> bytes:
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(range(256)) * (size // 256) + b"\1" * (size % 256)


def gguf() -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 0)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for number in (1, 2):
        (folder / f"model-0000{number}-of-00002.safetensors").write_bytes(safetensors(100_000 + number))
    index = {"weight_map": {f"w{n}": f"model-0000{n}-of-00002.safetensors" for n in (1, 2)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    (folder / "LICENSE").write_text("free")
    (folder / "modeling.py").write_text("import os")
    (folder / "weights.bin").write_bytes(b"\x80pickle")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models", keys=Keyring(tmp_path / "keys"))


def stage(store: ModelStore, source: Path, name: str = "m") -> Manifest:
    with Folder(source) as place:
        return store.stage(place, name=name, origin=str(source.name))


def left(store: ModelStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir() if not path.name.startswith(".staging"))


def test_a_model_is_staged_with_a_manifest_that_holds(store: ModelStore, source: Path) -> None:
    """Weights and companions are there with their digests; what could run code is left out and named."""
    with Folder(source) as place:
        manifest = store.stage(place, name="m", origin="here")
        assert place.left_out == ["modeling.py", "weights.bin"]
    assert [f.path for f in manifest.files] == [
        "LICENSE", "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]  # fmt: skip
    digest = hashlib.sha256((source / "config.json").read_bytes()).hexdigest()
    assert manifest.files[1].sha256 == digest
    assert store.verify("m") == manifest == store.list()[0]
    with pytest.raises(ConfigError, match="staged already"):
        stage(store, source)
    store.remove("m")
    assert left(store) == []


def _flip(folder: Path) -> None:
    path = folder / "model-00002-of-00002.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _cut(folder: Path) -> None:
    path = folder / "model-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def _swap(folder: Path) -> None:
    path = folder / "config.json"
    path.unlink()
    path.symlink_to("/etc/hostname")


@pytest.mark.parametrize(
    "harm",
    [
        _flip,
        _cut,
        _swap,
        lambda f: (f / "config.json").unlink(),
        lambda f: (f / "extra.py").write_text("import os"),
        lambda f: (f / MANIFEST).write_bytes((f / MANIFEST).read_bytes().replace(b"LICENSE", b"LICENSF")),
        lambda f: (f / MANIFEST).write_bytes(b""),
    ],
)
def test_what_was_changed_is_found(store: ModelStore, source: Path, harm: Any) -> None:
    """A byte, a length, a link, a missing or added file, or a touched manifest: the model does not hold."""
    stage(store, source)
    harm(store.folder / "m")
    with pytest.raises(IntegrityError):
        store.verify("m")


def test_a_manifest_of_another_key_or_name_is_none(store: ModelStore, source: Path, tmp_path: Path) -> None:
    """Nobody can sign for this store, or give one model's manifest to another."""
    stage(store, source)
    other = ModelStore(store.folder, keys=Keyring(tmp_path / "other-keys"))
    with pytest.raises(IntegrityError, match="another key"):
        other.verify("m")
    (store.folder / "m").rename(store.folder / "n")
    with pytest.raises(IntegrityError, match="another model"):
        store.verify("n")


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda f: (f / "model-00002-of-00002.safetensors").unlink(), "shard .*00002.* is missing"),
        (lambda f: [p.unlink() for p in f.glob("*.safetensors")], "no weights"),
        (_cut, "cut off"),
        (lambda f: (f / "x.gguf").write_bytes(b"GGUX" + bytes(50)), "not a GGUF"),
        (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"w": "lost.safetensors"}}'),
         "shard lost"),
        (lambda f: (f / "out.json").symlink_to("/etc/hostname"), "leads out"),
    ],
)  # fmt: skip
def test_what_is_no_whole_model_is_refused_and_the_store_unharmed(
    store: ModelStore, source: Path, harm: Any, says: str
) -> None:
    """The error says what is wrong; nothing appears under the name, and what was there holds."""
    stage(store, source, "before")
    harm(source)
    with pytest.raises(ConfigError, match=says):
        stage(store, source)
    assert left(store) == ["before"]
    store.verify("before")


class Breaks(Folder):
    """Ends or fails after some bytes, once."""

    def __init__(self, place: Path, *, error: Exception | None) -> None:
        super().__init__(place)
        self.error = error
        self.starts: list[int] = []

    def read(self, path: str, start: int) -> Iterator[bytes]:
        self.starts.append(start)
        for piece in super().read(path, start):
            if path.endswith("00002.safetensors") and len(self.starts) == 4:
                yield piece[:1000]
                if self.error:
                    raise self.error
                return
            yield piece


@pytest.mark.parametrize("error", [None, BackendError("gone", retryable=True), OSError(errno.ENOSPC, "no space")])
def test_an_unfinished_download_goes_on_where_it_ended(
    store: ModelStore, source: Path, error: Exception | None
) -> None:
    """Nothing appears under the name before all is there; the second attempt reads only what is missing."""
    with pytest.raises((StoreError, BackendError)):
        store.stage(Breaks(source, error=error), name="m", origin="x")
    assert left(store) == []
    again = Breaks(source, error=None)
    store.stage(again, name="m", origin="x")
    assert again.starts[0] == 1000
    store.verify("m")


def test_what_changed_between_two_attempts_is_read_anew(store: ModelStore, source: Path) -> None:
    """No model is a mixture of two versions of a file."""
    with pytest.raises(StoreError):
        store.stage(Breaks(source, error=None), name="m", origin="x")
    (source / "model-00002-of-00002.safetensors").write_bytes(safetensors(100_002)[:-1] + b"\7")
    manifest = stage(store, source)
    digest = hashlib.sha256((source / "model-00002-of-00002.safetensors").read_bytes()).hexdigest()
    assert manifest.files[3].sha256 == digest


def test_a_model_too_large_for_the_disk_is_refused_first(
    store: ModelStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is not filled to find out."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1000))  # type: ignore[attr-defined]
    with pytest.raises(StoreError, match="needs"):
        stage(store, source)


@given(st.text(max_size=40) | st.sampled_from(["../x", "/x", "a/../b", "a//b", "./a", "a/", "..", "a\\b", ".hidden"]))
def test_no_path_of_a_manifest_leads_out_of_its_folder(path: str) -> None:
    """What passes is a plain relative path, whatever is tried."""
    try:
        check_path(path)
    except ConfigError:
        return
    place = Path("/root/of/model") / path
    assert os.path.normpath(place) == str(place)
    assert place.is_relative_to("/root/of/model")


# Bundles.


def test_a_bundle_carries_a_model_to_another_site(store: ModelStore, source: Path, tmp_path: Path) -> None:
    """With the exporter's key it is taken and signed anew; without it, or with another one, it is not."""
    stage(store, source)
    bundle = tmp_path / "m.tar"
    store.export("m", bundle)
    there = ModelStore(tmp_path / "there", keys=Keyring(tmp_path / "their-keys"))
    with pytest.raises(IntegrityError, match="another key"):
        there.import_(bundle)
    there.import_(bundle, trusted=store.public_key)
    assert there.verify("m").files == store.verify("m").files


def _rewritten(bundle: Path, change: Any) -> None:
    with tarfile.open(bundle) as old:
        members = [(m, old.extractfile(m).read()) for m in old]  # type: ignore[union-attr]  # all are files
    with tarfile.open(bundle, "w") as new:
        for member, data in change(members):
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))


def _link(members: Any) -> Any:
    out = tarfile.TarInfo("m/config.json")
    out.type, out.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return [*members[:2], (out, b""), *members[3:]]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: [*m[:3], (m[3][0], m[3][1][:-1] + b"\x09"), *m[4:]],
        lambda m: m[:-1],
        lambda m: [*m, (tarfile.TarInfo("../../evil.json"), b"{}")],
        lambda m: [*m, (tarfile.TarInfo("m/extra.py"), b"import os")],
        lambda m: m[1:],
        _link,
    ],
)
def test_a_bundle_that_was_touched_is_refused(store: ModelStore, source: Path, tmp_path: Path, change: Any) -> None:
    """A changed byte, a lost or added file, a path that leads out, a link: nothing of it is kept."""
    stage(store, source)
    bundle = tmp_path / "m.tar"
    store.export("m", bundle)
    _rewritten(bundle, change)
    there = ModelStore(tmp_path / "there", keys=Keyring(tmp_path / "keys"))
    with pytest.raises(IntegrityError):
        there.import_(bundle)
    assert not list(tmp_path.rglob("evil*"))
    assert not there.folder.exists() or not list(there.folder.iterdir())


@pytest.mark.parametrize("cut", [0, 100, 5000, 150_000])
def test_a_bundle_that_was_cut_off_is_refused(store: ModelStore, source: Path, tmp_path: Path, cut: int) -> None:
    """However much of it has arrived."""
    stage(store, source)
    bundle = tmp_path / "m.tar"
    store.export("m", bundle)
    bundle.write_bytes(bundle.read_bytes()[:cut])
    with pytest.raises(IntegrityError):
        ModelStore(tmp_path / "there", keys=Keyring(tmp_path / "keys")).import_(bundle)


# The command line, and what is loaded.


def test_the_commands_stage_verify_carry_and_remove(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a folder to another site and away again, with exit code 1 for a model that does not hold."""
    monkeypatch.setenv("AIBOX_HOME", str(tmp_path / "one"))
    assert run(["models", "stage", str(source), "--name", "m"]) == 0
    assert run(["models", "verify"]) == 0
    assert run(["models", "export", "m", str(tmp_path / "m.tar")]) == 0
    key = capsys.readouterr().out.strip().rpartition(" ")[2]
    monkeypatch.setenv("AIBOX_HOME", str(tmp_path / "two"))
    assert run(["models", "import", str(tmp_path / "m.tar")]) == 1
    assert run(["models", "import", str(tmp_path / "m.tar"), "--key", key]) == 0
    _flip(tmp_path / "two" / "models" / "m")
    assert run(["models", "verify", "m"]) == 1
    assert run(["models", "remove", "m"]) == 0
    assert run(["models", "remove", "m"]) == 2


@pytest.mark.anyio
async def test_a_box_loads_only_what_matches_its_manifest(tmp_path: Path) -> None:
    """A staged model is offered as verified; after one changed byte it is refused before it is loaded."""
    home = tmp_path / "home"
    (tmp_path / "tiny.gguf").write_bytes(gguf())
    store = ModelStore(home / "models", keys=Keyring(home / "keys"))
    stage(store, tmp_path / "tiny.gguf", "tiny")
    tables: Any = [{"kind": "embedded", "staged": "tiny"}]
    settings = aibox.Settings(home=home, backends=tables)
    async with aibox.open(settings=settings) as box:
        (info,) = await box.router.models()
        assert (info.id, info.weights.known) == ("tiny", "verified")
    (home / "models" / "tiny" / "tiny.gguf").write_bytes(gguf()[:-1] + b"\1")
    async with aibox.open(settings=settings) as box:
        with pytest.raises(ConfigError, match=r"tiny\.gguf"):
            await box.router.models()


# A real S3 server.


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with seaweed(tmp_path_factory.mktemp("weed")) as endpoint:
        yield endpoint


@pytest.mark.loopback
def test_a_model_is_staged_from_a_real_s3_server(s3: str, store: ModelStore, source: Path) -> None:
    """Listed, read, resumed and verified; a wrong key and a missing prefix are errors that say so."""
    put(s3, "/models", b"")
    for path in source.iterdir():
        put(s3, f"/models/org/big%20model/{path.name}", path.read_bytes())
    bucket = Bucket("models", endpoint=s3, access_key="AK", secret_key="SK")
    with S3(bucket, "org/big model") as place:
        manifest = store.stage(place, name="m", origin="s3")
        assert sorted(place.left_out) == ["modeling.py", "weights.bin"]
        assert b"".join(place.read("config.json", 1)) == b"}"
    stage(store, source, "same")
    assert manifest.files == store.verify("same").files
    wrong = S3(Bucket("models", endpoint=s3, access_key="AK", secret_key="no"), "org")
    with wrong, pytest.raises(BackendError, match="S3 answered 403"):
        store.stage(wrong, name="x", origin="s3")
    wrong = S3(Bucket("models", endpoint=s3, access_key="AK", secret_key="SK"), "nothing")
    with wrong, pytest.raises(ConfigError, match="no weights"):
        store.stage(wrong, name="x", origin="s3")
