"""Errors that the user can mend: shown as one message, without a stack trace."""


class UserError(ValueError):
    """Says what is wrong, where, and what would be right."""


class RunError(UserError):
    """The config is right, and the run failed nevertheless: exit code 1."""


class SaveError(RunError):
    """A checkpoint could not be written; the message says why, and which is the last whole one."""


class GradientError(RunError):
    """The gradient is no number, and was not stepped."""


class MeetingError(RunError):
    """Processes that did not come together, or no longer are; the message says where, how long was waited, and for whom."""
