"""Inputs that are almost right: bytes of a valid file, changed in a few places, cut, or replaced by hostile ones."""

import json
import random

WORDS = (
    b"\0", b"\xff\xfe", b"\n", b"\t", b",", b'"', b"\\", b"#", b"\xef\xbb\xbf", b"../", b"1e999", b"NaN", b"null", b"true",
    b"[" * 3000, b"{", b"}", b"[]", b"{}", b'""', b"-1", b"65535", b"9" * 30, b"18446744073709551616", b"0",
    b"\xed\xa0\x80", b"\x1b[2J", "\u202e".encode(), "\u2028".encode(),
)  # fmt: skip

VALUES: tuple[object, ...] = (
    None, True, -1, 0, 1, 65535, 10**30, 1.5, "", "..", "../../etc/passwd", "\x1b[2J", [], {}, [1, 2], {"a": 1}, "x" * 999,
)  # fmt: skip


def mutate(content: bytes, draw: random.Random) -> bytes:
    """`content` with one to four changes."""
    found = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        where = draw.randrange(len(found) + 1)
        kind = draw.random()
        if kind < 0.3 and found:
            found[min(where, len(found) - 1)] = draw.randrange(256)
        elif kind < 0.4:
            found = found[:where]
        elif kind < 0.6:
            found[where:where] = draw.choice(WORDS)
        elif kind < 0.8:
            found[where : where + draw.randrange(1, 40)] = draw.choice(WORDS)
        elif kind < 0.9:
            found[where : where + draw.randrange(1, 600)] = b""
        else:
            part = found[where : where + draw.randrange(1, 80)]
            at = draw.randrange(len(found) + 1)
            found[at:at] = part
    return bytes(found)


def mutate_json(content: bytes, draw: random.Random) -> bytes:
    """A JSON text with one of its values replaced by another kind of value; still JSON."""
    tree = json.loads(content)
    holders = [
        (holder, key)
        for holder in _containers(tree)
        for key in (list(holder) if isinstance(holder, dict) else range(len(holder)))
    ]
    if not holders:
        return mutate(content, draw)
    holder, key = draw.choice(holders)
    kind = draw.random()
    if kind < 0.15 and isinstance(holder, dict):
        del holder[key]
    elif kind < 0.25 and isinstance(holder, dict):
        holder["strange"] = holder[key]
    else:
        holder[key] = draw.choice(VALUES)  # type: ignore[index,call-overload]
    return json.dumps(tree).encode()


def _containers(tree: object) -> list[dict[str, object] | list[object]]:
    if isinstance(tree, dict):
        return [tree, *(found for value in tree.values() for found in _containers(value))]
    if isinstance(tree, list):
        return [tree, *(found for value in tree for found in _containers(value))]
    return []
