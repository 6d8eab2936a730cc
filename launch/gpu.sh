#!/usr/bin/env bash
# Tunes on one GPU or several of this machine; one process drives them all. The same line again
# resumes.
#
#   launch/gpu.sh [--gpus=N] [--dry_run] --config=NAME --workdir=runs/x [flags for train]
#
# --gpus=N takes the first N; left out, all of them.
source "$(dirname "${BASH_SOURCE[0]}")/options.sh"
gpus=
parse "gpus" "$@"
devices=
if [ -n "$gpus" ]; then
  count gpus
  devices="$(seq -s , 0 $((gpus - 1)))"
fi
environment "jax[cuda13]"
run env ${gpus:+CUDA_VISIBLE_DEVICES="$devices"} \
  maskclippp train ${rest[@]+"${rest[@]}"}
