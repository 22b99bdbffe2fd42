"""Which board this is, and which of its rails make up the total."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...artifact.boards import CARRIER_INPUT, MODULE_INPUT, PARTIAL_SUM, Board, find_board

_WHOLE = (("VDD_IN", MODULE_INPUT), ("VIN", CARRIER_INPUT))


@dataclass(frozen=True)
class RailPlan:
    """What is read and what is told.

    Attributes:
        rails: to read, those of the total first.
        total: whose sum is the total.
        scope: what that sum covers.
    """

    rails: tuple[str, ...]
    total: tuple[str, ...]
    scope: str


def this_board(root: str = "/") -> Board | None:
    """The board by its device tree; None where there is no tree, or none that the table knows."""
    # /proc/device-tree is a link to the other, and absent where /proc is another's.
    tree = Path(root, "proc/device-tree")
    tree = tree if tree.exists() else Path(root, "sys/firmware/devicetree/base")
    return find_board(_text(tree / "model"), _text(tree / "compatible"))


def plan_rails(board: Board | None, labels: list[str]) -> RailPlan:
    """The board's total where its rail is there, else a sum that is told as partial.

    An unknown board with a VDD_IN is taken as a module whose input that is, one with a VIN as a carrier,
    as on all that have one: the other rails lie inside it, and a sum would count them twice.

    Args:
        labels: of the rails that can be read.
    """
    if board is None:
        known = labels
        inputs = [pair for pair in _WHOLE if pair[0] in labels]
        total, scope = ((inputs[0][0],), inputs[0][1]) if inputs else ((), PARTIAL_SUM)
        summed = tuple(labels)
    else:
        known = [rail.label for rail in board.rails]
        total = (board.total,) if board.total in labels else ()
        scope = board.scope if total else PARTIAL_SUM
        summed = board.summed
    chosen = total or tuple(label for label in summed if label in labels)
    if not chosen:  # a board whose sensors say other names than the table
        return plan_rails(None, labels)
    others = tuple(label for label in labels if label in known and label not in chosen)
    return RailPlan(chosen + others, chosen, scope)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
