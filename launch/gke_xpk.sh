#!/usr/bin/env bash
# Tunes in a GKE cluster with TPUs, through xpk (github.com/AI-Hypercomputer/xpk), which packs the
# files of this folder that git knows into an image. Under another --name it is another job; the
# same --workdir resumes.
#
#   launch/gke_xpk.sh --cluster=C --zone=Z --project=P --type=v5litepod-16 --name=tune \
#     [--dry_run] --config=NAME --workdir=gs://BUCKET/runs/x \
#     --config.data_dir=gs://BUCKET/data [flags for train]
#
# Data and --workdir lie in a bucket that the cluster may write (docs/buckets.md), or on storage
# that is attached to it (xpk storage).
source "$(dirname "${BASH_SOURCE[0]}")/options.sh"
cluster='' zone='' project='' type='' name='' image=python:3.12
parse "cluster zone project type name image" "$@"
need cluster zone project type name
sent
run xpk workload create --cluster="$cluster" --zone="$zone" --project="$project" \
  --workload="$name" --tpu-type="$type" --num-slices=1 --base-docker-image="$image" --script-dir="$folder" \
  --command="$(quote launch/tpu_vm.sh --distributed=auto ${rest[@]+"${rest[@]}"})"
