"""Errors that the user can mend: shown as one message, without a stack trace."""


class UserError(ValueError):
    """Says what is wrong, where, and what would be right."""


class MeetingError(UserError):
    """Processes that did not come together, or no longer are; the message says where, how long was waited, and for whom."""
