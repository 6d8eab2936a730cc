"""A small vocabulary of the kind that TIPS has, made by the library that reads it."""

import pathlib

_TEXT = ("a photo of a cat", "itap of a dog, puppy.", "a bad photo of the small tree in a game",
         "art of many large cars", "x y z, w-q k j v b u", "grass sky wall floor person table")


def tips_vocabulary(folder: pathlib.Path) -> str:
    """Writes it and gives its path: 64 pieces; padding 0, unknown 1, end 2, start 3."""
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_TEXT), model_prefix=str(folder / "tips"), vocab_size=64,
        model_type="bpe", pad_id=0, unk_id=1, eos_id=2, bos_id=3, minloglevel=3)
    return str(folder / "tips.model")
