"""Settings of the control plane: the API, its tokens, training jobs, money."""

import base64
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import ByteSize, Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import NoDecode

from gaelp_tasks.models.image import check_pattern
from gaelp_tasks.models.tariff import Tariff
from gaelp_tasks.settings.cluster import Comma, NotNegative, Positive, listener
from gaelp_tasks.settings.training import TrainingPlane

__all__ = ["ControlPlane"]

KEY_BYTES = 32  #: of a key of AES-256
FEWEST = {"HS256": 32, "HS384": 48, "HS512": 64}  #: bytes of a secret, as many as the hash has


class ControlPlane(TrainingPlane):
    """What only `gaelp api`, and the parts that serve it, read."""

    api_address: str = Field("127.0.0.1:8000", description="where `gaelp api` listens")
    api_max_body_bytes: ByteSize = Field(
        ByteSize(36 * 1024**2), description="larger bodies are refused before they are read"
    )
    api_watchers: int = Field(1000, ge=1, description="WebSockets that one `gaelp api` serves at once")
    api_watchers_per_user: int = Field(50, ge=1, description="of those, how many may be one user's")
    api_tells_cluster: bool = Field(
        True,
        description="whether the /metrics of `gaelp api` tell of queues and nodes, too; false where `gaelp "
        "metrics` does",
    )
    api_ticket_ttl_s: Positive = Field(30.0, description="a ticket for a WebSocket must be used within this")
    api_max_batch_bytes: ByteSize = Field(
        ByteSize(512 * 1024**2), description="the same for the file of a batch, which is laid on disk"
    )
    api_max_waiting: int = Field(
        10_000, ge=1, description="more invocations accepted over HTTP may not be open at once: 429"
    )
    api_max_streams: int = Field(500, ge=1, description="token streams that one `gaelp api` serves at once")
    api_keep_s: NotNegative = Field(
        86_400.0, description="what was accepted over HTTP stays in SQL so long after its end; 0: for ever"
    )
    api_proxies: str = Field(
        "",
        description="addresses of proxies whose X-Forwarded-For is believed, comma separated; * for any; "
        "empty: of none",
    )
    api_head_timeout_s: Positive = Field(
        10.0, description="a connection without a whole head of a request is closed after this"
    )
    api_rate_per_s: float = Field(
        1000.0, ge=0, description="requests of one user, over all replicas, sustained; 0: any number"
    )
    api_burst: int = Field(2000, ge=1, le=1_000_000, description="the same at once, after a pause")
    api_failures_per_minute: int = Field(
        60, ge=1, le=100_000, description="failed sign-ins of one address; then it waits"
    )
    api_idempotency_keep_s: Positive = Field(
        86_400.0, description="an answer under an Idempotency-Key is given again for this long"
    )
    jwt_algorithm: Literal["HS256", "HS384", "HS512"] = Field(
        "HS256", description="how tokens are signed; those that are signed otherwise are refused"
    )
    jwt_secret: SecretStr = Field(
        SecretStr(""),
        description="what signs tokens, 32 bytes or more (HS512: 64): `openssl rand -hex 32` makes one; "
        "without it `gaelp api` does not start",
    )
    jwt_ttl_s: Positive = Field(43_200.0, description="how long a token of `gaelp token create` holds")

    api_url: str = Field("http://127.0.0.1:8000", description="the API that `gaelp agents` and the like ask")
    api_token: SecretStr = Field(
        SecretStr(""), description="signs `gaelp` in there: a token of `gaelp token create`, or an API key"
    )
    tariff: Tariff = Field(
        Tariff(), description="prices that are not ours, as JSON (docs/money.md), in micro-units"
    )
    paid_tokens: int = Field(
        4096,
        ge=1,
        le=2**40,
        description="of an answer that a budget pays for and that names no num_predict, at most",
    )
    quota_cpu_milli: int = Field(
        10_000, ge=0, le=2**53, description="a user without limits of his own holds this of CPUs at once"
    )
    quota_memory: ByteSize = Field(ByteSize(20 * 1024**3), description="the same of memory")
    quota_gpus: int = Field(2, ge=0, le=2**53, description="the same of GPUs")
    quota_storage: ByteSize = Field(ByteSize(100 * 1024**3), description="the same of storage")
    quota_runs: int = Field(64, ge=0, le=2**53, description="runs of his jobs and deployments at once")

    secret_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        description="keys that seal the secrets of agents, comma separated: the first one seals, all of them "
        "open; `openssl rand -base64 32` makes one; without any no secret is taken",
    )
    training_images: Comma = Field(
        ("gcr.io/gaelp/*",),
        description="container images that agents may have, comma separated; * stands for anything",
    )
    agent_metrics_keep_s: NotNegative = Field(
        30 * 86_400.0, description="metrics of agents are kept this long; 0: for ever"
    )
    agent_metrics_keep: int = Field(
        10_000, ge=1, le=10_000_000, description="metrics of one agent that are kept, the newest"
    )
    ledger_keep_s: NotNegative = Field(
        400 * 86_400.0, description="bills that no budget has paid are kept this long; 0: for ever"
    )
    audit_keep_s: NotNegative = Field(
        0.0, description="decisions about agents are kept this long in the audit; 0: for ever"
    )

    @field_validator("api_address")
    @classmethod
    def _api_listens(cls, value: str) -> str:
        if listener(value) is None:
            raise ValueError("write it as host:port, such as 127.0.0.1:8000 or [::1]:8000")
        return value

    @field_validator("api_url")
    @classmethod
    def _http(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            whole = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            whole = False
        if not whole or parts.query or parts.fragment:
            raise ValueError("write it as http://host:port or https://host")
        return value

    @field_validator("api_token")
    @classmethod
    def _fits_a_header(cls, value: SecretStr) -> SecretStr:
        token = value.get_secret_value()
        if not token.isascii() or not token.isprintable() or " " in token:
            raise ValueError("a token has neither spaces nor letters beyond ASCII")
        return value

    @field_validator("jwt_secret")
    @classmethod
    def _long_enough(cls, value: SecretStr, given: ValidationInfo) -> SecretStr:
        fewest = FEWEST.get(given.data.get("jwt_algorithm", ""), 0)
        if 0 < len(value.get_secret_value().encode()) < fewest:
            raise ValueError(f"take at least {fewest} bytes, such as `openssl rand -hex 32` makes")
        return value

    @field_validator("secret_keys", "training_images", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("secret_keys")
    @classmethod
    def _keys(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for key in value:
            try:
                size_bytes = len(base64.b64decode(key.get_secret_value(), validate=True))
            except ValueError:  # binascii's is one
                size_bytes = 0
            if size_bytes != KEY_BYTES:
                raise ValueError("a key is the base64 of 32 bytes, such as `openssl rand -base64 32` makes")
        return value

    @field_validator("training_images")
    @classmethod
    def _patterns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            check_pattern(pattern)
        return value

    @property
    def api_listener(self) -> tuple[str, int]:
        """Host and port of `api_address`."""
        found = listener(self.api_address)
        assert found is not None  # noqa: S101  it was checked when it was read
        return found
