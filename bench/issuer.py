"""An OpenID issuer on loopback for a bench: one key pair, its discovery document, and tokens that it signs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

AUDIENCE = "aibox"


@contextmanager
def issuer() -> Iterator[tuple[str, str]]:
    """(Its settings as TOML, a token of a user that is good for an hour.)"""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": "one", "alg": "RS256", "use": "sig"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = {"issuer": url, "jwks_uri": f"{url}/jwks"} if "well-known" in self.path else {"keys": [public]}
            body = json.dumps(found).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """A bench prints its table only."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    now = int(time.time())
    claims = {"iss": url, "aud": AUDIENCE, "sub": "eva", "client_id": "bench", "tenant": "acme", "roles": ["user"],
              "iat": now, "exp": now + 3600, "jti": "1"}  # fmt: skip
    token = jwt.encode(claims, key, algorithm="RS256", headers={"kid": "one", "typ": "at+jwt"})
    try:
        yield f'[[server.issuers]]\nissuer = "{url}"\naudience = "{AUDIENCE}"\n', token
    finally:
        server.shutdown()
        server.server_close()
