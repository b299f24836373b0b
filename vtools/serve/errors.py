"""Errors as the OpenAI API reports them."""

from typing import Any

SHOWN = 100  # characters of a client's own words in an error


class ApiError(Exception):
    """An error response in the API's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, headers

    def body(self) -> dict[str, Any]:
        """The error object that clients read."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def wrong(param: str, wanted: str) -> ApiError:
    """The error for a parameter whose value must be something else."""
    return ApiError(400, f"{param} must be {wanted}", code="invalid_value", param=param)


def unsupported(param: str, instead: str = "leave it out") -> ApiError:
    """The error for a parameter, or a value of it, that this server cannot carry out."""
    param = param[:SHOWN]
    return ApiError(
        400, f"{param} is not supported by this server: {instead}", code="unsupported_parameter", param=param
    )


OBJECT = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"enum": ["invalid_request_error", "rate_limit_error", "server_error"]},
                "param": {"type": ["string", "null"], "description": "The parameter that is wrong."},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}  # the JSON schema of the error object
