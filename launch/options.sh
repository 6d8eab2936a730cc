# shellcheck shell=bash
# Sourced by the scripts beside it: `parse` reads their options, `run` executes or, with --dry_run,
# only prints. What is no option of a script goes on to the command it starts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
dry_run=false
rest=()

# parse "NAME NAME" "$@": --NAME=value sets $NAME, everything else lands in the array `rest`.
parse() {
  local _names=" $1 " _argument _name  # underlined, as options are set beside them
  shift
  for _argument in "$@"; do
    _name="${_argument#--}"
    _name="${_name%%=*}"
    if [ "$_argument" = --dry_run ]; then
      dry_run=true
    elif [[ "$_argument" == --*=* && "$_names" == *" $_name "* ]]; then
      printf -v "$_name" %s "${_argument#*=}"
    else
      rest+=("$_argument")
    fi
  done
}

# need NAME...: these options must have been given.
need() {
  local _name
  for _name in "$@"; do
    if [ -z "${!_name}" ]; then
      echo "error: got no --$_name=...; the first lines of $0 show all options" >&2
      exit 2
    fi
  done
}

# As a shell would read it again.
quote() { printf '%q ' "$@" | sed 's/ $//'; }

run() {
  if $dry_run; then
    quote "$@"
    echo
  else
    "$@"
  fi
}

# The project's own environment; what is given, such as "jax[tpu]", is installed beside it.
environment() {
  if ! $dry_run; then
    extra="$1"  # read by the file below
    source launch/environment.sh
  fi
}
