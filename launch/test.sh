#!/usr/bin/env bash
# Sets up its own environment and runs the tests, two at a time. With arguments, which go to pytest,
# one at a time: launch/test.sh -m slow -s
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
[ $# -gt 0 ] || set -- -n 2
exec python -m pytest -q "$@"
