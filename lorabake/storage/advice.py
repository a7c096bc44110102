"""What helps where a weight is not understood; it follows what is not."""

PLAIN_ONE = "Give it a base of plain weights (float32, float16, bfloat16 or float8)."
OTHER_SCALES = (
    "This version knows one scale, one a row, a column, a block of 128 by 128 or of one row, and no other scheme.\n"
    "Give it such a base, or a plain one."
)
UNDECODED = f"This version cannot decode it, or lacks what it takes to be certain. {PLAIN_ONE}"
UNKNOWN = f"This version does not know what the stored values stand for then.\n{PLAIN_ONE}"
