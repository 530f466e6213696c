"""What a storage library's exception means: the one place that turns it into an error code and words. Knows no Ray.

By the exception's class, the HTTP status and S3's error code, never by words: keys, URLs and servers' messages may hold
any word (`403/timeout.jpg`). obstore gives the status of its general errors only in the dump of the error's structure;
there, strings and URLs are cut out before it is looked at.
"""

import re

from deepfake_ray.errors import ErrorCode, ImageError

_OF_STATUS = {401: ErrorCode.FORBIDDEN, 403: ErrorCode.FORBIDDEN, 404: ErrorCode.NOT_FOUND}


def image_error(error: Exception) -> ImageError:
    """The row that an exception of Python's file functions, obstore or botocore becomes."""
    code = code_of(error)
    if isinstance(error, OSError) and error.errno is not None:
        local = {ErrorCode.NOT_FOUND: "no such file", ErrorCode.FORBIDDEN: "permission denied"}
        return ImageError(code, local.get(code, said(error)))
    return ImageError(code, "no such object" if code is ErrorCode.NOT_FOUND else said(error))


def code_of(error: Exception) -> ErrorCode:
    """not_found, forbidden, timeout or storage_error."""
    status = _status(error)
    if status is not None:
        return _OF_STATUS.get(status, ErrorCode.STORAGE_ERROR)
    for name in (kind.__name__ for kind in type(error).__mro__):
        if name in _OF_CLASS:
            return _OF_CLASS[name]
    if type(error).__module__.startswith("obstore") and re.search(r"\b(kind: Timeout|TimedOut)\b", _structure(error)):
        return ErrorCode.TIMEOUT
    return ErrorCode.STORAGE_ERROR


_OF_CLASS = {
    # Python; obstore raises some of these, too
    "FileNotFoundError": ErrorCode.NOT_FOUND,
    "NotADirectoryError": ErrorCode.NOT_FOUND,
    "PermissionError": ErrorCode.FORBIDDEN,
    "TimeoutError": ErrorCode.TIMEOUT,
    # obstore
    "NotFoundError": ErrorCode.NOT_FOUND,
    "PermissionDeniedError": ErrorCode.FORBIDDEN,
    "UnauthenticatedError": ErrorCode.FORBIDDEN,
    # botocore
    "ConnectTimeoutError": ErrorCode.TIMEOUT,
    "ReadTimeoutError": ErrorCode.TIMEOUT,
}
"""By the names of classes, so that neither library has to be loaded."""


def _status(error: Exception) -> int | None:
    """The HTTP status of the answer that was the last; None: there was none."""
    response = getattr(error, "response", None)  # botocore's ClientError
    if isinstance(response, dict):
        return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) or None
    found = re.search(r"\bstatus: (\d{3}),", _structure(error))
    return int(found[1]) if found else None


def _structure(error: Exception) -> str:
    """The dump below an obstore error without its strings and URLs; empty for other errors.

    Text above it may hold a server's own words; below it, line ends in strings are escaped.
    """
    dump = str(error).rpartition("\n\nDebug source:\n")[2] if "\n\nDebug source:\n" in str(error) else ""
    return re.sub(r"uri: Some\(\n[^\n]*\n", "", re.sub(r'"(?:[^"\\]|\\.)*"', '""', dump))


def said(error: BaseException) -> str:
    """The store's own words, short enough for a message of ours, and what to do where that is known."""
    found = re.search(r"<Code>(\w+)</Code>(?:\s*<Message>([^<]+)</Message>)?", str(error))
    parts = list(found.groups()) if found else []
    response = getattr(error, "response", None)  # botocore's ClientError
    if isinstance(response, dict):
        parts = [response.get("Error", {}).get(name) for name in ("Code", "Message")]
    words = ": ".join(part for part in parts if part) or first_line(error)
    return f"{words[:300]}{_region_hint(error)}"


def first_line(error: BaseException) -> str:
    """What a library's error says, short enough for a message of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _region_hint(error: BaseException) -> str:
    region = _region(error)
    if region is not None:
        return f"; the bucket is in another region: set AWS_REGION={region}"
    if isinstance(error, Exception) and re.search(r"\binner: BareRedirect\b", _structure(error)):
        return "; the bucket is in another region: set AWS_REGION to it"
    return ""


_REGION = r"[a-z]{2}(?:-[a-z]+)+-\d"


def _region(error: BaseException) -> str | None:
    """The bucket's region, where the store says that it is another than the one that was asked."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        code = response.get("Error", {}).get("Code")
        redirected = _status(error) == 301 or code in _OTHER_REGION if isinstance(error, Exception) else False
        named = response.get("Error", {}).get("Region") or headers.get("x-amz-bucket-region")
        return str(named) if redirected and named else None
    text = str(error)
    found = re.search(rf"<Region>({_REGION})</Region>", text)
    # pyarrow's words: "... Looks like the configured region is '' while the bucket is located in 'eu-west-3'."
    found = found or re.search(rf"the bucket is located in '({_REGION})'", text)
    return found[1] if found else None


_OTHER_REGION = ("AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException")


def remedy(uri: str, error: Exception) -> str:
    """What a user can do about a place that cannot be read or listed."""
    if "://" not in uri:
        return "check the permissions of the folder and of those above it"
    if _region(error) is not None:
        return f"set AWS_REGION={_region(error)}"
    denied = code_of(error) is ErrorCode.FORBIDDEN or re.search(r": AWS Error (ACCESS_DENIED|\w*FORBIDDEN)", str(error))
    payer = "; where the bucket's requester pays, set AWS_REQUEST_PAYER=requester" if denied and uri[:2] == "s3" else ""
    return f"check the bucket's name, AWS_ENDPOINT_URL and the credentials in the environment{payer}"
