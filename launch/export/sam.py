"""Automatic masks of a SAM of Hugging Face's `transformers` as a bundle, without classes.

    maskclippp masks pictures --dataset=ade20k_150 --output=pictures
    python launch/export/sam.py --model=facebook/sam-vit-huge --images="pictures/*" \
        --bundle=bundles/sam_h/ade20k_150

Needs torch, torchvision and transformers. Masks are binary, at the size of the picture, the most
confident first; there is no void class and no ensemble. Started again it goes on where it was. For
test-time augmentation, `--short_sides=400,500 --flip` write one bundle for each version of the
pictures. Masks that any other program has made become a bundle by `maskclippp masks
from_files`.
"""

import argparse

import numpy as np
import pictures
import torch
import transformers
from PIL import Image


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="name on the hub, or a folder")
    parser.add_argument("--images", required=True, help="pattern of picture files, named by id")
    parser.add_argument("--bundle", required=True, help="folder to write")
    parser.add_argument("--points_per_side", type=int, default=32, help="of the grid of prompts")
    parser.add_argument("--points_per_batch", type=int, default=64)
    parser.add_argument("--pred_iou_thresh", type=float, default=0.88)
    parser.add_argument("--stability_score_thresh", type=float, default=0.95)
    parser.add_argument("--most", type=int, default=250, help="masks of a picture")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    pictures.add_version_flags(parser)
    args = parser.parse_args()

    files = pictures.find(args.images)
    generate = transformers.pipeline("mask-generation", model=args.model, device=args.device)
    settings = dict(points_per_batch=args.points_per_batch, pred_iou_thresh=args.pred_iou_thresh,
                    points_per_crop=args.points_per_side,
                    stability_score_thresh=args.stability_score_thresh)

    def segment(image, version):
        """Masks and size of one picture."""
        changed = version.of(image)
        with torch.inference_mode():
            found = generate(Image.fromarray(changed), **settings)
        scores = np.asarray([float(s) for s in found["scores"]])
        best = np.argsort(-scores, kind="stable")[:args.most]
        masks = [np.asarray(found["masks"][i], bool) for i in best]
        masks = np.stack(masks) if masks else np.zeros((0, *changed.shape[:2]), bool)
        return masks, (image.shape[:2],)

    pictures.write_bundles(
        args, files, segment, masks="binary", classes=dict(kind="none"),
        generator=dict(name=args.model, exporter="sam.py", **settings, most=args.most,
                       transformers=transformers.__version__))


if __name__ == "__main__":
    main()
