"""The command line: what it prints, where, and its exit codes."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.gateway.cli import main, run

ROOT = Path(__file__).parents[3]
GOOD = "[services.users]\nretries_max = 0\nbreaker = {probes = 1}\n"
BAD = "[services.users]\nretries = 0\n[x]\n"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.setenv("ENVIRONMENT", "development")
    monkeypatch.delenv("RH_GATEWAY_CONFIG_FILE", raising=False)


def said(*arguments: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    code = run(arguments, out, err)
    return code, out.getvalue(), err.getvalue()


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "gateway.toml"
    path.write_text(GOOD)
    return path


def test_check_of_a_good_file_says_what_it_serves(file):
    code, out, err = said("check", str(file))
    assert (code, err) == (0, "")
    assert out.startswith(f"{file}: good\n")
    assert "/users/*" in out
    assert "600 per 60 s" in out
    assert "service users: retries_max = 0, breaker = {probes = 1}" in out


def test_check_of_a_bad_file_names_every_fault_and_prints_nothing_else(file):
    file.write_text(BAD)
    code, out, err = said("check", str(file))
    assert (code, out) == (1, "")
    assert err.splitlines() == [
        f"{file}:2:1: services.users.retries: there is no such key; did you mean retries_max?",
        f"{file}:3:1: x: there is no such section; known are routes, limits, services, addresses, cors",
    ]


def test_check_of_a_missing_file_is_one_sentence(tmp_path):
    path = tmp_path / "none.toml"
    assert said("check", str(path)) == (1, "", f"{path} cannot be read: FileNotFoundError\n")


def test_a_bad_setting_is_one_sentence(file, monkeypatch):
    monkeypatch.setenv("RH_GATEWAY_ALLOW", "home")
    code, out, err = said("check", str(file))
    assert (code, out) == (1, "")
    assert err.startswith("RH_GATEWAY_ALLOW: 'home' is not an address")


def test_a_file_is_checked_whatever_the_one_in_use_is(file, tmp_path, monkeypatch, capsys):
    used = tmp_path / "used.toml"
    used.write_text(BAD)
    monkeypatch.setenv("RH_GATEWAY_CONFIG_FILE", str(used))
    assert main(["check", str(file)]) == 0
    assert "good" in capsys.readouterr().out


def test_explain_uses_the_configuration_in_use(file, monkeypatch):
    file.write_text("[[routes]]\npath = '/a'\nservice = 'a'\nmethods = ['GET']\nauth = 'public'\n")
    monkeypatch.setenv("RH_GATEWAY_CONFIG_FILE", str(file))
    code, out, _ = said("explain", "get", "/a?x=1")
    assert code == 0
    assert "GET /a\n  route    /a [GET] -> a\n  answered by a\n" in out


def test_explain_of_a_refusal_says_why_and_exits_1(monkeypatch):
    code, out, _ = said("explain", "TRACE", "/users")
    assert code == 1
    assert "refused  405 method_not_allowed" in out
    assert "allowed  GET, HEAD, OPTIONS, POST" in out
    monkeypatch.setenv("RH_GATEWAY_AUTHORITIES", "api.example.com")
    assert said("explain", "POST", "http://api.example.com/users")[0] == 0
    assert "refused  421" in said("explain", "POST", "http://other.example.com/users")[1]


def test_explain_takes_the_role_of_the_token():
    assert said("explain", "GET", "/users")[0] == 1
    code, out, _ = said("explain", "GET", "/users", "--token-role", "admin")
    assert code == 0
    assert "an admin's token, as a Bearer token" in out


def test_production_is_judged_by_its_own_rules(monkeypatch):
    monkeypatch.setenv("ENVIRONMENT", "production")
    code, out, _ = said("explain", "GET", "/health/detailed")
    assert code == 1
    assert "refused  401" in out


@pytest.mark.parametrize("arguments", [("serve",), ("check",), ("explain", "GET", "users"), ("explain", "GET")])
def test_what_is_not_understood_exits_2_with_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as refused:
        said(*arguments)
    assert refused.value.code == 2
    assert "usage: python -m services.gateway" in capsys.readouterr().err


@pytest.mark.slow
def test_the_module_runs_commands_without_the_server(file):
    def module(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "services.gateway", *arguments],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )

    done = module("check", str(file))
    assert done.returncode == 0
    assert "good" in done.stdout
    assert "uvicorn" not in done.stderr
    assert module("check", "missing").returncode == 1
    assert "explain" in module("--help").stdout
