"""The root of Retrace's errors: one sentence that a user can act on."""


class RetraceError(Exception):
    """A failure with a message for a user: what, where, what to do. Never retried by Airflow."""


class TransientError(RetraceError):
    """A failure of the network, a remote or a database: worth another try later."""
