"""Results of many pictures in the files of annotation tools."""

import typing

from maskclippp_jax.data import annotation_files
from maskclippp_jax.data.annotation_files import Annotated
from maskclippp_jax.drawing import report
from maskclippp_jax.naming.result import Result
from maskclippp_jax.runtime import storage

FORMATS = ("coco", "labelme", "yolo", "voc", "cvat", "labelstudio")


class AnnotationWriter:
    """Writes named masks as annotation tools have them, each tool's files in a folder of its own.

        with mc.AnnotationWriter("named", ["coco", "labelme"]) as writer:
            for result in model.name_many(...):
                writer.add(result)

        coco/instances.json              all pictures
        labelme/x.json                   one a picture
        yolo/labels/x.txt, data.yaml     for pictures in yolo/images
        voc/SegmentationClass/x.png, SegmentationObject/x.png, Annotations/x.xml, labelmap.txt
        cvat/annotations.xml             all pictures, "CVAT for images 1.1"
        labelstudio/tasks.json           all pictures, as predictions; form.xml for the project

    `data.annotation_files` tells what becomes of a mask. Files of all pictures appear at the end.
    """

    def __init__(self, folder: storage.Name, formats: typing.Sequence[str]):
        """Writes nothing yet.

        Args:
          folder: made if it is not there.
          formats: some of `FORMATS`.

        Raises:
          ValueError: another one.
        """
        check_formats(formats)
        self._folder, self._formats = storage.path(folder), tuple(dict.fromkeys(formats))
        self._vocabulary = None
        self._names: set[str] = set()
        self._coco_images, self._coco_masks, self._cvat, self._tasks = [], [], [], []

    def __enter__(self) -> "AnnotationWriter":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.finish()

    def add(self, result: Result, name: str | None = None) -> None:
        """Writes what belongs to one picture.

        Args:
          result: its named masks.
          name: of its files, without ending, may have folders in it; None: of the picture's file.

        Raises:
          ValueError: another vocabulary than before, or a name for the second time.
        """
        picture = result.annotated(name)
        if self._vocabulary not in (None, picture.vocabulary):
            raise ValueError(f"the result of {picture.name} has other classes than those before; "
                             "give each vocabulary a writer of its own")
        if picture.name in self._names:
            raise ValueError(f"there is a second picture {picture.name}; give it another name")
        self._vocabulary = picture.vocabulary
        self._names.add(picture.name)
        for kind in self._formats:
            getattr(self, f"_add_{kind}")(picture)

    def finish(self) -> None:
        """Writes the files of all pictures, if there were any."""
        if self._vocabulary is None:
            return
        vocabulary = self._vocabulary
        if "coco" in self._formats:
            report.write_json(self._file("coco/instances.json"), dict(
                images=self._coco_images, annotations=self._coco_masks,
                categories=annotation_files.coco_categories(vocabulary)))
        if "yolo" in self._formats:
            self._write("yolo/data.yaml", annotation_files.yolo_data(vocabulary))
        if "voc" in self._formats:
            self._write("voc/labelmap.txt", annotation_files.voc_labels(vocabulary))
            self._write("voc/ImageSets/Segmentation/default.txt",
                        "".join(f"{name}\n" for name in sorted(self._names)))
        if "cvat" in self._formats:
            self._write("cvat/annotations.xml",
                        annotation_files.cvat_file(vocabulary, self._cvat))
        if "labelstudio" in self._formats:
            report.write_json(self._file("labelstudio/tasks.json"), self._tasks)
            self._write("labelstudio/form.xml", annotation_files.label_studio_form(vocabulary))

    def _add_coco(self, picture: Annotated) -> None:
        image, masks = annotation_files.coco_rows(
            picture, len(self._coco_images) + 1, len(self._coco_masks) + 1)
        self._coco_images.append(image)
        self._coco_masks += masks

    def _add_labelme(self, picture: Annotated) -> None:
        file = self._file(f"labelme/{picture.name}.json")
        place = annotation_files.path_from(file.parent, picture.file)
        report.write_json(file, annotation_files.labelme(picture, place))

    def _add_yolo(self, picture: Annotated) -> None:
        self._write(f"yolo/labels/{picture.name}.txt", annotation_files.yolo(picture))

    def _add_voc(self, picture: Annotated) -> None:
        for folder, numbers in zip(("Class", "Object"), annotation_files.voc(picture)):
            self._write(f"voc/Segmentation{folder}/{picture.name}.png",
                        annotation_files.voc_png(numbers))
        self._write(f"voc/Annotations/{picture.name}.xml", annotation_files.voc_boxes(picture))

    def _add_cvat(self, picture: Annotated) -> None:
        self._cvat.append(annotation_files.cvat_image(picture, len(self._cvat)))

    def _add_labelstudio(self, picture: Annotated) -> None:
        self._tasks.append(annotation_files.label_studio(picture))

    def _file(self, name: str):
        file = self._folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        return file

    def _write(self, name: str, content: str | bytes) -> None:
        storage.write(self._file(name), content)


def check_formats(formats: typing.Sequence[str]) -> None:
    """Refuses formats that are not there."""
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats or isinstance(formats, str):
        raise ValueError(f"got the formats {formats!r}, wanted a list of some of "
                         f"{', '.join(FORMATS)}; on the command line json as well")
