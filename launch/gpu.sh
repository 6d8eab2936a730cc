#!/usr/bin/env bash
# Tunes on one GPU or several of this machine; one process drives them all. The same line again
# resumes.
#
#   launch/gpu.sh [--gpus=N] [--dry_run] --config=NAME --workdir=runs/x [flags for train]
#
# --gpus=N takes the first N; left out, all of them. With MASKCLIPPP_GPU_ATTENTION=cudnn in front of
# the line, or of any other command, image tokens in bfloat16 attend by cuDNN (GPUs from Ampere on);
# python -m benchmarks.accelerator tells whether that is faster on this machine, and as exact.
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
