"""Masks of FC-CLIP, MAFT+, Mask2Former or MaskCLIP++ in detectron2 as a bundle.

In the repository of the generator, with its model and test loader as its own evaluation makes them,
copy this folder beside the script (and maskclippp_jax/data/bundle_writer.py into it), then

    recorder = MaskRecorder(model, "bundles/fcclip_l/ade20k_150", name="fcclip_l",
                            loader_min=800, loader_max=2560, short_side=None)
    with torch.no_grad():
        for inputs in build_detection_test_loader(cfg, "openvocab_ade20k_panoptic_val"):
            model(inputs)                # one picture a batch
            recorder.write(inputs[0])
    recorder.finish()

The recorder listens to `sem_seg_head.predictor`, wherever in the model it is. From FC-CLIP and
MAFT+ it keeps class *embeddings*, so that one bundle serves every vocabulary; from Mask2Former
logits of the classes it was trained on, which `vocabulary` must name. `loader_min`, `loader_max`:
INPUT's MIN_SIZE_TEST and MAX_SIZE_TEST; `short_side`: of a second resize without antialiasing,
which the published evaluation of MaskCLIP++ makes (800) and the generators' own repositories do not
(None).

For test-time augmentation there is one bundle for each version of the pictures:

    for version in pictures.versions(short_sides=(400, 500), flip=True):
        recorder = MaskRecorder(model, f"bundles/fcclip_l/ade20k_150/{version.name}", ...,
                                version=version)
        for inputs in loader:
            inputs = recorder.version_of(inputs[0])
            model([inputs])
            recorder.write(inputs)
        recorder.finish()
"""

import hashlib
import pathlib
import urllib.parse

import numpy as np
import pictures

# How the generators of this family turn names into sentences.
TEMPLATES = (
    "a photo of a {}.", "This is a photo of a {}", "There is a {} in the scene",
    "There is the {} in the scene", "a photo of a {} in the scene", "a photo of a small {}.",
    "a photo of a medium {}.", "a photo of a large {}.", "This is a photo of a small {}.",
    "This is a photo of a medium {}.", "This is a photo of a large {}.",
    "There is a small {} in the scene.", "There is a medium {} in the scene.",
    "There is a large {} in the scene.")
_MOST_SCALE = 100.0


class MaskRecorder:
    """Writes what the predictor of a model says of each picture."""

    def __init__(self, model, bundle, *, name, loader_min, loader_max, short_side, multiple=32,
                 vocabulary=None, masks="logits", version=pictures.Version()):
        """Listens to a model.

        Args:
          model: torch module with a submodule `...sem_seg_head.predictor`.
          bundle: folder to write.
          name: of the generator.
          loader_min, loader_max, short_side, multiple: how pictures reach it, see above.
          vocabulary: names of each class the logits speak of, a list of lists; for models without
            class embeddings.
          masks: "logits" or "probabilities".
          version: of the loaded pictures, for test-time augmentation.
        """
        found = [m for path, m in model.named_modules()
                 if path.endswith("sem_seg_head.predictor")]
        if len(found) != 1:
            raise ValueError(f"the model has {len(found)} modules named sem_seg_head.predictor, "
                             "wanted one; is it of another family?")
        self.predictor, self.short_side, self.multiple = found[0], short_side, multiple
        self.output = self.embeddings = None
        self.masks, self.version = masks, version
        void = [m for path, m in model.named_modules() if path.split(".")[-1] == "void_embedding"]
        self.open = bool(void)
        if self.open:
            scale = min(float(self.predictor.logit_scale.detach().exp()), _MOST_SCALE)
            vector = void[0].weight.detach().float().cpu().numpy()[0]
            classes = dict(kind="embeddings", void_embedding=vector.tolist(), logit_scale=scale,
                           templates=list(TEMPLATES))
            self.predictor.class_embed.register_forward_hook(self._keep_embeddings)
        elif vocabulary is None:
            raise ValueError("this model has no void_embedding, so its logits are of fixed "
                             "classes: give their names as `vocabulary`")
        else:
            classes = dict(kind="closed", vocabulary=[list(names) for names in vocabulary])
        self.predictor.register_forward_hook(self._keep_output)
        self.writer = pictures.Writer(
            bundle, masks=masks, stride=4, classes=classes,
            generator=dict(name=name, checkpoint=_hash_of(model), exporter="detectron2_hook.py"),
            preparation=dict(loader_min=loader_min, loader_max=loader_max, short_side=short_side,
                             multiple=multiple),
            augmentation=version.augmentation)

    def has(self, inputs):
        """Whether a picture was written before; its forward pass can be left out then."""
        return self.writer.has(id_of(inputs))

    def version_of(self, inputs):
        """The loader's dict of a picture with the picture in the recorder's version."""
        image = inputs["image"].cpu().numpy().transpose(1, 2, 0)
        image = self.version.of(np.ascontiguousarray(image)).transpose(2, 0, 1)
        return dict(inputs, image=inputs["image"].new_tensor(np.ascontiguousarray(image)))

    def write(self, inputs):
        """Writes the picture that the model has just seen.

        Args:
          inputs: its dict of detectron2's loader: file_name, height, width, image [3, h, w]; of
            versions what `version_of` made of it.
        """
        if self.output is None:
            raise ValueError("the model has seen no picture since the last one was written")
        if len(self.output["pred_masks"]) != 1:
            raise ValueError(f"got a batch of {len(self.output['pred_masks'])} pictures, wanted "
                             "one: padding to a common size changes the masks")
        masks = self.output["pred_masks"][0].detach().float().cpu().numpy()
        classes = self.embeddings if self.open else self.output["pred_logits"]
        classes = classes[0].detach().float().cpu().numpy()
        if self.open:
            classes = classes / np.maximum(np.linalg.norm(classes, axis=1, keepdims=True), 1e-12)
        loaded = tuple(inputs["image"].shape[-2:])
        size = pictures.resized_size(loaded, self.short_side)
        padded = pictures.padded_size(size, self.multiple)
        if tuple(4 * side for side in masks.shape[1:]) != padded:
            raise ValueError(f"the masks are {masks.shape[1:]}, but a picture loaded at {loaded} "
                             f"with short side {self.short_side} is padded to {padded}; give the "
                             "sizes of this model's configuration")
        if self.masks == "probabilities":
            masks = 1 / (1 + np.exp(-masks))
        self.writer.add(id_of(inputs), masks,
                        ((inputs["height"], inputs["width"]), loaded, size, padded), classes)
        self.output = self.embeddings = None

    def finish(self):
        """Writes the manifest, once all pictures are there."""
        self.writer.finish()

    def _keep_output(self, module, args, output):
        self.output = output

    def _keep_embeddings(self, module, args, output):
        self.embeddings = output  # the last call is that of the last layer


def id_of(inputs):
    """The picture's id: the name of its file."""
    return urllib.parse.unquote(pathlib.Path(inputs["file_name"]).stem)


def _hash_of(model):
    """SHA-256 of all parameters, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
