"""Who may use a server: tenants and the hashes of their tokens."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from pathlib import Path

from memwrite.errors import ConfigError

#: The only tenant of a server without a file of tokens.
NOBODY = "default"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")
_LINE = re.compile(r"([A-Za-z0-9_-]{1,40})\s+([0-9a-f]{64})")


class Tenants:
    """Tenants by the sha256 of their tokens; a tenant may have several tokens.

    Args:
        hashes: pairs of a tenant's name and a hash; empty where everybody is one tenant.
    """

    def __init__(self, hashes: list[tuple[str, str]]) -> None:
        self._hashes = hashes

    @property
    def open(self) -> bool:
        """Return whether no token is asked for."""
        return not self._hashes

    @classmethod
    def from_file(cls, path: Path) -> Tenants:
        """Read a file with a name and a hash a line; what follows a # is a remark.

        Raises:
            ConfigError: it cannot be read, a line is wrong, or there is none.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the tokens file '{path}' cannot be read: {error}") from None
        hashes = []
        for number, line in enumerate(lines, 1):
            line = line.partition("#")[0].strip()
            if not line:
                continue
            match = _LINE.fullmatch(line)
            if match is None:
                raise ConfigError(
                    f"line {number} of the tokens file '{path}' is not a name and a sha256 of 64 hex digits: "
                    f"`memwrite serve-token NAME --tokens {path}` appends one"
                )
            hashes.append((match[1], match[2]))
        if not hashes:
            raise ConfigError(
                f"the tokens file '{path}' is empty: `memwrite serve-token NAME --tokens {path}` appends a token"
            )
        return cls(hashes)

    def of(self, token: str | None) -> str | None:
        """Return the tenant with this token; None for nobody's. Every hash is compared, each in constant time."""
        if self.open:
            return NOBODY
        given = _digest(token or "")
        found = None
        for name, known in self._hashes:
            if hmac.compare_digest(given, known):
                found = name
        return found


def new_token(name: str, path: Path) -> str:
    """Append the hash of a new token of the tenant `name` to a file, and return the token, which is kept nowhere.

    Raises:
        ConfigError: the name cannot be one, or the file cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"'{name}' is no name of a tenant: use 1 to 40 letters, digits, - and _")
    token = f"mw-{secrets.token_urlsafe(32)}"
    try:
        path.touch(mode=0o600)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{name} {_digest(token)}\n")
    except OSError as error:
        raise ConfigError(f"the tokens file '{path}' cannot be written: {error.strerror}") from None
    return token


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()
