"""Settings: where they come from, in which order, and what a mistyped one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from aibox.errors import ConfigError
from aibox.settings import Settings


def test_argument_beats_environment_beats_file_beats_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each source wins over the next, key by key and not table by table."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "aibox.toml").write_text('policy = "strict"\n[server]\nport = 1\nuser = "file"\ntenant = "file"\n')
    env = {"AIBOX_HOME": str(tmp_path), "AIBOX_SERVER__PORT": "2", "AIBOX_SERVER__USER": "env"}
    loaded = Settings.load(env=env, server={"port": 3})
    assert (loaded.server.port, loaded.server.user, loaded.server.tenant) == (3, "env", "file")
    assert loaded.policy == "strict"
    assert loaded.server.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"AIBOX_POLCY": "strict"}, "did you mean AIBOX_POLICY"),
        ({"AIBOX_SERVER__PRT": "1"}, "did you mean 'port'"),
        ({"AIBOX_SERVER__PORT": "many"}, "server.port"),
        ({"AIBOX_BACKENDS": "[{"}, "looks like JSON"),
        ({"AIBOX_BACKENDS": '[{"kind": "vllm"}]'}, "needs a url"),
    ],
)
def test_a_mistyped_setting_is_refused_with_the_likely_one(env: dict[str, str], message: str, tmp_path: Path) -> None:
    """Nothing that looks like a setting is silently ignored."""
    with pytest.raises(ConfigError, match=message):
        Settings.load(env={"AIBOX_HOME": str(tmp_path), **env})


def test_reserved_names_are_not_settings(tmp_path: Path) -> None:
    """AIBOX_HOME, AIBOX_SOVEREIGN and AIBOX_TEST_* have meanings of their own."""
    env = {"AIBOX_HOME": str(tmp_path), "AIBOX_SOVEREIGN": "strict", "AIBOX_TEST_DATA": "x"}
    assert Settings.load(env=env).home == tmp_path


def test_a_secret_reaches_no_repr_and_no_error(tmp_path: Path) -> None:
    """Neither printing settings nor a complaint about them shows a key."""
    backend = '{"kind": "vllm", "url": "http://x/v1", "api_key": "s3cret"}'
    loaded = Settings.load(env={"AIBOX_HOME": str(tmp_path), "AIBOX_BACKENDS": f"[{backend}]"})
    assert "s3cret" not in repr(loaded)
    assert "s3cret" not in loaded.model_dump_json()
    assert loaded.backends[0].key() == "s3cret"
    bad = backend.replace('"vllm"', '"vlm"')
    with pytest.raises(ConfigError) as caught:
        Settings.load(env={"AIBOX_HOME": str(tmp_path), "AIBOX_BACKENDS": f"[{bad}]"})
    assert "s3cret" not in str(caught.value)


def test_a_secret_can_lie_in_a_file(tmp_path: Path) -> None:
    """`api_key_file` is read when the key is needed, relative to the settings file, without its line end."""
    (tmp_path / "key").write_text("s3cret\n")
    config = tmp_path / "aibox.toml"
    config.write_text('[[backends]]\nkind = "openai"\nurl = "http://x/v1"\napi_key_file = "key"\n')
    loaded = Settings.load(config=config, env={"AIBOX_HOME": str(tmp_path)})
    assert loaded.backends[0].key() == "s3cret"


def test_paths_in_a_file_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A settings file means the same wherever the program was started."""
    monkeypatch.chdir("/")
    config = tmp_path / "aibox.toml"
    config.write_text('home = "data"\npolicy = "mine.toml"\n[[backends]]\nkind = "embedded"\npath = "m.gguf"\n')
    loaded = Settings.load(config=config)
    assert loaded.home == tmp_path / "data"
    assert loaded.policy == str(tmp_path / "mine.toml")
    assert loaded.backends[0].path == tmp_path / "m.gguf"


def test_a_settings_file_that_was_named_must_exist(tmp_path: Path) -> None:
    """--config with a wrong path is an error, not a fall-back to defaults."""
    with pytest.raises(ConfigError, match="no settings file"):
        Settings.load(config=tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("backends = 5\n", "backends: Input should be"),
        ("workflows = 1\n", "workflows: Input should be"),
        ("[tenants.a]\nwebhooks = 5\n", "webhooks: Input should be"),
        (f"home = {'[' * 20_000}{']' * 20_000}\n", "is not TOML"),
        (f"[server]\nport = {'9' * 5000}\n", "is not TOML"),
    ],
)
def test_a_file_of_another_shape_is_an_error_that_names_it(text: str, message: str, tmp_path: Path) -> None:
    """A list that is a number, brackets without an end, a number of a thousand digits: a ConfigError, and no other."""
    path = tmp_path / "aibox.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        Settings.load(config=path)
    assert "aibox.toml" in caught.value.message
