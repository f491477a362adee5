"""The one exception for mistakes that the user can mend, and the nearest-name hint that goes with it."""

import difflib
from collections.abc import Iterable

SHOWN = 30  # a longer list of what is known is left out where there is a near name


class UserError(Exception):
    """A mistake of the user's. The message says what to do; the command line prints it alone and exits with 2."""


def unknown(kind: str, name: str, known: Iterable[str], hint: str = "") -> UserError:
    """A `UserError` for a name that does not exist, with the nearest names that do.

    >>> print(unknown("regularizer", "mixupp", ["mixup", "cutmix", "none"]))
    There is no regularizer 'mixupp'. Did you mean mixup or cutmix? Known: cutmix, mixup, none.
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    text = f"There is no {kind} '{name}'."
    if close:
        text += f" Did you mean {' or '.join(close)}?"
    if known and (not close or len(known) <= SHOWN):
        text += f" Known: {', '.join(known)}."
    return UserError(f"{text} {hint}".strip())
