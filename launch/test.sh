#!/usr/bin/env bash
# Sets up its own environment and runs the tests, two at a time. With arguments, which go to pytest,
# one at a time: launch/test.sh -m slow -s
set -euo pipefail
[[ " $* " != *" --dry_run "* ]] || { echo "error: got --dry_run, which the tests do not have" >&2; exit 2; }
optional=gcs,test  # read by the file below
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
# The page is tested in a real browser; Debian's comes with apt, where that may be used.
if [ $# -eq 0 ] && ! command -v chromium >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "installing chromium for the tests of the page"
  if ! timeout 240 sh -c 'apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y \
      --no-install-recommends chromium' >/dev/null 2>&1; then
    echo "could not; they are skipped" >&2
  fi
fi
python -c "import importlib.util as u, sys; sys.exit(not u.find_spec('gradio'))" || python -m pip install --quiet --disable-pip-version-check \
  --no-deps -r tests/page_requirements.txt || echo "no Gradio: the tests of the page are skipped" >&2
[ $# -gt 0 ] || set -- -n 2
exec python -m pytest -q "$@"
