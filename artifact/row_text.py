"""How a result row is named, and how its numbers read, in lines and tables alike."""

from __future__ import annotations

from .result_row import EngineRow


def engine_name(row: EngineRow) -> str:
    """Runtime and precision, with the type of the float layers where it is another.

    >>> engine_name(EngineRow(id="a", runtime="openvino", precision="int8", execution="bf16"))
    'openvino int8+bf16'
    """
    precision = row.precision
    if row.precision in ("int8", "fp8") and row.execution not in ("fp32", row.precision):
        precision = f"{row.precision}+{row.execution}"
    elif row.precision == "fp16" and row.execution == "fp32":
        # A CPU without fp16 arithmetic stores fp16 and computes in fp32: two different things.
        precision = "fp16 weights"
    return precision if row.runtime == "-" else f"{row.runtime} {precision}"


def engine_label(row: EngineRow) -> str:
    """`engine_name` with the quantization route.

    >>> engine_label(EngineRow(id="a", runtime="openvino", precision="int8", route="nncf mixed"))
    'openvino int8 (nncf mixed)'
    """
    return f"{engine_name(row)} ({row.route})" if row.route else engine_name(row)


def decimals(value: float, places: int = 2, sign: bool = False) -> str:
    """A number with fixed places and a real minus sign; what rounds to zero is signed as it was.

    >>> decimals(-0.06), decimals(0.15, sign=True), decimals(-0.001), decimals(0, sign=True)
    ('−0.06', '+0.15', '−0.00', '0.00')
    """
    text = f"{abs(value):.{places}f}"
    return ("−" if value < 0 else "+" if sign and value > 0 else "") + text


def significant(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, never in powers of ten unless tiny or huge.

    >>> significant(0.13449), significant(9.3712), significant(123.46), significant(1234.5)
    ('0.134', '9.37', '123', '1,234')
    """
    if value == 0 or not 1e-4 <= abs(value) < 1e9:
        return f"{value:.{digits}g}".replace("-", "−")
    exponent = int(f"{abs(value):.{digits - 1}e}".split("e")[1])
    return f"{value:,.{max(0, digits - 1 - exponent)}f}".replace("-", "−")


def points(value: float) -> str:
    """A budget in points as it was meant: at least one decimal, no more than needed.

    >>> points(1), points(0.5), points(0.25)
    ('1.0', '0.5', '0.25')
    """
    text = f"{value:.10g}"
    return text if "." in text or "e" in text else f"{text}.0"


def printable(text: str) -> str:
    """Another machine's words as one line that a terminal shows and does not obey.

    >>> printable("done\\n\\x1b]0;title\\x07 é")
    'done ?]0;title? é'
    """
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
