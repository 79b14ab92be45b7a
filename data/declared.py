"""What a node says of the classes of its data, in few bytes."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from umbel.data.federation import Federation

_NAMED = 100


def declared(data: Federation) -> dict[str, Any]:
    """Return a hash of the names of all classes in their order, and the names of the first."""
    text = json.dumps(list(data.class_names))
    return {"sha256": hashlib.sha256(text.encode()).hexdigest(), "names": list(data.class_names[:_NAMED])}
