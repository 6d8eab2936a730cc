#!/usr/bin/env bash
# From your own machine: makes a Cloud TPU slice if none has this name, brings the files of this
# folder that git knows there, and tunes on all its hosts. Needs gcloud, signed in and with a
# project. The same line again resumes.
#
#   launch/tpu_slice.sh --name=tune --zone=us-west4-a --type=v5litepod-16 \
#     --config=NAME --workdir=gs://BUCKET/runs/x --config.data_dir=gs://BUCKET/data
#
# All hosts must see the same data and --workdir: in a bucket (docs/buckets.md), or on a disk they
# share. --version is the TPU software (gcloud compute tpus versions list), --spot=1 takes a slice
# that may be taken away, --dry_run only prints. The slice is paid for until:
# gcloud compute tpus tpu-vm delete NAME --zone=ZONE
source "$(dirname "${BASH_SOURCE[0]}")/options.sh"
name='' zone='' type='' version=v2-alpha-tpuv5-lite spot=''
parse "name zone type version spot" "$@"
need name zone type
sent
trap 'rm -rf "$folder" "$folder.tar.gz"' EXIT
tpu=(gcloud compute tpus tpu-vm)
if $dry_run || ! "${tpu[@]}" describe "$name" --zone="$zone" >/dev/null 2>&1; then
  run "${tpu[@]}" create "$name" --zone="$zone" --accelerator-type="$type" --version="$version" \
    ${spot:+--spot}
fi
run tar -czf "$folder.tar.gz" -C "$folder" .
run "${tpu[@]}" scp "$folder.tar.gz" "$name:maskclippp_jax.tar.gz" --zone="$zone" --worker=all
there="mkdir -p maskclippp_jax && cd maskclippp_jax && tar -xzf ../maskclippp_jax.tar.gz"
there+=" && $(quote launch/tpu_vm.sh --distributed=auto ${rest[@]+"${rest[@]}"})"
run "${tpu[@]}" ssh "$name" --zone="$zone" --worker=all --command="$there"
