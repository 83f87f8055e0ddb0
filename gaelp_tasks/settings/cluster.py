"""Settings of workers, producers and beat: each with its GAELP_ variable, unit, default and reason."""

import json
import math
import os
import re
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import BaseModel, ByteSize, Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

from gaelp_tasks import addresses
from gaelp_tasks.db import address
from gaelp_tasks.footprints import KvCacheType, MemoryModelName

__all__ = ["Cluster", "Comma", "MemorySource", "NotNegative", "Positive", "SettingRow", "listener", "masked"]

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Comma = Annotated[tuple[str, ...], NoDecode]
MemorySource = Literal["auto", "host", "cgroup", "gpu", "budget"]

SECRETS = "/run/secrets"  #: where containers find what was given to them
ENVELOPE = 4  #: times a prompt's own bytes that it may take on its way: base64, escapes, headers


class Cluster(BaseSettings):
    """From the environment, prefix GAELP_, or from files. Seconds are floats, sizes take units (2GiB)."""

    model_config = SettingsConfigDict(
        env_prefix="GAELP_", frozen=True, extra="ignore", env_ignore_empty=True, hide_input_in_errors=True
    )

    broker_url: str = Field(
        "redis://127.0.0.1:6379/0",
        description="Redis that carries queues, streams and our own keys: redis://, rediss://, or "
        "sentinel://one:26379;sentinel://two:26379/0?master_name=mymaster",
    )
    namespace: str = Field("", description="prefix of every key, so that two clusters share one Redis")
    result_backend: str = Field("", description="where results are kept; empty: the broker")
    database_url: str = Field(
        "",
        description="SQL of schedules, batches and history: sqlite:////its/file or postgresql://...; empty: "
        "SQLite at $XDG_STATE_HOME/gaelp/gaelp.db",
    )
    secrets_dir: str = Field(
        SECRETS,
        description="folder of files that hold what is not in the environment, each called as its variable "
        "in small letters (gaelp_broker_url); none needs to be there",
    )
    ollama_nodes: Comma = Field(
        ("http://127.0.0.1:11434",),
        description="Ollama servers of this worker, comma separated; it spreads its runs over them",
    )
    node_router: Literal["least-loaded", "sollol"] = Field(
        "least-loaded", description="who chooses among several servers: least-loaded, or sollol (an extra)"
    )
    ollama_headers: dict[str, SecretStr] = Field(
        {}, description="JSON object of headers sent to every node, for a proxy that asks for them"
    )
    ollama_ca_file: str = Field("", description="CA bundle for https nodes; empty: the system's")
    default_model: str = Field("", description="model where none is named; empty: the node's first")
    embed_model: str = Field("", description="embedding model; empty: the node's first that embeds")
    agents: dict[str, str] = Field(
        {}, description='JSON object of more agents by name: {"name": "package.module:Class"}'
    )
    parsers: dict[str, str] = Field(
        {}, description='JSON object of more parsers by name: {"name": "package.module:function"}'
    )
    tools: dict[str, str] = Field(
        {}, description='JSON object of tools by name: {"name": "package.module:function"}'
    )
    num_parallel: int = Field(
        1, ge=1, le=1024, description="slots of a loaded model on each node (OLLAMA_NUM_PARALLEL)"
    )
    num_ctx: int = Field(0, ge=0, description="context tokens per slot; 0: the server's own default")
    memory_budget: ByteSize = Field(
        ByteSize(0),
        description="memory that models may take on each node, where it cannot be seen: AMD GPUs, another "
        "container or machine; 0: none declared",
    )
    memory_source: MemorySource = Field(
        "auto", description="what tells a node's memory; auto: the smallest of what tells of RAM or of VRAM"
    )
    kv_cache_type: KvCacheType = Field(
        "f16", description="how the nodes keep keys and values (OLLAMA_KV_CACHE_TYPE): f16 bf16 q8_0 q4_0 f32"
    )
    memory_model: MemoryModelName = Field(
        "kv", description="what a slot takes: kv, its context; naive, the whole model each time"
    )
    os_reserve: ByteSize = Field(
        ByteSize(2 * 1024**3), description="memory of a node that is left to the system, the safety floor"
    )
    safety_factor: float = Field(
        1.5, ge=1, description="estimates of what a model takes are multiplied by this; usual: 1.5 to 2.0"
    )
    embed_seats: int = Field(
        64, ge=1, le=512, description="embeddings at once; they share calls of their model and take no slot"
    )
    keep_alive_s: float = Field(300.0, description="how long a model stays loaded unused; negative: for ever")
    poll_interval_s: Positive = Field(1.0, description="how often a worker samples and announces its node")
    probe_interval_s: NotNegative = Field(
        30.0, description="a loaded model that was not heard for this long is asked for one token; 0: never"
    )
    connect_timeout_s: Positive = Field(5.0, description="to open a connection to a node")
    load_timeout_s: Positive = Field(600.0, description="for a model to be loaded; generous for slow disks")
    first_token_timeout_s: Positive = Field(300.0, description="to read the prompt; generous for a CPU node")
    stall_timeout_s: NotNegative = Field(120.0, description="between two tokens; 0: off")
    max_prompt_bytes: ByteSize = Field(
        ByteSize(32 * 1024**2), description="larger prompts, images included, are refused at the call"
    )
    reference_bytes: ByteSize = Field(
        ByteSize(64 * 1024),
        description="prompts, images and texts that take more lie beside their message, which refers to "
        "them; 0: never, and a prompt is then at most a quarter of GAELP_MAX_MESSAGE_BYTES",
    )
    max_message_bytes: ByteSize = Field(
        ByteSize(4 * 1024**2), description="larger messages are refused unread and become dead letters"
    )
    max_output_bytes: ByteSize = Field(
        ByteSize(4 * 1024**2), description="longer answers are cut with stop_reason length"
    )
    cache_embeddings: bool = Field(True, description="keep vectors in Redis; a call's own cache= counts more")
    cache_answers: bool = Field(
        False, description="keep exact answers in Redis where temperature is 0 or a seed is given"
    )
    cache_ttl_s: Positive = Field(86_400.0, description="an entry of the cache is kept this long")
    cache_max_bytes: ByteSize = Field(
        ByteSize(256 * 1024**2), description="all of the cache; the oldest entries make room"
    )
    cache_entry_bytes: ByteSize = Field(
        ByteSize(1024**2), description="an answer or vector larger than this is not kept"
    )
    retry_attempts: int = Field(4, ge=1, description="runs of one invocation before it fails")
    retry_base_s: Positive = Field(1.0, description="first wait is up to this, doubled each time")
    retry_cap_s: Positive = Field(60.0, description="no wait is longer")
    retry_by_error: dict[str, dict[Literal["attempts", "base_s", "cap_s"], Positive]] = Field(
        {}, description='JSON object of other retries by error: {"LoadTimeout": {"attempts": 3}}'
    )
    max_wait_s: NotNegative = Field(
        600.0, description="what has waited this long in a lower tier goes first, one at a time; 0: never"
    )
    tenant_max_running: int = Field(
        0, ge=0, description="invocations of one tenant that run at once, over all workers; 0: any number"
    )
    batch_window: int = Field(
        256, ge=1, le=10_000, description="lines of one batch that are queued or run at a time"
    )
    snooze_s: Positive = Field(2.0, description="wait where a node has no room and named no time")
    lease_ttl_s: Positive = Field(
        5.0, description="a worker that was not heard of for this long has lost its work"
    )
    poison_deaths: int = Field(
        10,
        ge=3,
        description="deaths of workers after which a message is a dead letter; from the third it runs alone",
    )
    drain_grace_s: NotNegative = Field(30.0, description="SIGTERM: running work may finish within this")
    deaf_after_s: Positive = Field(
        10.0, description="a worker with room whose claims go unanswered this long connects anew; x6: it ends"
    )
    broker_lost_s: NotNegative = Field(
        300.0, description="a worker without any answer from Redis for this long ends with status 1; 0: never"
    )
    metrics_address: str = Field(
        "127.0.0.1:8080",
        description="where `gaelp metrics`, or a `gaelp api`, tells Prometheus about the whole cluster",
    )
    metrics_port: int = Field(
        0, ge=0, le=65535, description="where a worker tells of itself, on that same host; 0: nowhere"
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="what programs log: text, lines for people; json, one JSON object a line"
    )
    traces: bool = Field(
        False, description="tell OpenTelemetry of each run (an extra: otel); OTEL_... variables say where"
    )
    stream_ttl_s: Positive = Field(3600.0, description="a token stream is kept this long after its end")
    result_ttl_s: Positive = Field(86_400.0, description="a result is kept this long")
    cancel_ttl_s: Positive = Field(86_400.0, description="a request to cancel is remembered this long")
    batch_keep_s: NotNegative = Field(
        30 * 86_400.0,
        description="a batch that is over is kept this long, with its questions and answers; 0: for ever",
    )
    history_keep_s: NotNegative = Field(
        30 * 86_400.0, description="the history of an invocation is kept this long; 0: for ever"
    )
    history_text_bytes: ByteSize = Field(
        ByteSize(0), description="history keeps this much of each prompt and of each answer; 0: none of them"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  the library calls it so
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The call, the environment, the call's file, then those of the folder that the environment names."""
        folder = os.environ.get("GAELP_SECRETS_DIR") or SECRETS
        if not os.access(folder, os.R_OK | os.X_OK) or not os.path.isdir(folder):  # noqa: PTH112  a path may be nonsense
            return init_settings, env_settings, dotenv_settings
        return init_settings, env_settings, dotenv_settings, SecretsSettingsSource(settings_cls, folder)

    @field_validator("secrets_dir")
    @classmethod
    def _folder(cls, value: str) -> str:
        if value != SECRETS and not os.path.isdir(value):  # noqa: PTH112  as above
            raise ValueError(f"{value} is no folder")
        return value

    @field_validator("ollama_nodes", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            # each once: a server that is named twice has not twice the slots
            parts = (part.strip().rstrip("/") for part in value.split(","))
            return tuple(dict.fromkeys(part for part in parts if part))
        return value

    @field_validator("ollama_nodes")
    @classmethod
    def _node_urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("name at least one Ollama server")
        for url in value:
            parts = urlsplit(url)
            if parts.scheme not in {"http", "https"} or not parts.hostname:
                raise ValueError(f"{masked(url)} is no http:// or https:// address")
            try:
                _ = parts.port
            except ValueError:
                raise ValueError(f"{masked(url)} has a port that is none") from None
        return value

    @field_validator("memory_source")
    @classmethod
    def _declared(cls, value: str, given: ValidationInfo) -> str:
        if value == "budget" and given.data.get("memory_budget") == 0:
            raise ValueError("budget needs GAELP_MEMORY_BUDGET, such as 24GiB")
        return value

    @field_validator("broker_url", "result_backend")
    @classmethod
    def _redis_urls(cls, value: str, given: ValidationInfo) -> str:
        if value or given.field_name == "broker_url":  # an empty file, say
            addresses.check(value)
        return value

    @field_validator("database_url")
    @classmethod
    def _sql_url(cls, value: str) -> str:
        if value:
            address.check(value)
        return value

    @field_validator("metrics_address")
    @classmethod
    def _listens(cls, value: str) -> str:
        if listener(value) is None:
            raise ValueError("write it as host:port, such as 127.0.0.1:8080 or [::1]:8080")
        return value

    @field_validator("*")
    @classmethod
    def _no_nan(cls, value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("the number must be finite")
        return value

    @property
    def results_url(self) -> str:
        """Where Celery keeps results."""
        return self.result_backend or self.broker_url

    @property
    def sql_url(self) -> str:
        """Where the database is. Raises SettingsError where that must be said and is not."""
        return self.database_url or address.default()

    @property
    def metrics_listener(self) -> tuple[str, int]:
        """Host and port of `metrics_address`."""
        found = listener(self.metrics_address)
        assert found is not None  # noqa: S101  it was checked when it was read
        return found

    @property
    def most_prompt_bytes(self) -> int:
        """Of a prompt that can be sent: where nothing goes by reference it has to fit into a message."""
        within = int(self.max_message_bytes) // ENVELOPE
        return int(self.max_prompt_bytes) if self.reference_bytes else min(int(self.max_prompt_bytes), within)

    @property
    def most_attachment_bytes(self) -> int:
        """Of what lies beside a message; more is not read."""
        return int(self.max_prompt_bytes) * ENVELOPE

    def rows(self) -> "list[SettingRow]":
        """Every setting as a row of the table that `gaelp config` prints; passwords are masked."""
        return [
            SettingRow(
                variable=f"GAELP_{name.upper()}",
                value=_shown(name, getattr(self, name)),
                unit=_unit(name),
                default=_shown(name, field.get_default(call_default_factory=True)),
                meaning=field.description or "",
                given=name in self.model_fields_set,
            )
            for name, field in type(self).model_fields.items()
        ]


class SettingRow(NamedTuple):
    """One line of the table of settings."""

    variable: str
    value: str
    unit: str
    default: str
    meaning: str
    given: bool  #: set in the environment, not the default


def listener(address: str) -> tuple[str, int] | None:
    """Host and port; None for what is none."""
    parts = urlsplit(f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    whole = f"[{host}]:{port}" if host and ":" in host else f"{host}:{port}"
    return (host, port) if host and port and whole == address.lower() else None


def _unit(name: str) -> str:
    if name.endswith("_s"):
        return "s"
    if name.endswith("_bytes"):
        return "bytes"
    units = {
        "num_ctx": "tokens",
        "num_parallel": "slots",
        "embed_seats": "seats",
        "tenant_max_running": "runs",
        "batch_window": "lines",
        "metrics_port": "port",
        "memory_budget": "bytes",
        "os_reserve": "bytes",
        "safety_factor": "times",
        "retry_attempts": "runs",
        "poison_deaths": "deaths",
        "training_places": "jobs",
        "training_cpus": "cores",
        "training_memory": "bytes",
        "training_gpus": "GPUs",
        "training_max_queued": "jobs",
        "training_log_lines": "lines",
        "api_rate_per_s": "requests/s",
        "api_burst": "requests",
        "api_failures_per_minute": "tries",
        "paid_tokens": "tokens",
        "quota_cpu_milli": "cores/1000",
        "quota_memory": "bytes",
        "quota_storage": "bytes",
        "quota_gpus": "GPUs",
        "quota_runs": "runs",
        "agent_metrics_keep": "records",
        "tariff": "micro-units",
        "api_watchers": "sockets",
        "api_max_waiting": "runs",
        "api_max_streams": "sockets",
        "api_watchers_per_user": "sockets",
    }
    return units.get(name, "")


def _shown(name: str, value: Any) -> str:
    if name in {"broker_url", "result_backend", "database_url"}:
        return masked(value)
    if isinstance(value, ByteSize):
        return value.human_readable()
    if isinstance(value, tuple):
        return ",".join(masked(str(part)) for part in value)
    if isinstance(value, BaseModel):
        return value.model_dump_json()
    if isinstance(value, dict):
        plain = {key: item if isinstance(item, dict) else str(item) for key, item in value.items()}
        return json.dumps(plain) if value else ""
    return str(value)


def masked(url: str) -> str:
    """The address without its password."""
    without = re.sub(r"(://[^:/@]*:)[^/]+@", r"\1***@", url)
    return re.sub(r"((?<=[?&])(?:sentinel_|ssl)?password=)[^&]+", r"\1***", without)
