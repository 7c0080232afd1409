"""Classifies errors of file systems by type and status code: transient, access refused, no such bucket."""

from __future__ import annotations

from contextlib import suppress

_AGAIN = {408, 425, 429}
_AGAIN_CODES = {"RequestTimeout", "SlowDown", "InternalError", "IncompleteBody", "BadDigest", "OperationAborted"}

_CHECKSUM_CODES = {"NotImplemented", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "MissingContentLength"}
_CHECKSUM_CODES |= {"InvalidTrailer", "MalformedTrailerError", "InvalidDigest", "MissingContentMD5"}


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed if it is retried."""
    if isinstance(error, FileNotFoundError) or is_refused(error):
        return False
    if isinstance(error, (ConnectionError, TimeoutError, *_transport_faults())):
        return True
    status = _status(error)
    return _code(error) in _AGAIN_CODES or (status is not None and is_transient_status(status))


def is_transient_status(status: int) -> bool:
    """Whether a request that got this HTTP status may succeed if it is retried."""
    return status in _AGAIN or (status >= 500 and status != 501)  # 501 Not Implemented is permanent


def is_refused(error: BaseException) -> bool:
    """Whether authentication failed or access is denied. Retries cannot help."""
    return isinstance(error, (PermissionError, *_missing_credentials())) or _status(error) in (401, 403)


def refuses_checksums(error: BaseException) -> bool:
    """Whether an S3 server refuses the checksums that newer clients send, as older MinIO and Ceph do."""
    return _code(error) in _CHECKSUM_CODES


def is_missing_bucket(error: BaseException) -> bool:
    return _code(error) == "NoSuchBucket"


def is_answered(error: BaseException) -> bool:
    """Whether a server answered with an error, or botocore refused the call itself, as for an invalid bucket name."""
    return _status(error) is not None or isinstance(error, _refusals())


def _answers(error: BaseException) -> list[dict[str, dict[str, object]]]:
    """botocore's parsed responses of an error. s3fs raises OSErrors and sets botocore's error as their cause."""
    links = (error, error.__cause__)
    return [r for link in links if isinstance(r := getattr(link, "response", None), dict)]


def _code(error: BaseException) -> str | None:
    codes = [answer.get("Error", {}).get("Code") for answer in _answers(error)]
    return str(codes[0]) if codes else None


def _status(error: BaseException) -> int | None:
    """The HTTP status of an error: from botocore, or from an attribute that gcsfs and other libraries set."""
    for answer in _answers(error):
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if isinstance(status, int):
            return status
    numbers = (getattr(error, name, None) for name in ("status", "status_code", "code"))
    return next((number for number in numbers if isinstance(number, int)), None)


def _transport_faults() -> tuple[type[Exception], ...]:
    """Transport errors of the installed libraries. They are missing if the S3 extra is not installed."""
    types: list[type[Exception]] = []
    with suppress(ImportError):
        from botocore.exceptions import HTTPClientError, IncompleteReadError
        from botocore.parsers import ResponseParserError

        types += [HTTPClientError, IncompleteReadError, ResponseParserError]
    with suppress(ImportError):
        from aiohttp import ClientError

        types.append(ClientError)
    return tuple(types)


def _missing_credentials() -> tuple[type[Exception], ...]:
    types: list[type[Exception]] = []
    with suppress(ImportError):
        from botocore import exceptions

        types += [exceptions.NoCredentialsError, exceptions.PartialCredentialsError, exceptions.TokenRetrievalError]
        types += [exceptions.ProfileNotFound, exceptions.SSOError, exceptions.CredentialRetrievalError]
    return tuple(types)


def _refusals() -> tuple[type[Exception], ...]:
    with suppress(ImportError):
        from botocore.exceptions import BotoCoreError

        return (BotoCoreError,)
    return ()
