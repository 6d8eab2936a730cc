#!/usr/bin/env bash
# The whole chain on a CPU in a minute or two: makes the generated scenes, tunes for a few steps,
# and evaluates. Says whether an installation works; the numbers mean nothing.
#
#   launch/smoke.sh [--workdir=runs/smoke] [--dry_run] [flags for train]
source "$(dirname "${BASH_SOURCE[0]}")/options.sh"
workdir=runs/smoke
parse "workdir" "$@"
environment ""
export JAX_PLATFORMS=cpu
config=--config=quickstart
run maskclippp prepare scenes scenes_seen --data_dir=data
run maskclippp train $config --config.train.steps=4 --workdir="$workdir" \
  ${rest[@]+"${rest[@]}"}
run maskclippp evaluate $config --checkpoint="$workdir" \
  --workdir="$workdir/evaluation"
