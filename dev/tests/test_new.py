"""Facts about adding and removing a service: the texts that change, what is refused, and a whole checkout with a sixth service."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from dev.errors import CannotRun
from dev.fleet import FLEET
from dev.new.names import CORE, check_name, check_removable
from dev.new.places import PLACES, Place
from dev.new.service import add, render
from tests.fleet import OwnFleet

ROOT = Path(__file__).parents[2]


def free(*words: str) -> str:
    """Return a word that this checkout's fleet has not taken."""
    return next(word for word in words if FLEET.service(word) is None)


SPARE = free("mail", "parcels", "letters")
# The shortest and the longest name too: what is written must be in the house's form for every length.
NAMES = (free("zq", "zx"), SPARE, free("z" * 31, "x" * 31))
STEP_TIMEOUT_S = 240


@pytest.mark.parametrize(
    "name", ["", "x", "Mail", "my-mail", "my_mail", "1mail", "mäil", "mail/x", "../mail", "class", "m" * 32, "mail\n"]
)
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(CannotRun, match="cannot name a service"):
        check_name(name, FLEET)


@pytest.mark.parametrize(
    "name", [*sorted(CORE), "nats", "valkey", "postgres", "redis", "shared", "tests", "dev", "auth", "docs"]
)
def test_a_name_with_another_meaning_is_refused(name: str) -> None:
    with pytest.raises(CannotRun, match="choose another name"):
        check_name(name, FLEET)


@pytest.mark.parametrize("name", NAMES)
def test_a_free_word_is_a_name(name: str) -> None:
    check_name(name, FLEET)


@pytest.mark.parametrize("name", sorted(CORE))
def test_the_five_stay(name: str) -> None:
    with pytest.raises(CannotRun, match="one of the five"):
        check_removable(name, FLEET)


def test_what_is_not_there_cannot_be_removed() -> None:
    with pytest.raises(CannotRun, match=f"no service {SPARE}"):
        check_removable(SPARE, FLEET)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.path)
def test_an_entry_is_put_in_and_taken_out_without_a_trace(place: Place, name: str) -> None:
    before = (ROOT / place.path).read_text()
    with_one = place.put_in(before, name)
    with_two = place.put_in(with_one, "other")

    assert name in with_one
    assert place.take_out(with_one, name) == before
    assert place.take_out(place.take_out(with_two, name), "other") == before


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.path)
def test_what_is_not_there_is_taken_out_as_nothing(place: Place) -> None:
    text = (ROOT / place.path).read_text()
    # Words that each of these files holds somewhere, as something else.
    for name in (SPARE, "tls", "rediss", "environment", "edge", "fleet"):
        assert place.take_out(text, name) == text


def test_entries_that_were_changed_by_hand_are_taken_out_whole() -> None:
    changes = {
        "dev/fleet.py": (
            f'"services.{SPARE}",\n            needs=("nats", "valkey"),\n',
            f'"services.{SPARE}",\n            needs=("valkey", "postgres"),\n            secret_files={{"A_FILE": "a"}},\n',
        ),
        "services/gateway/domain/defaults.py": ('methods=("POST",),\n', 'methods=("POST",),\n        timeout_s=3,\n'),
        "compose.yaml": (
            "    networks: [fleet, stores]\n    depends_on:\n      nats: { condition: service_healthy }\n      valkey:",
            "    user: root\n\n    depends_on:\n      valkey:",
        ),
        "charts/roundhouse/values.yaml": (
            "    stores: [nats, valkey]\n",
            "    stores: [nats, valkey]\n    # more\n    calls: [users]\n",
        ),
    }
    for place in PLACES:
        before = (ROOT / place.path).read_text()
        old, new = changes.get(place.path, ("", ""))
        text = place.put_in(before, SPARE)
        # The last place that looks so is the new one: entries go to the end of their list.
        head, found, tail = text.rpartition(old) if old else (text, "", "")
        changed = head + (new if found else "") + tail
        assert (changed != text) == bool(old)
        assert place.take_out(changed, SPARE) == before, place.path


def test_a_missing_mark_is_said_and_nothing_is_written(tmp_path: Path) -> None:
    for place in PLACES:
        (tmp_path / place.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / place.path, tmp_path / place.path)
    fleet = tmp_path / "dev" / "fleet.py"
    fleet.write_text(fleet.read_text().replace("# dev new: stop_order", ""))
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(CannotRun, match=r"dev/fleet\.py: the comment `# dev new: stop_order` is missing"):
        add(SPARE, FLEET, tmp_path)

    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_or_a_path_that_is_taken_is_refused(tmp_path: Path) -> None:
    (tmp_path / "services" / SPARE).mkdir(parents=True)
    with pytest.raises(CannotRun, match=f"services/{SPARE} exists already"):
        add(SPARE, FLEET, tmp_path)
    routes = tmp_path / "services" / "gateway" / "domain" / "defaults.py"
    routes.parent.mkdir(parents=True)
    routes.write_text(f'Route(path="/{NAMES[0]}/*", service="users")\n')
    with pytest.raises(CannotRun, match=f"path /{NAMES[0]} is routed already"):
        add(NAMES[0], FLEET, tmp_path)


def test_no_token_of_the_template_is_left() -> None:
    for path, text in render(SPARE).items():
        assert "@" not in path
        assert not [word for word in ("@name@", "@Name@", "@NAME@") if word in text]


class Copy:
    """A copy of this checkout, in a repository of its own, with this environment."""

    def __init__(self, root: Path) -> None:
        self.root = root
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=False,
        )
        if listed.returncode != 0:
            pytest.skip("not a git checkout")
        for name in map(os.fsdecode, filter(None, listed.stdout.split(b"\0"))):
            if (ROOT / name).is_file():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, root / name)
        (root / ".venv").symlink_to(Path(sys.prefix))
        if (ROOT / ".mypy_cache").is_dir():
            # Half a minute less; mypy looks at what is in the files, not at where they came from.
            shutil.copytree(ROOT / ".mypy_cache", root / ".mypy_cache")
        self.run("git", "init", "-q")
        self.commit()

    def run(self, *command: str, expect: int | None = 0) -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME") or k.startswith("ROUNDHOUSE_TEST_")}
        done = subprocess.run(
            command, cwd=self.root, env=kept, capture_output=True, text=True, timeout=STEP_TIMEOUT_S, check=False
        )
        shown = f"{' '.join(command)} ended {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
        assert expect is None or done.returncode == expect, shown
        return done

    def tool(self, name: str, *arguments: str) -> None:
        self.run(str(self.root / ".venv" / "bin" / name), *arguments)

    def dev(self, *words: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, str(self.root / "dev"), *words, expect=expect)

    def commit(self) -> None:
        self.run("git", "add", "-A")
        author = ("-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "commit.gpgsign=false")
        self.run("git", *author, "commit", "-q", "-m", "as it is")

    def differences(self) -> str:
        return self.run("git", "status", "--porcelain", "--ignored=no", "--untracked-files=all").stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    return Copy(tmp_path_factory.mktemp("checkout"))


@pytest.mark.slow
@pytest.mark.timeout(STEP_TIMEOUT_S)
def test_new_and_remove_leave_the_checkout_as_it_was(copy: Copy) -> None:
    said = copy.dev("new", SPARE).stdout
    assert f"services/{SPARE}/" in said
    assert SPARE in copy.dev("restart", "--help").stdout
    assert "in the fleet already" in copy.dev("new", SPARE, expect=2).stderr
    copy.dev("new", NAMES[0])

    assert f"services/{NAMES[0]}/" in copy.dev("remove", NAMES[0]).stdout
    assert f"tests/e2e/test_{SPARE}.py" in copy.dev("remove", SPARE).stdout

    assert copy.differences() == ""
    assert not (copy.root / "services" / SPARE).exists()


@pytest.mark.slow
@pytest.mark.timeout(STEP_TIMEOUT_S)
def test_work_that_is_in_no_commit_is_kept_unless_forced(copy: Copy) -> None:
    copy.dev("new", SPARE)
    (copy.root / "services" / SPARE / "ideas.md").write_text("mine\n")
    refused = copy.dev("remove", SPARE, expect=1).stderr
    assert refused.startswith(f"dev remove: services/{SPARE}/ideas.md would be lost")
    assert len(refused.splitlines()) == 1
    assert (copy.root / "services" / SPARE / "ideas.md").exists()

    copy.dev("remove", SPARE, "--force")

    assert copy.differences() == ""


@pytest.mark.slow
@pytest.mark.timeout(STEP_TIMEOUT_S)
def test_a_step_that_fails_changes_nothing(copy: Copy) -> None:
    generator = copy.root / "charts" / "generate.py"
    text = generator.read_text()
    generator.write_text("raise SystemExit('no such luck')\n")
    try:
        assert (
            "nothing was changed, because charts/generate.py failed (no such luck)"
            in copy.dev("new", SPARE, expect=1).stderr
        )
    finally:
        generator.write_text(text)
    assert copy.differences() == ""


@pytest.mark.slow
@pytest.mark.timeout(3 * STEP_TIMEOUT_S)
@pytest.mark.parametrize("name", NAMES)
def test_a_new_service_is_in_the_form_of_the_house(copy: Copy, name: str) -> None:
    copy.dev("new", name)
    try:
        copy.run("git", "add", "-A")  # the rules of the house look at what git knows
        written = [name for name in copy.differences().split() if name.endswith(".py")]
        assert len(written) > 12
        copy.tool("ruff", "format", "--check", *written)
        copy.tool("ruff", "check", *written)
        copy.tool("mypy", "shared", "services", "dev")
        copy.tool("lint-imports", "--no-logo")
        copy.tool("python", "charts/generate.py", "--check")
        copy.tool(
            "python", "-m", "pytest", "-q", "-m", "not slow", f"services/{name}", "services/health", "tests/contracts",
            "services/gateway/tests/test_domain.py", "dev/tests/test_fleet.py", "dev/tests/test_new.py",
        )  # fmt: skip
    finally:
        copy.run("git", "reset", "-q", "--hard")
        shutil.rmtree(copy.root / "services" / name, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(STEP_TIMEOUT_S)
def test_a_fleet_with_a_sixth_service_serves_it_through_the_gateway(copy: Copy, tmp_path: Path) -> None:
    copy.dev("new", SPARE)
    fleet = OwnFleet(tmp_path / "state", copy.root)
    try:
        status = fleet.up("--ephemeral", "--replicas", f"{SPARE}=2")
        states = {row["name"]: row["state"] for row in status["resources"]}
        assert states[f"{SPARE}-1"] == states[f"{SPARE}-2"] == "ready"

        headers = {"Authorization": f"Bearer {fleet.admin_token()}"}
        with httpx2.Client(base_url=fleet.url, headers=headers, timeout=10, trust_env=False) as client:
            added = client.post(f"/{SPARE}", json={"text": "call Ada"})
            assert added.status_code == 201, added.text
            # Whichever replica is asked, and whoever asks without a token.
            shown = [client.get(added.headers["location"]) for _ in range(6)]
            assert [response.json() for response in shown] == [added.json()] * 6
            assert client.get(added.headers["location"], headers={"Authorization": ""}).status_code == 401
            assert client.get("/health/detailed").json()["components"][SPARE]["state"] == "up"
    finally:
        down = fleet.verb("down")
        copy.dev("remove", SPARE)
    assert down.returncode == 0, down.stderr
    assert copy.differences() == ""
