"""Reading from any S3: list and get, signed by AWS Signature Version 4, path-style.

https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-auth-using-authorization-header.html
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from aibox.errors import BackendError, ConfigError

if TYPE_CHECKING:
    import httpx2

TIMEOUT_S = 60.0
MAX_LISTING_BYTES = 32 << 20
_UNSIGNED = "UNSIGNED-PAYLOAD"
_EMPTY = hashlib.sha256(b"").hexdigest()


class Bucket:
    """A bucket of the S3 server at `endpoint`, such as `http://minio.internal:9000`. Without keys it asks anonymously.

    `ca_bundle` is a PEM file of authorities, instead of the system's. Redirects are refused and nothing is taken from
    the environment. Raises ConfigError for what cannot be right, BackendError when the server fails.
    """

    def __init__(
        self,
        name: str,
        *,
        endpoint: str,
        access_key: str = "",
        secret_key: str = "",
        region: str = "us-east-1",
        ca_bundle: Path | None = None,
    ) -> None:
        import ssl

        import httpx2

        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.username:
            raise ConfigError(f"not an S3 endpoint: {endpoint[:100]!r}", hint="such as http://minio.internal:9000")
        if not name or "/" in name:
            raise ConfigError(f"not a bucket: {name[:60]!r}", hint="s3://BUCKET/PREFIX")
        self._name = name
        self._endpoint = endpoint.rstrip("/")
        self._host = parts.netloc
        self._keys = access_key, secret_key
        self._region = region
        verify: ssl.SSLContext | bool = ssl.create_default_context(cafile=str(ca_bundle)) if ca_bundle else True
        self._client: httpx2.Client = httpx2.Client(
            timeout=TIMEOUT_S, follow_redirects=False, trust_env=False, verify=verify
        )

    def objects(self, prefix: str) -> Iterator[tuple[str, int, str]]:
        """Key, size and entity tag of each object under a prefix."""
        from xml.etree import ElementTree as ET

        token = ""
        while True:
            query = {"list-type": "2", "prefix": prefix, **({"continuation-token": token} if token else {})}
            with self._get("", query) as response:
                data = response.read()
            if len(data) > MAX_LISTING_BYTES:
                raise BackendError("the S3 server sent a listing that is too long")
            try:
                # The server is the operator's own, and expat bounds what entities may grow to.
                tree = ET.fromstring(data)  # noqa: S314
            except ET.ParseError:
                raise BackendError("the S3 server did not answer in XML", hint="is the endpoint right?") from None
            space = tree.tag.partition("}")[0] + "}" if tree.tag.startswith("{") else ""
            for entry in tree.iterfind(f"{space}Contents"):
                size = int(entry.findtext(f"{space}Size", "0"))
                yield entry.findtext(f"{space}Key", ""), size, entry.findtext(f"{space}ETag", "")
            token = tree.findtext(f"{space}NextContinuationToken", "")
            if tree.findtext(f"{space}IsTruncated", "false") != "true" or not token:
                return

    def read(self, key: str, *, start: int = 0) -> Iterator[bytes]:
        """The object's bytes from `start` on. Raises BackendError, also in the middle."""
        with self._get(key, {}, start=start) as response:
            yield from response.iter_bytes(1 << 20)

    def close(self) -> None:
        self._client.close()

    @contextmanager
    def _get(self, key: str, query: Mapping[str, str], *, start: int = 0) -> Iterator[httpx2.Response]:
        import httpx2

        path = quote(f"/{self._name}/{key}" if key else f"/{self._name}", safe="/-_.~")
        asked = "&".join(f"{quote(k, safe='-_.~')}={quote(v, safe='-_.~')}" for k, v in sorted(query.items()))
        headers = self._signed(path, asked, datetime.now(UTC))
        if start:
            headers["range"] = f"bytes={start}-"
        url = f"{self._endpoint}{path}" + (f"?{asked}" if asked else "")
        try:
            with self._client.stream("GET", url, headers=headers) as response:
                if response.status_code != (206 if start else 200):
                    said = response.read()[:300].decode("utf-8", "replace")
                    raise BackendError(
                        f"S3 answered {response.status_code} for {self._name}/{key}: {' '.join(said.split())}",
                        hint="are the bucket, the keys and the region right?",
                        status=response.status_code,
                    )
                yield response
        except httpx2.HTTPError as error:
            raise BackendError(f"the S3 server at {self._endpoint} broke off: {error}", retryable=True) from None

    def _signed(self, path: str, query: str, now: datetime, *, method: str = "GET") -> dict[str, str]:
        content = _EMPTY if method == "GET" else _UNSIGNED
        stamp = now.strftime("%Y%m%dT%H%M%SZ")
        headers = {"host": self._host, "x-amz-content-sha256": content, "x-amz-date": stamp}
        access, secret = self._keys
        if not access:
            return headers
        names = ";".join(sorted(headers))
        lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
        canonical = f"{method}\n{path}\n{query}\n{lines}\n{names}\n{content}"
        scope = f"{stamp[:8]}/{self._region}/s3/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        key = f"AWS4{secret}".encode()
        for part in (stamp[:8], self._region, "s3", "aws4_request"):
            key = hmac.digest(key, part.encode(), hashlib.sha256)
        signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={access}/{scope}, SignedHeaders={names}, Signature={signature}"
        )
        return headers
