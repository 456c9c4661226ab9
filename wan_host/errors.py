"""The errors of wan-host.

A failed job is reported with the ``error_type`` of the error that ended it. Whether another attempt may help is decided by
the class alone:

    WanHostError
    |-- PermanentError            another attempt cannot help: the job fails now
    |   |-- InvalidJob            the payload asks for what no worker can do
    |   |-- UnsupportedRequest    the chosen model cannot do it, another one may
    |   |-- UnknownModel          no installed plugin offers the model
    |   |-- ReferenceRejected     a reference is missing, too large, forbidden or no image
    |   |-- PublishRefused        the store refuses for good: credentials, bucket, quota, size
    |   |-- DeadlineExceeded      the job's own deadline has passed
    |   `-- AttemptsExhausted     every attempt that the job had was lost
    |-- RetryableError            another attempt may succeed
    |   |-- ModelLoadFailed       a model's files could not be loaded
    |   |-- GenerationFailed      a plugin raised while it was generating
    |   |-- OutOfMemory           the device's memory was too small for the placement that was tried
    |   |-- LaneCrashed           the process that ran the model died
    |   |-- LaneHung              it showed no progress for longer than its stage is allowed
    |   |-- ReferenceUnreachable  a reference's server failed or timed out
    |   |-- EncodingFailed        ffmpeg failed
    |   |-- PostprocessFailed     a postprocess plugin raised
    |   |-- PublishFailed         the store is down or slow
    |   `-- QueueUnavailable      the queue server is down, slow or answers errors
    |-- JobCancelled              somebody asked for it
    |-- LeaseLost                 another worker has the job now: this one must not publish or report it
    |-- SettingsError             a setting has a wrong value
    `-- PluginError               a plugin broke its contract
"""

from __future__ import annotations

from typing import ClassVar, Self

__all__ = [
    "AttemptsExhausted",
    "DeadlineExceeded",
    "EncodingFailed",
    "GenerationFailed",
    "InvalidJob",
    "JobCancelled",
    "LaneCrashed",
    "LaneHung",
    "LeaseLost",
    "ModelLoadFailed",
    "OutOfMemory",
    "PermanentError",
    "PluginError",
    "PostprocessFailed",
    "PublishFailed",
    "PublishRefused",
    "QueueUnavailable",
    "ReferenceRejected",
    "ReferenceUnreachable",
    "RetryableError",
    "SettingsError",
    "UnknownModel",
    "UnsupportedRequest",
    "WanHostError",
]


_SHOWN_CHARACTERS = 100


def shown(value: object) -> str:
    """Return a value of a stranger's as messages show it: quoted, in one line, and short."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # whole numbers of thousands of digits, very deep nesting
        text = type(value).__name__
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    return f"{text[:_SHOWN_CHARACTERS]}... ({len(text)} characters)"


class WanHostError(Exception):
    """Base of every error that wan-host raises on purpose; its text is written for the person who reads the report."""

    error_type: ClassVar[str] = "internal"

    @classmethod
    def from_message(cls, message: str) -> Self:
        """Make the error again from its finished message, after it has crossed a process border as text."""
        error = cls.__new__(cls)
        error.args = (message,)
        return error


class PermanentError(WanHostError):
    """Another attempt cannot help."""

    error_type = "permanent"


class InvalidJob(PermanentError):
    """The payload is wrong; the message names the field, the value and what is allowed."""

    error_type = "invalid_job"

    def __init__(self, field: str, value: object, allowed: str) -> None:
        """``field`` is the dotted path in the payload, ``value`` what was given, ``allowed`` what would have been right."""
        super().__init__(f"{field}: {shown(value)} is not allowed; {allowed}")

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle as the finished message: values of payloads need not cross process borders."""
        return (InvalidJob.from_message, (str(self),))


class UnsupportedRequest(PermanentError):
    """The chosen model cannot do what was asked; the message says what can."""

    error_type = "unsupported"


class UnknownModel(PermanentError):
    """No installed plugin offers the model that was asked for."""

    error_type = "unknown_model"


class ReferenceRejected(PermanentError):
    """A reference image is missing, forbidden, too large or no image."""

    error_type = "reference_rejected"


class PublishRefused(PermanentError):
    """The store refuses for good: wrong credentials, no bucket, quota, size."""

    error_type = "publish_refused"


class DeadlineExceeded(PermanentError):
    """The job's own deadline has passed."""

    error_type = "deadline_exceeded"


class AttemptsExhausted(PermanentError):
    """Every attempt that the job had was lost, the last one without a word."""

    error_type = "attempts_exhausted"


class RetryableError(WanHostError):
    """Another attempt may succeed."""

    error_type = "retryable"


class ModelLoadFailed(RetryableError):
    """A model's files could not be loaded."""

    error_type = "model_load_failed"


class GenerationFailed(RetryableError):
    """A plugin raised while it was generating."""

    error_type = "generation_failed"


class OutOfMemory(RetryableError):
    """The device's memory was too small for the placement that was tried."""

    error_type = "out_of_memory"


class LaneCrashed(RetryableError):
    """The process that ran the model died."""

    error_type = "lane_crashed"


class LaneHung(RetryableError):
    """The lane showed no progress for longer than its stage is allowed."""

    error_type = "lane_hung"


class ReferenceUnreachable(RetryableError):
    """A reference's server failed or timed out."""

    error_type = "reference_unreachable"


class EncodingFailed(RetryableError):
    """Ffmpeg failed; the message ends with its last lines."""

    error_type = "encoding_failed"


class PostprocessFailed(RetryableError):
    """A postprocess plugin raised."""

    error_type = "postprocess_failed"


class PublishFailed(RetryableError):
    """The store is down, slow or answered with an error that may pass."""

    error_type = "publish_failed"


class QueueUnavailable(RetryableError):
    """The queue server is down, slow or answers errors."""

    error_type = "queue_unavailable"


class JobCancelled(WanHostError):
    """Somebody asked for the job to be cancelled."""

    error_type = "cancelled"


class LeaseLost(WanHostError):
    """The fencing token is no longer the newest: another worker has the job."""

    error_type = "lease_lost"


class SettingsError(WanHostError):
    """A setting has a wrong value; the message names it and says what is allowed."""

    error_type = "settings"


class PluginError(WanHostError):
    """A plugin broke its contract."""

    error_type = "plugin"
