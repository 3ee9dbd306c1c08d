"""What can go wrong for a user, each with the exit status that the command ends with."""


class UserError(Exception):
    """A mistake or a fault that the user can act on: the message says what is wrong, where, and what to type instead."""

    exit_code = 1


class ConfigError(UserError):
    """Bad configuration: an unknown key, a value beyond its limit, a pair that can't work."""

    exit_code = 2


class DivergedError(UserError):
    """A loss or a gradient is not finite."""

    exit_code = 3


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or of another job."""

    exit_code = 4


class DataError(UserError):
    """Bad data: missing, not finite, of the wrong shape or kind."""

    exit_code = 5
