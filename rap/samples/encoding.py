"""Text files that are not UTF-8: which encoding they seem to have, how to convert them.

Nothing is converted here: the guess may be wrong, and a wrong letter would be scored.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from ..errors import RapInputError
from .strictjson import BOM

UTF16 = (b"\xff\xfe", b"\xfe\xff")
LOOKED_AT = 1 << 20
"""Bytes of a file of lines by which it is decided."""
_NAMES = {"ISO-8859-1": "Latin-1", "CP1252": "Windows-1252", "GB18030": "GBK or GB18030"}


def require_utf8(path: Path, shown: Path) -> None:
    """Raises ``RapInputError`` that names the file, the first line that is not UTF-8, the
    encoding and the command that converts it. Reads the file to that line. ``shown``: the
    file's name for people."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not is_utf8(line):
                raise refusal(shown, line + file.read(LOOKED_AT), number)


def require_lines_of_utf8(head: bytes, shown: Path) -> None:
    """As ``require_utf8``, by the beginning of a file of lines: only where it is another
    encoding as a whole, two lines or more with other than ASCII characters, and none is
    UTF-8. A single broken line is its row's fault."""
    lines = head.splitlines()[: -1 if len(head) == LOOKED_AT else None]
    others = [n for n, line in enumerate(lines, 1) if not line.isascii()]
    if len(others) > 1 and not any(is_utf8(lines[n - 1]) for n in others):
        raise refusal(shown, head, others[0])


def refuse_utf16(head: bytes, shown: Path) -> None:
    """Raises ``RapInputError`` for a file that begins as text in UTF-16 does."""
    if encoding_of(head).startswith("UTF-16"):
        raise refusal(shown, head)


def refusal(shown: Path, data: bytes, line: int | None = None) -> RapInputError:
    """The sentence. ``data``: a part of the file that is not UTF-8; ``line``: its first."""
    name = encoding_of(data)
    at = "" if line is None else f" (line {line} shows it first)"
    likely = "" if name.startswith("UTF") else ", as it seems,"
    packed = shown.suffix == ".gz"
    plain = shown.with_suffix("") if packed else shown
    old = shlex.quote(str(shown))
    new = shlex.quote(str(plain.with_name(f"{plain.stem}.utf8{plain.suffix}")))
    command = f"gzip -dc {old} | iconv -f {name}" if packed else f"iconv -f {name} {old}"
    return RapInputError(
        f"data set {shown}: text not in UTF-8 but{likely} in {_NAMES.get(name, name)}{at}; "
        f"convert it: {command} -t UTF-8 > {new}"
    )


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def encoding_of(data: bytes) -> str:
    """The encoding that text which is not UTF-8 seems to have, as ``iconv`` names it."""
    if data.startswith(UTF16):
        return "UTF-16"
    for name, zeros in (("UTF-16LE", data[1:200:2]), ("UTF-16BE", data[0:200:2])):
        if len(zeros) > 1 and zeros.count(0) > len(zeros) / 2:
            return name
    if _is_chinese(data):
        return "GB18030"
    return "CP1252" if re.search(rb"[\x80-\x9f]", data) else "ISO-8859-1"


def _is_chinese(data: bytes) -> bool:
    """Whether bytes above ASCII come in pairs that are Chinese characters: in the encodings
    of Western Europe such a letter mostly stands alone."""
    runs = re.findall(rb"[\x80-\xff]+", data.removeprefix(BOM))
    paired = sum(len(run) for run in runs if len(run) % 2 == 0)
    if not runs or paired < 0.8 * sum(map(len, runs)):
        return False
    text = b"".join(runs).decode("gb18030", "replace")
    return len(re.findall(r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]", text)) > 0.8 * len(
        text
    )
