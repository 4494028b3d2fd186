"""Settings: read once, frozen, and every mistake in them is one sentence that shows no secret."""

from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import SecretStr, ValidationError
from pydantic_settings import SettingsConfigDict

from shared.settings import FILE_BYTES_MAX, MEMORY, NatsUrl, Settings, SettingsError, load


class DemoSettings(Settings):
    model_config = SettingsConfigDict(env_prefix="RH_DEMO_")
    service: ClassVar[str] = "demo"
    nats_url: NatsUrl = MEMORY
    limit: int = 5
    seal: SecretStr = SecretStr("")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NATS_URL", "REDIS_URL", "DATABASE_URL", "ENVIRONMENT", "LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)


def test_prefixed_and_plain_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RH_DEMO_LIMIT", "7")
    monkeypatch.setenv("LOG_LEVEL", "ERROR")
    found = load(DemoSettings)
    assert (found.limit, found.log_level) == (7, "ERROR")


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        load(DemoSettings).limit = 8


def test_unknown_prefixed_variable_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RH_DEMO_LIMTI", "7")
    with pytest.raises(SettingsError, match=r"RH_DEMO_LIMTI.*RH_DEMO_LIMIT"):
        load(DemoSettings)


def test_another_services_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RH_OTHER_PORT", "1")
    with pytest.raises(SettingsError, match="RH_OTHER_PORT"):
        load(DemoSettings)


def test_a_wrong_value_names_the_variable_and_hides_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RH_DEMO_LIMIT", "hunter2")
    with pytest.raises(SettingsError, match="RH_DEMO_LIMIT") as caught:
        load(DemoSettings)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://u:hunter2@host", "nats://", "nats://u:hunter2@host:notaport", "hunter2"])
def test_a_wrong_url_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("RH_DEMO_NATS_URL", url)
    with pytest.raises(SettingsError, match="RH_DEMO_NATS_URL") as caught:
        load(DemoSettings)
    assert "hunter2" not in str(caught.value)


def test_file_twin_gives_the_stripped_content(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "seal").write_text("s3cret\n")
    monkeypatch.setenv("RH_DEMO_SEAL_FILE", str(tmp_path / "seal"))
    found = load(DemoSettings)
    assert found.seal.get_secret_value() == "s3cret"
    assert "s3cret" not in repr(found)


def test_unreadable_file_twin_names_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RH_DEMO_SEAL_FILE", str(tmp_path / "missing"))
    with pytest.raises(SettingsError, match="RH_DEMO_SEAL_FILE"):
        load(DemoSettings)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("RH_DEMO_SEAL", "example-only-seal"), ("RH_DEMO_NATS_URL", "nats://u:example-only-nats@host:4222")],
)
def test_production_refuses_the_secrets_of_the_example_file(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv("RH_DEMO_NATS_URL", "nats://u:hunter2@host:4222")
    monkeypatch.setenv(variable, value)
    load(DemoSettings)
    monkeypatch.setenv("ENVIRONMENT", "production")
    with pytest.raises(SettingsError, match=f"{variable} .*make one of your own") as caught:
        load(DemoSettings)
    assert "example-only" not in str(caught.value)


def test_production_refuses_memory_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVIRONMENT", "production")
    with pytest.raises(SettingsError, match=r"RH_DEMO_NATS_URL.*memory://"):
        load(DemoSettings)


def test_a_file_of_several_lines_keeps_its_first_ones_and_a_short_value_is_stripped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "value"
    monkeypatch.setenv("RH_DEMO_SEAL_FILE", str(path))
    for content, value in (("\n\na\nb\n\n", "\n\na\nb"), ("\n hunter2 \n", "hunter2")):
        path.write_text(content)
        assert load(DemoSettings).seal.get_secret_value() == value


def test_a_file_that_is_too_long_is_refused_not_cut(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "value"
    path.write_text("a" * (FILE_BYTES_MAX + 1))
    monkeypatch.setenv("RH_DEMO_SEAL_FILE", str(path))
    with pytest.raises(SettingsError, match="RH_DEMO_SEAL_FILE has over 1048576 bytes"):
        load(DemoSettings)
