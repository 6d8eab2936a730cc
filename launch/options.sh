# shellcheck shell=bash
# Sourced by the scripts beside it: `parse` reads their options, `run` executes or, with --dry_run,
# only prints. What is no option of a script goes on to the command it starts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
dry_run=false
rest=()

# parse "NAME NAME" "$@": --NAME=value and --NAME value set $NAME, the last one counts; everything
# else lands in the array `rest`.
parse() {
  local _names=" $1 " _argument _name  # underlined, as options are set beside them
  shift
  while [ $# -gt 0 ]; do
    _argument="$1"
    shift
    _name="${_argument#--}"
    _name="${_name%%=*}"
    if [ "$_argument" = --dry_run ]; then
      dry_run=true
    elif [[ "$_argument" != --* || "$_names" != *" $_name "* ]]; then
      rest+=("$_argument")
    elif [[ "$_argument" == *=* ]]; then
      printf -v "$_name" %s "${_argument#*=}"
    elif [ $# -gt 0 ]; then
      printf -v "$_name" %s "$1"
      shift
    else
      refuse "got --$_name without a value"
    fi
  done
}

refuse() {
  echo "error: $1; the first lines of $0 show all options" >&2
  exit 2
}

# count NAME...: these options are whole numbers from 1. Checked before any arithmetic, in which a
# shell executes what stands in $(...).
count() {
  local _name
  for _name in "$@"; do
    [[ "${!_name}" =~ ^[1-9][0-9]{0,5}$ ]] || refuse "--$_name is ${!_name}, wanted a number from 1"
  done
}

# need NAME...: these options must have been given.
need() {
  local _name
  for _name in "$@"; do
    [ -n "${!_name}" ] || refuse "got no --$_name=..."
  done
}

# As a shell would read it again; nothing for nothing.
quote() { [ $# -eq 0 ] || printf '%q ' "$@" | sed 's/ $//'; }

# copy FOLDER: the files that git knows, as they are here, and no others (data, runs, keys).
copy() {
  local _argument _file
  git rev-parse --is-inside-work-tree >/dev/null 2>&1 ||
    refuse "the files that git knows are sent, but $PWD is no checkout of git"
  for _argument in ${rest[@]+"${rest[@]}"}; do
    _file="${_argument#--config=}"
    _file="${_file%%:*}"
    if [[ "$_argument" == --config=*.py* && -f "$_file" ]] &&
        ! git ls-files --error-unmatch -- "$_file" >/dev/null 2>&1; then
      refuse "git does not know $_file, so it would not be sent; git add it"
    fi
  done
  git ls-files -z | while IFS= read -r -d '' _file; do
    [ ! -e "$_file" ] || cp -P --parents -- "$_file" "$1"
  done
}

# sent: sets $folder to a temporary folder, removed at the end, with what `copy` copies there.
sent() {
  if $dry_run; then
    folder="${TMPDIR:-/tmp}/maskclippp_jax.XXXXXX"
  else
    folder="$(mktemp -d "${TMPDIR:-/tmp}/maskclippp_jax.XXXXXX")"
    trap 'rm -rf "$folder"' EXIT
    copy "$folder"
  fi
}

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
    optional=gcs extra="$1"  # read by the file below
    source launch/environment.sh
  fi
}
