# shellcheck shell=bash
# Sourced by the scripts beside it: makes .venv in the project's folder if it is missing or out of
# date, and puts it first on the path. PYTHON chooses the interpreter (3.11 to 3.14), the variable
# `optional` names the project's optional dependencies that a script needs, such as test, and `extra`
# what is installed beside them, such as jax[tpu].
project="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$project" || exit 1
stamp="$project/.venv/.installed"
current="$(cat requirements.txt constraints.txt pyproject.toml | cksum)"
wanted=".${optional:+[$optional]}${extra:+ $extra}"
if [ "$(head -n 1 "$stamp" 2>/dev/null)" != "$current" ] || ! grep -qxF "$wanted" "$stamp"; then
  python="${PYTHON:-}"
  if [ -z "$python" ]; then
    for candidate in python3.12 python3.11 python3.13 python3.14 python3; do
      if command -v "$candidate" >/dev/null && "$candidate" -c \
          'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; then
        python="$candidate"
        break
      fi
    done
  fi
  if [ -z "$python" ]; then
    echo "error: found no Python 3.11 to 3.14; install one, or name it with PYTHON=..." >&2
    exit 2
  fi
  echo "setting up .venv (a few minutes the first time)"
  "$python" -m venv "$project/.venv" || exit 1
  "$project/.venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    -r requirements.txt -c constraints.txt -e ".${optional:+[$optional]}" ${extra:+"$extra"} || exit 1
  # What was installed before stays beside it.
  [ "$(head -n 1 "$stamp" 2>/dev/null)" = "$current" ] || echo "$current" > "$stamp"
  echo "$wanted" >> "$stamp"
fi
export PATH="$project/.venv/bin:$PATH"
