"""The server's description in OpenAPI 3.1, made from the table of parameters."""

from typing import Any

from vtools import __version__
from vtools.serve import errors, parameters

_BODIES = {parameters.CHAT: "ChatCompletionRequest", parameters.COMPLETIONS: "CompletionRequest"}
_ERROR = {
    "description": "An error.",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}


def openapi() -> dict[str, Any]:
    """The description of all routes, the bodies of their requests, and the error object."""
    named = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
    schemas = {_BODIES[route]: schema for route, schema in parameters.schemas().items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "vtools serve", "version": __version__},
        "security": [{"key": []}, {}],
        "paths": {
            "/v1/chat/completions": {"post": _asked("Answer a conversation.", parameters.CHAT)},
            "/v1/completions": {"post": _asked("Continue a text.", parameters.COMPLETIONS)},
            "/v1/models": {"get": _read("List the models.")},
            "/v1/models/{name}": {"get": _read("Describe a model.") | {"parameters": named}},
            "/openapi.json": {"get": _read("This description.")},
            "/metrics": {"get": _read("What was counted, for Prometheus.", "text/plain")},
            "/ready": {"get": _read("Say whether every model has a worker.") | {"security": []}},
            "/health": {"get": _read("Say that the server runs.") | {"security": []}},
        },
        "components": {
            "schemas": schemas | {"Error": errors.OBJECT},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _asked(summary: str, route: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{_BODIES[route]}"}}}
    streamed = {"text/event-stream": {"schema": {"type": "string"}}}
    described = _read(summary)
    described["responses"]["200"]["content"].update(streamed)
    return described | {"requestBody": {"required": True, "content": content}}


def _read(summary: str, kind: str = "application/json") -> dict[str, Any]:
    schema = {"type": "object" if kind == "application/json" else "string"}
    done = {"description": "Done.", "content": {kind: {"schema": schema}}}
    return {"summary": summary, "responses": {"200": done, "default": _ERROR}}
