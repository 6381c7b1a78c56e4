"""Runtime checks of every annotation while tests run."""

from __future__ import annotations

from jaxtyping import install_import_hook

import tests.typecheck

PACKAGES = ["invdiff", "invdiff_mri", "invdiff_ct", "invdiff_deformation", "invdiff_array"]
hook = install_import_hook(PACKAGES, "tests.typecheck.checker")
assert tests.typecheck.checker is not None
