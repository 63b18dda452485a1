"""Files that a page sends: kept beside the runs in a folder of their own, named by content, so that
`unteach purge` tells them from a user's own files.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from unteach.files.folders import private_folder

UPLOADS = "files"
"""Name of their folder."""


def keep_upload(folder: Path, name: str, data: bytes) -> Path:
    """Writes a file into `folder/files/`, readable by its owner only; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = re.sub(r"[^\w.-]", "_", Path(name).name)[-80:]
    path = private_folder(folder / UPLOADS) / f"{_digest(data)}-{plain}"
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def uploads(folder: Path) -> list[Path]:
    """The files in `folder/files/` whose name begins with the hash of their content."""
    found = (path for path in sorted((folder / UPLOADS).glob("*-*")) if path.is_file())
    return [path for path in found if path.name.startswith(f"{_digest(path.read_bytes())}-")]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:8]
