"""Settings: read from the environment, refused by name, printed without passwords."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaelp_tasks.errors import SettingsError
from gaelp_tasks.settings import Settings, load_settings, masked

BAD = {
    "BROKER_URL": ["http://host", "nonsense", "amqp://host"],
    "RESULT_BACKEND": ["http://host", "db+sqlite:///x"],
    "DATABASE_URL": ["mysql://host/db", "nonsense", "/gaelp.db", "sqlite://gaelp.db", "postgresql://host"],
    "SECRETS_DIR": ["/nowhere/at/all", "/dev/null"],
    "OLLAMA_NODES": ["http://h:99999", ",", " , ", "localhost:11434", "ftp://host", "http://"],
    "API_URL": ["localhost:8000", "ftp://host", "http://", "http://host:x", "http://host?x=1"],
    "API_TOKEN": ["a token", "t\u00f6ken", "token\n"],
    "TARIFF": ["x", "[1]", '{"gpu_second_micro": -1}', '{"gpu_second_micro": 0.5}', '{"colour": 1}'],
    "LEDGER_KEEP_S": ["-1", "nan", "inf", "long"],
    "PAID_TOKENS": ["0", "-1", "many"],
    "QUOTA_CPU_MILLI": ["-1", "4 cores"],
    "QUOTA_MEMORY": ["-1", "some"],
    "QUOTA_GPUS": ["-1", "one"],
    "QUOTA_STORAGE": ["-1", "some"],
    "QUOTA_RUNS": ["-1", "many"],
    "API_WATCHERS": ["0", "-1", "all"],
    "API_WATCHERS_PER_USER": ["0", "-1", "all"],
    "API_TELLS_CLUSTER": ["maybe", "2"],
    "API_TICKET_TTL_S": ["0", "-1", "nan", "inf"],
    "NODE_ROUTER": ["best", "SOLLOL"],
    "OLLAMA_HEADERS": ["x", "[1]", "5", '{"a": 5}'],
    "AGENTS": ["x", "[1]", '{"a": 5}'],
    "PARSERS": ["x", "[1]", '{"a": 5}'],
    "TOOLS": ["x", "[1]", '{"a": 5}'],
    "NUM_PARALLEL": ["0", "-1", "1025", "many", "1.5"],
    "NUM_CTX": ["-1", "big"],
    "KV_CACHE_TYPE": ["f8", "F16"],
    "MEMORY_MODEL": ["average", "KV"],
    "OS_RESERVE": ["-1", "some"],
    "SAFETY_FACTOR": ["0.99", "0", "-2", "nan", "inf", "many"],
    "MEMORY_BUDGET": ["-1", "1 potato", "big"],
    "MEMORY_SOURCE": ["budget", "GPU", "most"],
    "EMBED_SEATS": ["0", "-1", "513", "many"],
    "CACHE_EMBEDDINGS": ["maybe", "2"],
    "CACHE_ANSWERS": ["maybe", "2"],
    "CACHE_TTL_S": ["0", "-1", "nan", "inf"],
    "CACHE_MAX_BYTES": ["-1", "1 potato", "big"],
    "CACHE_ENTRY_BYTES": ["-1", "1 potato", "big"],
    "KEEP_ALIVE_S": ["nan", "inf", "long"],
    "POLL_INTERVAL_S": ["0", "-1", "nan", "inf", "often"],
    "PROBE_INTERVAL_S": ["-1", "nan", "inf", "often"],
    "CONNECT_TIMEOUT_S": ["0", "-1", "nan", "inf"],
    "LOAD_TIMEOUT_S": ["0", "-1", "nan", "inf"],
    "FIRST_TOKEN_TIMEOUT_S": ["0", "-1", "nan", "inf"],
    "STALL_TIMEOUT_S": ["-1", "nan", "inf"],
    "MAX_PROMPT_BYTES": ["-1", "1 potato", "big"],
    "REFERENCE_BYTES": ["-1", "1 potato", "big"],
    "MAX_MESSAGE_BYTES": ["-1", "1 potato", "big"],
    "MAX_OUTPUT_BYTES": ["-1", "1 potato", "big"],
    "RETRY_ATTEMPTS": ["0", "-1", "often"],
    "POISON_DEATHS": ["2", "-1", "many"],
    "RETRY_BASE_S": ["0", "-1", "nan", "inf"],
    "RETRY_CAP_S": ["0", "-1", "nan", "inf"],
    "TENANT_MAX_RUNNING": ["-1", "1.5", "many"],
    "BATCH_WINDOW": ["0", "-1", "10001", "1.5", "many"],
    "MAX_WAIT_S": ["-1", "nan", "x"],
    "RETRY_BY_ERROR": ["x", "[1]", '{"a": 5}', '{"a": {"attempts": 0}}', '{"a": {"colour": 1}}'],
    "SNOOZE_S": ["0", "-1", "nan", "inf"],
    "LEASE_TTL_S": ["0", "-1", "nan", "inf"],
    "DRAIN_GRACE_S": ["-1", "nan", "inf"],
    "DEAF_AFTER_S": ["0", "-1", "nan", "inf"],
    "BROKER_LOST_S": ["-1", "nan", "inf"],
    "METRICS_ADDRESS": [
        "8080",
        ":8080",
        "host",
        "host:",
        "host:0",
        "host:99999",
        "a:b@h:1",
        "h:1/x",
        "::1:8",
    ],
    "METRICS_PORT": ["-1", "65536", "1.5", "any"],
    "LOG_FORMAT": ["JSON", "xml", "yes"],
    "TRACES": ["maybe", "2", "otlp"],
    "STREAM_TTL_S": ["0", "-1", "nan", "inf"],
    "RESULT_TTL_S": ["0", "-1", "nan", "inf"],
    "CANCEL_TTL_S": ["0", "-1", "nan", "inf"],
    "API_MAX_BATCH_BYTES": ["-1", "1 potato", "big"],
    "API_MAX_WAITING": ["0", "-1", "1.5", "many"],
    "API_MAX_STREAMS": ["0", "-1", "1.5", "many"],
    "API_KEEP_S": ["-1", "nan", "inf", "long"],
    "TRAINING_PLACES": ["-1", "513", "many"],
    "TRAINING_CPUS": ["-1", "nan", "inf", "all"],
    "TRAINING_MEMORY": ["-1", "some"],
    "TRAINING_GPUS": ["-1", "one"],
    "TRAINING_RUNNER": ["kubernetes", "LOCAL"],
    "TRAINING_COMMANDS": ["python train.py", "[1]", '{"default": 1}'],
    "TRAINING_MAX_QUEUED": ["0", "-1", "many"],
    "TRAINING_TIMEOUT_S": ["0", "-1", "nan", "inf", "1e9"],
    "TRAINING_GRACE_S": ["-1", "nan", "inf"],
    "TRAINING_LOG_LINES": ["99", "-1", "all"],
    "TRAINING_KEEP_S": ["-1", "nan", "inf", "long"],
    "BATCH_KEEP_S": ["-1", "nan", "inf", "long"],
    "HISTORY_KEEP_S": ["-1", "nan", "inf", "long"],
    "HISTORY_TEXT_BYTES": ["-1", "1 potato", "yes"],
    "API_ADDRESS": ["8000", ":8000", "host", "host:0", "a:b@h:1", "::1:8"],
    "API_MAX_BODY_BYTES": ["-1", "1 potato", "big"],
    "API_HEAD_TIMEOUT_S": ["0", "-1", "nan", "inf"],
    "API_RATE_PER_S": ["-1", "nan", "inf", "many"],
    "API_BURST": ["0", "-1", "1.5", "many"],
    "API_FAILURES_PER_MINUTE": ["0", "-1", "1.5"],
    "API_IDEMPOTENCY_KEEP_S": ["0", "-1", "nan", "inf"],
    "JWT_SECRET": ["short", "x" * 31],
    "JWT_ALGORITHM": ["none", "hs256", "RS256"],
    "SECRET_KEYS": ["short", "eA==", "x" * 44, "!" * 44],
    "TRAINING_IMAGES": ["gcr.io/a b", "x;y", "gcr.io/*,$(id)"],
    "AGENT_METRICS_KEEP_S": ["-1", "nan", "inf", "long"],
    "AGENT_METRICS_KEEP": ["0", "-1", "1.5", "10000001"],
    "AUDIT_KEEP_S": ["-1", "nan", "inf", "long"],
    "JWT_TTL_S": ["0", "-1", "nan", "inf"],
}
ANYTHING_GOES = {"TRAINING_DIR", "API_PROXIES", "NAMESPACE", "OLLAMA_CA_FILE", "DEFAULT_MODEL", "EMBED_MODEL"}


def test_every_setting_that_can_be_wrong_is_tried_here():
    assert {name.upper() for name in Settings.model_fields} == BAD.keys() | ANYTHING_GOES


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD.items() for value in values]
)
def test_a_wrong_setting_is_refused_by_its_name_in_one_sentence(name, value, monkeypatch):
    monkeypatch.setenv(f"GAELP_{name}", value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    text = str(caught.value)
    assert text.startswith(f"GAELP_{name}")
    assert text.endswith(".")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BROKER_URL", "http://user:SECRET@host"),
        ("RESULT_BACKEND", "http://user:SECRET@host"),
        ("DATABASE_URL", "mysql://user:SECRET@host/db"),
        ("DATABASE_URL", "postgresql://user:SECRET@host:x/db"),
        ("OLLAMA_NODES", "ftp://user:SECRET@host"),
        ("OLLAMA_NODES", "http://user:SECRET@"),
        ("OLLAMA_HEADERS", '{"Authorization": "SECRET"'),
        ("OLLAMA_HEADERS", '{"Authorization": ["SECRET"]}'),
    ],
)
def test_the_sentence_about_a_wrong_setting_shows_no_password(name, value, monkeypatch):
    monkeypatch.setenv(f"GAELP_{name}", value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "SECRET" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_settings_are_read_once_from_the_environment(monkeypatch):
    monkeypatch.setenv("GAELP_RETRY_ATTEMPTS", "7")
    monkeypatch.setenv("GAELP_MAX_PROMPT_BYTES", "2KiB")
    monkeypatch.setenv("GAELP_OLLAMA_NODES", " http://a:1/ ,https://b/ollama/, http://a:1")
    monkeypatch.setenv("GAELP_AGENTS", '{"poet": "poems.agents:Poet"}')
    monkeypatch.setenv("GAELP_RETRY_CAP_S", "")
    first = load_settings()
    assert (first.retry_attempts, first.max_prompt_bytes, first.retry_cap_s) == (7, 2048, 60.0)
    assert first.ollama_nodes == ("http://a:1", "https://b/ollama")
    assert first.agents == {"poet": "poems.agents:Poet"}
    monkeypatch.setenv("GAELP_RETRY_ATTEMPTS", "8")
    assert load_settings() is first


@pytest.mark.parametrize(
    "url",
    [
        "redis://h:1/2",
        "rediss://u:p@h/0",
        "redis+socket:///run/redis.sock?db=1",
        "sentinel://a;sentinel://b:2/0",
    ],
)
def test_addresses_of_redis_are_taken(url):
    assert Settings(broker_url=url).broker_url == url


def test_the_defaults_of_the_contract():
    settings = Settings()
    assert settings.broker_url == settings.results_url == "redis://127.0.0.1:6379/0"
    assert settings.ollama_nodes == ("http://127.0.0.1:11434",)
    assert (settings.poll_interval_s, settings.stall_timeout_s, settings.num_parallel) == (1.0, 120.0, 1)
    assert (settings.os_reserve, settings.safety_factor, settings.memory_model) == (2 * 1024**3, 1.5, "kv")
    assert Settings(result_backend="redis://other/1").results_url == "redis://other/1"


def test_every_setting_has_a_meaning_and_every_number_a_unit():
    rows = {row.variable: row for row in Settings().rows()}
    assert rows.keys() == {f"GAELP_{name.upper()}" for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        row = rows[f"GAELP_{name.upper()}"]
        assert len(row.meaning) > 10, row
        if isinstance(field.default, int | float) and not isinstance(field.default, bool):
            units = {"s", "bytes", "tokens", "slots", "seats", "runs", "lines", "deaths", "times", "port"}
            units |= {"GPUs", "cores/1000", "records", "requests", "requests/s", "sockets", "tries"}
            units |= {"jobs", "cores"}
            assert row.unit in units, row


def test_the_table_tells_what_was_given_and_what_is_the_default(monkeypatch):
    monkeypatch.setenv("GAELP_RETRY_ATTEMPTS", "7")
    rows = {row.variable: row for row in load_settings().rows()}
    assert rows["GAELP_RETRY_ATTEMPTS"][1:4] == ("7", "runs", "4")
    assert rows["GAELP_RETRY_ATTEMPTS"].given
    assert not rows["GAELP_RETRY_BASE_S"].given
    assert rows["GAELP_MAX_PROMPT_BYTES"].value == "32.0MiB"
    assert rows["GAELP_OLLAMA_NODES"].default == "http://127.0.0.1:11434"


def test_the_table_masks_every_password():
    rows = Settings(
        broker_url="redis://me:HUSH-HUSH@host:1/0",
        result_backend="rediss://:HUSH-HUSH@host:1/1",
        database_url="postgresql://me:HUSH-HUSH@host/gaelp?sslpassword=HUSH-HUSH",
        ollama_nodes=("https://me:HUSH-HUSH@a", "https://b:HUSH-HUSH@c/x"),
        ollama_headers={"Authorization": "Bearer HUSH-HUSH"},
    ).rows()
    assert "HUSH-HUSH" not in str(rows)
    values = {row.variable: row.value for row in rows}
    assert values["GAELP_BROKER_URL"] == "redis://me:***@host:1/0"
    assert values["GAELP_OLLAMA_NODES"] == "https://me:***@a,https://b:***@c/x"
    assert "Authorization" in values["GAELP_OLLAMA_HEADERS"]


@given(st.text("abcXYZ0189!$%&*+,;=:@-._~", min_size=4, max_size=20).map("Q".__add__))
def test_whatever_a_password_is_made_of_it_is_masked(password):
    shown = masked(f"redis://user:{password}@host:6379/0")
    assert shown == "redis://user:***@host:6379/0"


def test_a_password_in_the_query_is_masked():
    assert "SECRET" not in masked("redis://host:6379/0?password=SECRET")


@pytest.mark.parametrize("url", ["redis://host:6379/0", "http://a:1/b@c", "redis+socket:///run/r.sock"])
def test_an_address_without_a_password_is_shown_as_it_is(url):
    assert masked(url) == url


def test_settings_cannot_be_changed_and_hide_nan_nowhere():
    settings = Settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.retry_attempts = 9
    assert all(
        math.isfinite(getattr(settings, name))
        for name, field in Settings.model_fields.items()
        if field.annotation is float
    )


def test_a_setting_may_be_a_file_and_the_environment_counts_more(tmp_path, monkeypatch):
    (tmp_path / "gaelp_broker_url").write_text("redis://worker:secret@redis:6379/0\n")
    (tmp_path / "gaelp_num_parallel").write_text("3")
    (tmp_path / "other").write_text("x")
    monkeypatch.setenv("GAELP_SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("GAELP_NUM_PARALLEL", "7")
    read = load_settings()
    assert read.broker_url == "redis://worker:secret@redis:6379/0"
    assert read.num_parallel == 7
    [row] = [row for row in read.rows() if row.variable == "GAELP_BROKER_URL"]
    assert row.given
    assert "secret" not in row.value


@pytest.mark.parametrize("content", ["", "nonsense\n", b"\xff\xfe"], ids=["empty", "wrong", "no text"])
def test_a_file_that_holds_no_setting_is_named_in_one_sentence(tmp_path, monkeypatch, content):
    file = tmp_path / "gaelp_broker_url"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setenv("GAELP_SECRETS_DIR", str(tmp_path))
    with pytest.raises(SettingsError, match="GAELP_BROKER_URL"):
        load_settings()


def test_a_file_that_must_not_be_read_is_named_in_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "gaelp_broker_url").write_text("redis://redis/0")
    monkeypatch.setenv("GAELP_SECRETS_DIR", str(tmp_path))

    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(SettingsError, match=r"GAELP_BROKER_URL: .*gaelp_broker_url cannot be read"):
        load_settings()
