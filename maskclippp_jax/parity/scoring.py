"""Cases of metrics, and of oracle assignments."""

import numpy as np

from maskclippp_jax.metrics import oracle
from maskclippp_jax.metrics.instance import InstanceSegmentation
from maskclippp_jax.metrics.mask_accuracy import MaskAccuracy, classes_of_segments, classes_present
from maskclippp_jax.metrics.panoptic import PanopticQuality
from maskclippp_jax.metrics.run_lengths import encode
from maskclippp_jax.metrics.semantic import SemanticSegmentation
from maskclippp_jax.parity.case import Case, Check, close, equal


def metric_mask_accuracy(case: Case) -> list[Check]:
    checks = []
    for step in case.spec["steps"]:
        name, num_classes = step["name"], step["num_classes"]
        metric = MaskAccuracy(num_classes, case.arrays[f"in/{name}/seen"])
        for i, predicted in enumerate(step["predicted_classes"]):
            labels = (classes_of_segments(step["segments"][i], range(num_classes))
                      if "segments" in step else classes_present(
                          case.arrays[f"in/{name}/ground_truth"][i], step["ignore_label"]))
            metric.process(predicted, labels)
        checks.append(equal(f"{name}/counts", metric.counts,
                            case.arrays[f"out/{name}/counts"][:-1, :-1]))
        checks += _values(name, metric.evaluate(), case.spec["expected"][name])
    return checks


def metric_semantic(case: Case) -> list[Check]:
    """All but detectron2's boundary score, which subtracts class numbers and means nothing."""
    checks = []
    for step in case.spec["steps"]:
        name = step["name"]
        metric = SemanticSegmentation(step["num_classes"], step["ignore_label"],
                                      case.arrays.get(f"in/{name}/seen"))
        for prediction, truth in zip(case.arrays[f"in/{name}/prediction"],
                                     case.arrays[f"in/{name}/ground_truth"]):
            metric.process(prediction, truth)
        checks.append(equal(f"{name}/counts", metric.counts, case.arrays[f"out/{name}/counts"]))
        checks += _values(name, metric.evaluate(), {
            k: v for k, v in case.spec["expected"][name].items() if "boundary" not in k})
    return checks


def metric_panoptic(case: Case) -> list[Check]:
    checks = []
    for step in case.spec["steps"]:
        name = step["name"]
        metric = PanopticQuality({c["id"]: bool(c["isthing"]) for c in step["categories"]})
        for row in zip(case.arrays[f"in/{name}/prediction"], step["predicted_segments"],
                       case.arrays[f"in/{name}/ground_truth"], step["gt_segments"]):
            metric.process(*row)
        got, want = metric.evaluate(), case.spec["expected"][name]
        for category, counts in want["counts"].items():
            mine = got["counts"][int(category)]
            exact = ("tp", "fp", "fn")
            checks += [equal(f"{name}/counts {category}", [mine[k] for k in exact],
                             [counts[k] for k in exact]),
                       close(f"{name}/iou_sum {category}", mine["iou_sum"], counts["iou_sum"],
                             atol=1e-6)]
        for part in ("all", "things", "stuff"):
            if isinstance(want[part], str):  # the reference divides by zero
                checks.append(equal(f"{name}/{part}", list(got[part].values()), [None] * 3 + [0]))
                continue
            checks.append(equal(f"{name}/{part} n", got[part]["categories"], want[part]["n"]))
            checks += _values(f"{name}/{part}", {k.lower(): v for k, v in got[part].items()},
                              {k: want[part][k] for k in ("pq", "sq", "rq")})
        for category, values in want["per_class"].items():
            mine = got["per_category"][int(category)]
            checks += _values(f"{name}/{category}", {k.lower(): v for k, v in mine.items()}, values)
    return checks


def metric_instance(case: Case) -> list[Check]:
    """`first_annotation_id_0` shows a defect: perfect predictions must give what `..._1` gives."""
    checks = []
    for step in case.spec["steps"]:
        name = step["name"]
        right = name.replace("annotation_id_0", "annotation_id_1")
        metric = InstanceSegmentation(range(step["num_classes"]))
        for i, true in enumerate(step["gt"]):
            scores, classes, masks = (case.arrays[f"in/{name}/pred_{key}{i}"]
                                      for key in ("scores", "classes", "masks"))
            metric.process(
                f"{i:06}",
                [dict(category_id=c, score=s, segmentation=encode(mask))
                 for s, c, mask in zip(scores, classes, masks)],
                [dict(row, segmentation=encode(mask))
                 for row, mask in zip(true, case.arrays[f"in/{name}/gt_masks{i}"])])
        got, (precision, recall) = metric.evaluate(), metric.precision()
        want = dict(case.spec["expected"][right])
        checks += [close(f"{name}/precision", precision, case.arrays[f"out/{right}/precision"],
                         atol=1e-6),
                   close(f"{name}/recall", recall, case.arrays[f"out/{right}/recall"], atol=1e-6)]
        got["per_class"] = list(got["per_category"].values())
        checks += _values(name, got, {k: v for k, v in want.items() if k != "stats_fraction"})
    return checks


def oracle_assignment(case: Case) -> list[Check]:
    """The best class each mask could have.

    The reference loses the first pair of every image in the panoptic form, because its ids start at
    0; its maps and segments are compared with ours less one.
    """
    checks = []
    run = dict(semantic=_oracle_semantic, panoptic=_oracle_panoptic, instance=_oracle_instance)
    for step in case.spec["steps"]:
        arrays = {k.split("/", 2)[2]: v for k, v in case.arrays.items()
                  if k.split("/")[1] == step["name"]}
        got, want = {}, {k: v for k, v in case.spec["expected"][step["name"]].items()}
        run[step["name"]](step, arrays, checks, got, want)
        checks += _values(step["name"], got, want["result"])
    return checks


def _oracle_semantic(step, arrays, checks, got, want):
    metric = SemanticSegmentation(step["num_classes"], 255)
    for i, truth in enumerate(arrays["ground_truth"]):
        masks = arrays[f"pred_masks{i}"].astype(bool)
        targets = truth[None] == classes_present(truth, 255)[:, None, None]
        checks += _assigned("semantic", i, masks, targets, arrays)
        labels = oracle.semantic(masks, truth, 255)
        checks.append(equal(f"semantic/labels{i}", labels, arrays[f"labels{i}"]))
        metric.process(labels, truth)
    got.update(metric.evaluate())


def _oracle_panoptic(step, arrays, checks, got, want):
    categories = {s["category_id"]: s["isthing"] for row in step["gt_segments"] for s in row}
    metric = PanopticQuality(categories)
    for i, (truth, segments) in enumerate(zip(arrays["ground_truth"], step["gt_segments"])):
        masks = arrays[f"pred_masks{i}"].astype(bool)
        targets = truth[None] == np.array([s["id"] for s in segments])[:, None, None]
        checks += _assigned("panoptic", i, masks, targets, arrays)
        ids, found = oracle.panoptic(masks, truth, segments)
        ids = np.maximum(ids - 1, 0)
        found = [dict(s, id=s["id"] - 1) for s in found if s["id"] > 1]
        checks += [equal(f"panoptic/panoptic{i}", ids, arrays[f"panoptic{i}"]),
                   equal(f"panoptic/segments{i}", [[s["id"], s["category_id"]] for s in found],
                         [[s["id"], s["category_id"]] for s in want[f"segments{i}"]])]
        metric.process(ids, found, truth, segments)
    result = metric.evaluate()
    for part, ending in (("all", ""), ("things", "_th"), ("stuff", "_st")):
        got.update({f"{k}{ending}": result[part][k] for k in ("PQ", "SQ", "RQ")})


def _oracle_instance(step, arrays, checks, got, want):
    metric = InstanceSegmentation(range(step["num_classes"]))
    for i, (truth, segments) in enumerate(zip(arrays["ground_truth"], step["gt_segments"])):
        masks = arrays[f"pred_masks{i}"].astype(bool)
        things = [s for s in segments if s["isthing"]]
        targets = truth[None] == np.array([s["id"] for s in things])[:, None, None]
        checks += _assigned("instance", i, masks, targets, arrays)
        found = oracle.instances(masks, targets, [s["category_id"] for s in things])
        metric.process(
            f"{i:06}", [dict(category_id=c, score=1.0, segmentation=encode(masks[n]))
                        for n, c in zip(*found)],
            [dict(s, segmentation=encode(mask)) for s, mask in zip(things, targets)])
    got.update(metric.evaluate())


def _assigned(name, i, masks, targets, arrays) -> list[Check]:
    iou = oracle.mask_iou(masks, targets)
    return [close(f"{name}/iou{i}", iou, arrays[f"iou{i}"], atol=1e-6),
            equal(f"{name}/pairs{i}", np.stack(oracle.assign(iou), -1), arrays[f"pairs{i}"])]


def _values(name: str, got: dict, want: dict) -> list[Check]:
    """Percentages, None where undefined."""
    checks = []
    for key, value in want.items():
        mine = got[key]
        both = [(a, b) for a, b in zip(mine, value)] if isinstance(value, list) else [(mine, value)]
        checks.append(equal(f"{name}/{key} defined", [a is None for a, _ in both],
                            [b is None for _, b in both]))
        defined = [(a, b) for a, b in both if a is not None and b is not None]
        if defined:
            checks.append(close(f"{name}/{key}", *zip(*defined), atol=1e-6))
    return checks
