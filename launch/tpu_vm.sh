#!/usr/bin/env bash
# Tunes on the TPU of the machine it is started on. On a slice of several hosts every host starts
# it, with --distributed=auto (launch/tpu_slice.sh does). The same line again resumes.
#
#   launch/tpu_vm.sh [--dry_run] --config=NAME --workdir=runs/x [flags for train]
source "$(dirname "${BASH_SOURCE[0]}")/options.sh"
parse "" "$@"
environment "jax[tpu]"
run maskclippp train ${rest[@]+"${rest[@]}"}
