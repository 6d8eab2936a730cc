"""Shows the class names of a data set.

    maskclippp names NAME [--overlap=OTHER]

Every class with its synonyms; with `--overlap` also which classes are seen, so share an exact name
with a class of the other vocabulary. NAME and OTHER are shipped vocabularies, or names files
(*.txt). Without NAME: what is shipped.
"""

from absl import flags

POSITIONAL, BUCKETS = "NAME", ()

OVERLAP = flags.DEFINE_string("overlap", None, "vocabulary that was trained on; shows what it has "
                              "seen of this one")


def main(names):
    from maskclippp_jax.drawing import report
    from maskclippp_jax.vocabulary import Vocabulary

    if len(names) > 1 or (OVERLAP.value and not names):
        raise ValueError(f"got {len(names)} vocabularies, wanted one; see --help")
    if not names:
        report.print_vocabularies()
        return
    training = Vocabulary.load(OVERLAP.value) if OVERLAP.value else None
    report.print_vocabulary(Vocabulary.load(names[0]), training)
