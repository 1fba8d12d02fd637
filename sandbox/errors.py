"""What the sandbox says when it says no, in Stripe's words and Stripe's JSON."""

from typing import Any


class Refusal(Exception):
    """An answer other than 200, raised where the reason is known."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        type: str = "invalid_request_error",
        code: str | None = None,
        decline_code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        self.body: dict[str, Any] = {"error": {"message": message, "type": type}}
        if code:
            self.body["error"]["code"] = code
            self.body["error"]["doc_url"] = f"https://stripe.com/docs/error-codes/{code.replace('_', '-')}"
        if decline_code:
            self.body["error"]["decline_code"] = decline_code
        if param:
            self.body["error"]["param"] = param


def missing(param: str) -> Refusal:
    return Refusal(f"Missing required param: {param}.", code="parameter_missing", param=param)


def no_such(kind: str, id: str, *, param: str = "id") -> Refusal:
    """404 when the address names it, 400 when a parameter does, as at Stripe."""
    status = 404 if param == "id" else 400
    return Refusal(f"No such {kind}: '{id}'", status=status, code="resource_missing", param=param)


def not_here(what: str) -> Refusal:
    return Refusal(f"The sandbox does not speak {what} yet.", status=501, type="api_error")


def failure() -> Refusal:
    return Refusal("An unknown error occurred", status=500, type="api_error")
