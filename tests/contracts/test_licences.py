"""Licences: everything that runs with the platform is under a permissive licence, read from the installed packages."""

import re
from importlib.metadata import PackageNotFoundError, files, metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
PERMISSIVE = re.compile(
    r"MIT|BSD|Apache|ISC|PSF|Python Software Foundation|MPL-2\.0|Mozilla Public License 2\.0|Unlicense|PostgreSQL|0BSD|Zlib",
    re.IGNORECASE,
)
COPYLEFT = re.compile(r"\bA?GPL|\bLGPL|GNU (?:Affero |Lesser )?General Public", re.IGNORECASE)


def test_every_locked_package_is_permissive() -> None:
    names = re.findall(
        r"^([a-z0-9][a-z0-9._-]*)(?:\[[^\]]*\])?==", (ROOT / "requirements.lock").read_text(), re.MULTILINE
    )
    told: dict[str, str] = {}
    for name in names:
        try:
            found = metadata(name)
        except PackageNotFoundError:
            continue  # for another platform
        # Some packages put the whole text of their licence into the field; its first line names it.
        short = (found.get("License-Expression") or found.get("License") or "").strip().split("\n")[0][:200]
        classifiers = [c for c in found.get_all("Classifier") or [] if c.startswith("License ::")]
        told[name] = " ".join([short, *classifiers]).strip() or _first_line_of_file(name)
    assert len(told) > 40
    wrong = {name: text for name, text in told.items() if not PERMISSIVE.search(text) or COPYLEFT.search(text)}
    assert wrong == {}


def _first_line_of_file(name: str) -> str:
    """Of the licence that a package brings along, where its metadata names none."""
    found = next((file for file in files(name) or [] if "licenses/" in str(file)), None)
    return found.read_text().strip().split("\n")[0] if found else ""
