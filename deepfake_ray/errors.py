"""The users' errors and the image error codes."""

from enum import StrEnum


class UserError(Exception):
    """A mistake the user can mend: the message names the rule, the value and the remedy. Exit code 2."""


class JobError(Exception):
    """The job could not do its work, through no mistake in how it was asked. Exit code 1."""


class ErrorCode(StrEnum):
    """Why an image has no score. The values are stable: users query them in `predictions/`."""

    NOT_FOUND = "not_found"
    """The object or file is not there (any more)."""
    FORBIDDEN = "forbidden"
    """The storage refused access."""
    TIMEOUT = "timeout"
    """Fetching or decoding it took longer than --image-timeout-s."""
    STORAGE_ERROR = "storage_error"
    """The storage failed in another way (network, server error), for minutes."""
    EMPTY = "empty"
    """Zero bytes."""
    TOO_LARGE = "too_large"
    """More bytes or pixels than the limits allow."""
    NOT_AN_IMAGE = "not_an_image"
    """The bytes begin like no image format that is known here."""
    UNSUPPORTED_FORMAT = "unsupported_format"
    """An image, but of a format or pixel type that this installation does not decode."""
    TRUNCATED = "truncated"
    """The file ends before the picture does."""
    DECODE_FAILED = "decode_failed"
    """The decoder found the file damaged."""
    DECODER_CRASHED = "decoder_crashed"
    """The decoder took its process down with it, twice."""


OF_THE_STORAGE = frozenset({ErrorCode.FORBIDDEN, ErrorCode.TIMEOUT, ErrorCode.STORAGE_ERROR})
"""Codes that say nothing about the image: another try may fetch it."""


class ImageError(Exception):
    """One image could not be read; becomes a row with `code` and the message, never a score."""

    def __init__(self, code: ErrorCode, message: str):
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"
