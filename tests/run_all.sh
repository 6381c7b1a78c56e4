#!/usr/bin/env bash
# Everything that must hold: style, types, import directions, tests, notebooks.
set -euo pipefail
cd "$(dirname "$0")/.."
ruff check .
ruff format --check .
mypy
lint-imports
python -m pytest --nbmake --nbmake-timeout=900 tests domains invdiff/testing notebooks
