"""How far two texts are apart."""

from functools import cache


@cache
def edits(a: str, b: str) -> int:
    """The fewest insertions, deletions and replacements that turn a into b (Levenshtein 1966)."""
    if not a or not b:
        return len(a) + len(b)
    return min(edits(a[1:], b) + 1, edits(a, b[1:]) + 1, edits(a[1:], b[1:]) + (a[0] != b[0]))
