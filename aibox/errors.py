"""Every way aibox can fail, in one tree. Three questions, three branches, and one that nobody may swallow.

    AIBoxError(message, *, hint)
    ├─ ConfigError              you wired it wrong
    │  └─ MissingExtraError     also ImportError; carries the pip line
    ├─ PolicyError              we refused: never retried, always recorded
    │  ├─ AuthError             401: who are you
    │  ├─ AccessError           403: not yours (404 where existence is a secret)
    │  ├─ GuardrailError        400: a check said no, or could not answer
    │  ├─ EgressError           403: the door stays shut
    │  │  └─ ApprovalError      a person has to agree to this passage first
    │  └─ LimitError            429: more than was granted
    ├─ UpstreamError            the world failed; `.retryable`
    │  ├─ BackendError          502, or 504 on a time-out: a model server
    │  ├─ StoreError            503: a database, a disk, an index
    │  └─ SandboxError          503: the isolation, never the code inside it
    └─ IntegrityError           the evidence does not hold

A blocked answer, a command that exits 1 and an empty search are results, not exceptions.
"""

from __future__ import annotations


class AIBoxError(Exception):
    """Base of all errors of aibox.

    `code` is stable across releases and fit for programs (`"policy.egress"`); `hint` tells a person what to do next.
    """

    code = "aibox"

    def __init__(self, message: str, *, hint: str = "", code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(AIBoxError):
    """The parts were wired, named or configured wrongly; nothing has been done yet."""

    code = "config"


NO_MODEL = "config.model"
"""Code of a ConfigError: a model, or an agent in the place of one, was asked for by a name that nothing here has."""

STATE = "config.state"
"""Code of a ConfigError: it could be done, and not in the state in which the thing is now."""


OPERATORS = "config.operator"
"""Code of a ConfigError whose words are for the operator: a file, an address or a role of this box stands in them."""


class MissingExtraError(ConfigError, ImportError):
    """A feature needs a package that is not installed; `hint` is the line that installs it."""

    code = "config.missing_extra"

    def __init__(self, feature: str, *, extra: str, install: str | None = None) -> None:
        super().__init__(
            f"{feature} needs packages that are not installed",
            hint=install or f'run: pip install "aibox-sdk[{extra}]"',
        )
        self.extra = extra


class PolicyError(AIBoxError):
    """aibox refused, on purpose. Retrying the same thing gives the same answer."""

    code = "policy"


class AuthError(PolicyError):
    """The caller did not prove who they are. `missing`: they sent nothing that could have been a proof."""

    code = "policy.auth"

    def __init__(self, message: str, *, hint: str = "", missing: bool = False, code: str | None = None) -> None:
        super().__init__(message, hint=hint, code=code)
        self.missing = missing


class AccessError(PolicyError):
    """The caller is known and may not do this. `absent`: nor may they know whether it is there (404, not 403)."""

    code = "policy.access"

    def __init__(self, message: str, *, hint: str = "", absent: bool = False, code: str | None = None) -> None:
        super().__init__(message, hint=hint, code=code)
        self.absent = absent


class GuardrailError(PolicyError):
    """A check blocked the text, or could not answer and its policy says that this counts as a block."""

    code = "policy.guardrail"


class EgressError(PolicyError):
    """Text was about to leave the box and the policy does not allow it. Nothing was sent."""

    code = "policy.egress"


class ApprovalError(EgressError):
    """The policy lets this text out to this model once a person has agreed, and nobody has. Nothing was sent.

    `model` is `backend/model`, `policy` the digest of the rules that the door went by: what a yes is bound to.
    """

    code = "policy.approval"

    def __init__(self, message: str, *, hint: str = "", model: str, host: str, policy: str) -> None:
        super().__init__(message, hint=hint)
        self.model = model
        self.host = host
        self.policy = policy


class LimitError(PolicyError):
    """A limit of size, time, number or money was reached. `retry_after_s` is None when waiting does not help."""

    code = "policy.limit"

    def __init__(
        self, message: str, *, hint: str = "", retry_after_s: float | None = None, code: str | None = None
    ) -> None:
        super().__init__(message, hint=hint, code=code)
        self.retry_after_s = retry_after_s


class UpstreamError(AIBoxError):
    """Something outside aibox failed. `retryable` says whether the same call may work a moment later."""

    code = "upstream"

    def __init__(self, message: str, *, hint: str = "", retryable: bool = False, code: str | None = None) -> None:
        super().__init__(message, hint=hint, code=code)
        self.retryable = retryable


class BackendError(UpstreamError):
    """A model server could not be reached, refused the request, or broke off. `timeout` tells a 504 from a 502.

    `status` is what the server answered, None where it gave no answer; `retry_after_s` is how long it asks to wait.
    `outward` is the message without the address that it names, for those who do not run the server.
    """

    code = "upstream.backend"

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        retryable: bool = False,
        timeout: bool = False,
        status: int | None = None,
        retry_after_s: float | None = None,
        outward: str = "",
    ) -> None:
        super().__init__(message, hint=hint, retryable=retryable)
        self.outward = outward
        self.timeout = timeout
        self.status = status
        self.retry_after_s = retry_after_s


class StoreError(UpstreamError):
    """A database, a disk or an index could not do what was asked; what was acknowledged before is still there."""

    code = "upstream.store"


class SandboxError(UpstreamError):
    """The isolation could not be had or broke. Code is never run without it."""

    code = "upstream.sandbox"


class IntegrityError(AIBoxError):
    """The evidence does not hold. Nothing inside aibox catches this but the command that reports it."""

    code = "integrity"
