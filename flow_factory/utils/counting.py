"""Numbers in messages."""


def counted(many: int, what: str) -> str:
    """`1 epoch`, `2 epochs`."""
    return f"{many} {what}{'s' * (many != 1)}"
