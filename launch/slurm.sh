#!/usr/bin/env bash
# Tunes on the GPUs of one or several nodes under Slurm, one process a GPU; start it in an
# allocation or let it ask for one. Two minutes before its time is over the run saves and ends; the
# same line again resumes.
#
#   launch/slurm.sh [--nodes=2] [--gpus=8] [--time=08:00:00] [--partition=P] [--dry_run] \
#     --config=NAME --workdir=/shared/runs/x [flags for train]
#
# The nodes must share this folder, the data and --workdir.
source "$(dirname "${BASH_SOURCE[0]}")/options.sh"
nodes=1 gpus=8 time=08:00:00 partition=''
parse "nodes gpus time partition" "$@"
count nodes gpus
environment "jax[cuda13]"
run srun --nodes="$nodes" --ntasks-per-node="$gpus" --gpus-per-node="$gpus" --time="$time" \
  ${partition:+--partition="$partition"} --signal=TERM@120 --kill-on-bad-exit=1 \
  maskclippp train --distributed=auto ${rest[@]+"${rest[@]}"}
