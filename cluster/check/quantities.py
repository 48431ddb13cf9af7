"""Amounts as Kubernetes writes them."""

import re
from typing import Any

_FACTORS = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_FACTORS |= {f"{letter}i": 1024.0**power for power, letter in enumerate("KMGTPE", start=1)}
NO_QUANTITY = "no quantity; write 4, 500m, 16Gi and the like"
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:([eE][-+]?[0-9]+)|([numkMGTPE]|[KMGTPE]i)?)")


def amount(quantity: Any) -> float:
    """A quantity such as "500m" or "16Gi" as a number: of cores, bytes, devices. Raises ValueError."""
    match = _QUANTITY.fullmatch(str(quantity))
    if match is None or isinstance(quantity, bool):
        raise ValueError(f"'{quantity}' is {NO_QUANTITY}")
    number, exponent, suffix = match.groups()
    return float(number + (exponent or "")) * _FACTORS[suffix or ""]
