"""What may be shown or written of a text that others had a hand in: no password, no signature, nothing that steers a terminal."""

import os
import re

_MASK = "***"
_SECRET_VARIABLES = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD"),
    *("MLFLOW_TRACKING_TOKEN", "DATABRICKS_TOKEN", "HF_TOKEN", "RAY_AUTH_TOKEN"),
)
_SHORTEST = 8  # letters of a secret of the environment: shorter ones are words that occur by chance
# A port is no password: after the colon comes more than a number and a slash, and then an @.
_USER_AND_PASSWORD = re.compile(r'(://[^/@\s":]*):(?!\d*/)[^\s"]*@')
_KEY_BEFORE_HOST = re.compile(r'((?:https?|s3)://)[^/@\s":*]+@', re.IGNORECASE)
"""Of these, a name alone before the host is a key or a token; elsewhere it is the name of a user of a database."""
_SECRET_PARAMETER = re.compile(
    r"([?&;](?:x-(?:amz|goog)-(?:signature|credential|security-token)|signature|sig|awsaccesskeyid|"
    r"(?:aws_)?(?:access|secret)_?(?:access_?)?key(?:_?id)?|api_?key|secret|password|passwd|pwd|"
    r'(?:session_?|security_?|access_?|auth_?)?token)=)(?!\*\*\*)[^&;\s"\']+',
    re.IGNORECASE,
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Also what turns the direction of writing, by which a name can look like another."""


def masked(text: str) -> str:
    """The text without passwords and signatures in URIs, and without the secrets of this process's environment."""
    text = _USER_AND_PASSWORD.sub(rf"\1:{_MASK}@", text)
    text = _SECRET_PARAMETER.sub(rf"\1{_MASK}", _KEY_BEFORE_HOST.sub(rf"\1{_MASK}@", text))
    for name in _SECRET_VARIABLES:
        secret = os.environ.get(name, "")
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, _MASK)
    return text


def holds_secret(uri: str) -> bool:
    """Whether a password, a key or a signature is written into a URI."""
    return any(pattern.search(uri) for pattern in (_USER_AND_PASSWORD, _KEY_BEFORE_HOST, _SECRET_PARAMETER))


def printable(text: str) -> str:
    """The text in one line, in which signs that would steer a terminal, such as those of a file's name, are spelt out."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)
