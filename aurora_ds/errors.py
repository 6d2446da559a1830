"""The one error that is meant for people: what was wrong, where, what is allowed, what to do next."""


class AuroraError(Exception):
    """A mistake in the input or the environment. The command line prints it as one paragraph, without a
    stack trace."""
