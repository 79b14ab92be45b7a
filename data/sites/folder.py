"""Pictures in a site's folders: levels of clients, splits and classes above the files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from umbel.core.names import shown
from umbel.data.errors import DataError, MissingDataError
from umbel.data.pictures import Form
from umbel.data.sets.image_folder import split_folders
from umbel.data.sites.description import SiteData, composed
from umbel.data.sites.rows import Pictures, Rows, decode
from umbel.data.sources.picture_files import find


def rows(site: SiteData) -> Rows:
    """List the pictures below a site's folder; none is opened.

    Raises:
        MissingDataError: There is no such folder.
        DataError: There are no pictures at that depth.
    """
    root = Path(site.path)
    if not root.is_dir():
        raise MissingDataError(f"path={site.path}: there is no such folder.", key="path", remedy="Set path to one.")
    levels = site.levels or (("split", "class") if split_folders(root) else ("class",))
    layout = "/".join((*(f"<{level}>" for level in levels), "*"))
    files = find(root, len(levels) + 1, layout)
    if not files.paths:
        raise DataError(
            " ".join([f"{shown(root)}: expected pictures as {layout}, found none.", *files.notices]),
            key="path",
            remedy="Set path to the folder above, or layout to the levels that there are.",
        )
    names = [path.relative_to(root).parts for path in files.paths]

    def column(level: str) -> list[str] | None:
        if level not in levels:
            return None
        place = levels.index(level)
        return [composed(shown(parts[place])) for parts in names]

    return Rows(
        labels=column("class") or (),
        read=from_files(files.paths),
        clients=column("client"),
        splits=column("split"),
        notices=files.notices,
    )


def from_files(paths: Sequence[Path]) -> Callable[[Sequence[int], Form], Pictures]:
    """Return what reads the pictures of some of the files."""

    def read(wanted: Sequence[int], form: Form) -> Pictures:
        def opening(path: Path) -> Callable[[], Image.Image]:
            return lambda: Image.open(path)

        chosen = (paths[row] for row in wanted)
        return decode(((shown(path), opening(path)) for path in chosen), len(wanted), form)

    return read
