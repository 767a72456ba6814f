"""The secret that all nodes of a run share (`fedsim.transport.join`)."""

import os
from pathlib import Path

SECRET = "FEDSIM_SECRET"
_MIN_SECRET = 16


def read_secret(file: str | None) -> bytes | None:
    """The shared secret from `file`, else from the environment; None where there is none.

    Raises:
        ValueError: it is too short to withstand guessing.
        OSError: the file cannot be read.
    """
    text = os.environ.get(SECRET) if file is None else Path(file).read_text(encoding="utf-8")
    if text is None:
        return None
    secret = text.strip().encode()
    if len(secret) < _MIN_SECRET:
        where = SECRET if file is None else f"transport.secret_file={file}"
        raise ValueError(
            f"{where}: the shared secret must have at least {_MIN_SECRET} characters; try openssl rand -hex 32"
        )
    return secret


def require_secret(file: str | None) -> bytes:
    """As `read_secret`; raises ValueError where there is none."""
    secret = read_secret(file)
    if secret is None:
        raise ValueError(
            f"nodes that join over the network share a secret: set {SECRET} in the environment of each, or "
            "transport.secret_file=FILE; openssl rand -hex 32 makes one"
        )
    return secret
