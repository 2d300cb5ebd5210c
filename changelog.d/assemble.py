"""Move the changelog fragments into CHANGELOG.md, under a version.

python changelog.d/assemble.py VERSION
"""

from __future__ import annotations

import sys
from pathlib import Path

KINDS = ("added", "changed", "fixed", "removed")


def assemble(folder: Path, version: str) -> str:
    """Return the section of a version: the fragments in `folder` by kind, and by name within a kind.

    Raises:
        ValueError: a fragment is of no known kind, or there is none.
    """
    fragments: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for path in _fragments(folder):
        kind = path.name.split(".")[-2]
        if kind not in fragments:
            raise ValueError(f"'{path.name}' should be named NAME.KIND.md with one of {KINDS}")
        fragments[kind].append(" ".join(path.read_text(encoding="utf-8").split()))
    if not any(fragments.values()):
        raise ValueError(f"there is no fragment in '{folder}'")
    parts = [f"## {version}"]
    for kind, texts in fragments.items():
        if texts:
            parts.append(f"### {kind.capitalize()}\n\n" + "\n".join(f"- {text}" for text in texts))
    return "\n\n".join(parts) + "\n"


def insert(changelog: str, section: str) -> str:
    """Return the changelog with the section before its first one."""
    head, mark, rest = changelog.partition("\n## ")
    return f"{head}\n{section}{mark}{rest}"


def _fragments(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.md")) if path.name != "README.md"]


def main(version: str) -> None:
    """Put the section before the latest one of CHANGELOG.md, and delete the fragments."""
    folder = Path(__file__).parent
    changelog = folder.parent / "CHANGELOG.md"
    text = insert(changelog.read_text(encoding="utf-8"), assemble(folder, version))
    changelog.write_text(text, encoding="utf-8")
    for path in _fragments(folder):
        path.unlink()


if __name__ == "__main__":
    main(sys.argv[1])
