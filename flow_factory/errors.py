"""Errors that the user can mend: shown as one message, without a stack trace."""


class UserError(ValueError):
    """Says what is wrong, where, and what would be right."""
