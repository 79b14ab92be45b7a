"""What is wrong with a site's data: said in full at the site, and to others without what is nobody else's business."""

from __future__ import annotations

from umbel.core.names import shown
from umbel.core.refusal import Refusal
from umbel.data.errors import DamagedDataError, DataError, MissingDataError

SITE_DATA = "its site-data"  # what a site's data file is called where it has no path, and by others


class SiteError(DataError):
    """What is wrong with a site's data; the message names the site, the key is that of its data file.

    Attributes:
        public: What others may know of it: no file, no person, no value of a column.
    """

    public = ""


def named(site: str, error: Refusal | OSError, file: str = SITE_DATA, public: str = "") -> SiteError:
    """Return an error with the site in front.

    Args:
        site: The site's name.
        error: What is wrong.
        file: The data file that says otherwise, for whoever reads the message at the site.
        public: What others may know of it; empty is its kind and its key alone.
    """
    refusal = refusal_of(error)
    where, known = (f" (key {refusal.key} of {of})" if refusal.key else "" for of in (file, SITE_DATA))
    made = SiteError(f"site {site}: {refusal.reason.rstrip('.')}{where}.", key=refusal.key, remedy=refusal.remedy)
    made.public = f"site {site}: {public or _kind(refusal) + known}."
    return made


def _kind(error: Refusal) -> str:
    if isinstance(error, MissingDataError):
        return "its data are not there"
    return "some of it cannot be read" if isinstance(error, DamagedDataError) else "its data are refused"


def refusal_of(error: Refusal | OSError) -> Refusal:
    """Return what the system says of a file or folder as the refusal of it; a refusal as it is."""
    if isinstance(error, Refusal):
        return error
    kind = MissingDataError if isinstance(error, FileNotFoundError | NotADirectoryError) else DamagedDataError
    reason = f"{shown(str(error.filename))}: {error.strerror}." if error.filename else f"{error}."
    return kind(reason, remedy="Bring it back, or let the account of the node read it.")
