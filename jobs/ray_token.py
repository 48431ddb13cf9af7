"""The token with which a Ray cluster lets its users in (Ray's token authentication), found the way Ray finds it."""

import os
import secrets
from pathlib import Path


def token() -> str | None:
    """The user's token: RAY_AUTH_TOKEN, else the file RAY_AUTH_TOKEN_PATH, else ~/.ray/auth_token; None without one."""
    text = os.environ.get("RAY_AUTH_TOKEN")
    if text is None:
        path = token_path()
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return text.strip() or None


def token_path() -> Path:
    """Where a token is kept that does not come from the environment."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def ensure_token() -> str:
    """The user's token; a new one, readable by the user only, where there is none yet."""
    found = token()
    if found is None:
        found = secrets.token_hex(32)
        path = token_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(found)
    return found


def headers() -> dict[str, str]:
    """HTTP headers that carry the token; empty without one."""
    found = token()
    return {"Authorization": f"Bearer {found}"} if found else {}
