#!/usr/bin/env bash
# Sets up its own environment and shows the method on generated scenes, in about 5 minutes on two cores:
# tunes the small CLIP on ground-truth masks and on degraded ones, and compares both with the
# untouched one: on ground-truth masks, and on those that the small mask generator finds in the
# photographs. Can be stopped and started again; everything it makes is in data/ and runs/. --dry_run
# only prints.
source "$(dirname "${BASH_SOURCE[0]}")/options.sh"
parse "" "$@"
[ ${#rest[@]} -eq 0 ] || refuse "got ${rest[*]}, wanted nothing or --dry_run"
$dry_run || source launch/environment.sh
config=quickstart
run maskclippp prepare scenes scenes_panoptic scenes_instance scenes_seen --data_dir=data
run maskclippp train --config=$config --workdir=runs/ground_truth
run maskclippp train --config=$config:masks=degraded --workdir=runs/degraded
models=(--checkpoint=untuned --checkpoint=runs/ground_truth --checkpoint=runs/degraded)
run maskclippp evaluate --config=$config --workdir=runs/comparison --pictures=4 "${models[@]}"
run maskclippp evaluate --config=$config --workdir=runs/segments --pictures=4 "${models[@]}" \
  --generator=quickstart --config.eval.dataset=scenes_panoptic,scenes_instance
