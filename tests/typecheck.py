"""The runtime type checker of the tests: beartype, with ints accepted for floats (PEP 484)."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

checker = beartype(conf=BeartypeConf(is_pep484_tower=True))
