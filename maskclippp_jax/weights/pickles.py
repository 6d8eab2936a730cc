"""What is looked at in a pickle before an unpickler of ours runs it."""

import pickle
import pickletools
import typing


def check_memo(content: bytes | typing.BinaryIO) -> None:
    """Refuses a pickle that would make room for more objects than it has.

    Pickle makes room for as many as the largest number it is told to remember.

    Raises:
      pickle.UnpicklingError: such a number.
      ValueError: no pickle.
    """
    for count, (code, argument, _) in enumerate(pickletools.genops(content)):
        if "PUT" in code.name and int(argument) > count:
            raise pickle.UnpicklingError(f"it numbers an object {argument} of {count}")
