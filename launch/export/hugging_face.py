"""Masks of a Mask2Former, MaskFormer or OneFormer of Hugging Face's `transformers` as a bundle.

    maskclippp masks pictures --dataset=ade20k_150 --output=pictures
    python launch/export/hugging_face.py --model=facebook/mask2former-swin-large-coco-panoptic \
        --images="pictures/*" --bundle=bundles/mask2former_l/ade20k_150

Needs torch and transformers (pillow, numpy). Pictures go in one at a time, prepared as the
published evaluation of MaskCLIP++ prepares them (`--loader_min`, `--loader_max`, `--short_side`),
not by the model's own processor, of which mean and deviation are used. Started again it goes on
where it was. For test-time augmentation, `--short_sides=400,500 --flip` write one bundle for each
version of the pictures.
"""

import argparse
import hashlib
import json

import numpy as np
import pictures
import torch
import transformers


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="name on the hub, or a folder")
    parser.add_argument("--images", required=True, help="pattern of picture files, named by id")
    parser.add_argument("--bundle", required=True, help="folder to write")
    parser.add_argument("--loader_min", type=int, default=800, help="shorter side of the loaded "
                        "picture; 0: as it is")
    parser.add_argument("--loader_max", type=int, default=2560)
    parser.add_argument("--short_side", type=int, default=0, help="of a second resize without "
                        "antialiasing (published: 800 with Swin-L, none with Swin-T); 0: none")
    parser.add_argument("--multiple", type=int, default=32, help="sides are padded to it")
    parser.add_argument("--masks", choices=["logits", "probabilities"], default="logits",
                        help="probabilities: a fifth of the size, not for published numbers")
    parser.add_argument("--task", default="panoptic", help="of a OneFormer")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    pictures.add_version_flags(parser)
    args = parser.parse_args()

    files = pictures.find(args.images)
    model = transformers.AutoModelForUniversalSegmentation.from_pretrained(args.model)
    model = model.float().eval().to(args.device)
    mean, std = pixels_of(args.model)
    extra = {}
    if model.config.model_type == "oneformer":
        extra["task_inputs"] = task_ids(args.model, model, args.task).to(args.device)
    facts = dict(
        masks=args.masks, stride=4, classes=dict(kind="closed", vocabulary=vocabulary_of(model)),
        generator=dict(name=args.model, kind=model.config.model_type, checkpoint=hash_of(model),
                       exporter="hugging_face.py", transformers=transformers.__version__),
        preparation=dict(loader_min=args.loader_min or None, loader_max=args.loader_max or None,
                         short_side=args.short_side or None, multiple=args.multiple))

    def segment(image, version):
        """Masks, their sizes and classes of one picture."""
        loaded = version.of(pictures.load(image, args.loader_min, args.loader_max))
        network, size = pictures.to_network(loaded, args.short_side, args.multiple, mean, std)
        with torch.inference_mode():
            result = model(pixel_values=network.to(args.device), **extra)
        masks, classes = (x[0].float().cpu().numpy() for x in (
            result.masks_queries_logits, result.class_queries_logits))
        padded = network.shape[2:]
        if any(4 * a != b for a, b in zip(masks.shape[1:], padded)):
            raise SystemExit(f"error: the masks are {masks.shape[1:]} for an input of "
                             f"{tuple(padded)}, wanted a quarter")
        if args.masks == "probabilities":
            masks = 1 / (1 + np.exp(-masks))
        return masks, (image.shape[:2], loaded.shape[:2], size, padded), classes

    pictures.write_bundles(args, files, segment, **facts)


def vocabulary_of(model):
    """Names of each class, synonyms apart, without COCO's marks of merged and other classes."""
    names = [model.config.id2label[i] for i in range(len(model.config.id2label))]
    clean = lambda name: name.removesuffix("-merged").removesuffix("-other").replace("-", " ")
    return [[clean(n.strip()) for n in name.split(",")] for name in names]


def pixels_of(name):
    """Mean and deviation of RGB in 0 ... 255 that the model's processor uses."""
    processor = transformers.AutoImageProcessor.from_pretrained(name)
    return [[255 * x for x in values] for values in (processor.image_mean, processor.image_std)]


def task_ids(name, model, task):
    """[1, X] the task of a OneFormer as its text encoder gets it."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    ids = tokenizer([f"the task is {task}"], padding="max_length", truncation=True,
                    max_length=model.config.task_seq_len, return_tensors="pt")
    return ids["input_ids"]


def hash_of(model):
    """SHA-256 of all parameters, by name."""
    digest = hashlib.sha256(json.dumps(sorted(model.state_dict())).encode())
    for _, value in sorted(model.state_dict().items()):
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    main()
