"""Runtime checks of every annotation while tests run, and the shared data."""

from __future__ import annotations

from jaxtyping import install_import_hook

hook = install_import_hook(["invdiff", "invdiff_mri", "invdiff_array"], "beartype.beartype")
