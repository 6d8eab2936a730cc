"""Shows the class names of a data set.

    maskclippp names NAME [--overlap=OTHER]

Every class with its synonyms; with `--overlap` also which classes are seen, so share an exact name
with a class of the other vocabulary. NAME and OTHER are shipped vocabularies, or names files
(*.txt). Without NAME: what is shipped.

    maskclippp names --check=FILE [--overlap=OTHER]

Looks at a names file as a CLIP reads it: names that are there twice, that are cut because they have
too many tokens, that are not like words of a caption (cat_blk), and those that OTHER has too. The
exit code is 1 if commands would refuse the file or names are cut.
"""

from absl import flags

POSITIONAL, BUCKETS = "[NAME]", ()

OVERLAP = flags.DEFINE_string("overlap", None, "vocabulary that was trained on; shows what it has "
                              "seen of this one")
CHECK = flags.DEFINE_string("check", None, "names file to be looked at")


def main(names):
    from maskclippp_jax.drawing import report
    from maskclippp_jax.vocabulary import Vocabulary

    if CHECK.value:
        if names:
            raise ValueError(f"got {names[0]!r} beside --check={CHECK.value}; give one of both")
        return _check()
    if len(names) > 1 or (OVERLAP.value and not names):
        raise ValueError(f"got {len(names)} vocabularies, wanted one; see --help")
    if not names:
        report.print_vocabularies()
        return
    training = Vocabulary.load(OVERLAP.value) if OVERLAP.value else None
    report.print_vocabulary(Vocabulary.load(names[0]), training)


def _check() -> int:
    from maskclippp_jax.data import names_check
    from maskclippp_jax.drawing import report
    from maskclippp_jax.runtime import storage
    from maskclippp_jax.vocabulary import TEMPLATES_14, Vocabulary

    if not storage.path(CHECK.value).is_file():
        raise FileNotFoundError(f"no names file {CHECK.value}")
    other = Vocabulary.load(OVERLAP.value) if OVERLAP.value else None
    found = names_check.check(storage.read_text(CHECK.value), CHECK.value, TEMPLATES_14,
                              other=other)
    rows = [(n.class_id, n.name, n.tokens, n.remarks) for n in found.names]
    report.print_names_check(rows, found.refused)
    cut = any(remark.startswith("cut") for n in found.names for remark in n.remarks)
    return int(bool(found.refused or cut))
