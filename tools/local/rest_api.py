"""REST APIs of API Gateway on the local stack, where MiniStack differs from AWS.

MiniStack joins the values of a repeated header, and each event has
another request ID.
"""

import contextvars
import uuid

_headers = contextvars.ContextVar("headers")  # (name, value) of the request's headers, as sent
_request_id = contextvars.ContextVar("request_id")


def install():
    """Adds the corrections to MiniStack. Must be called before it starts."""
    _keep_requests()


def _keep_requests():
    """Gives functions and authorizers the headers as they were sent: `multiValueHeaders` has every value, and
    `headers` the last one. All events and the answer have the same request ID."""
    from hypercorn.config import Config
    from ministack import app
    from ministack.core.sigv4 import decode_header_value
    from ministack.services import apigateway_v1

    Config.h11_pass_raw_headers = True  # keeps the names' case
    serve, execute, render = app.app, apigateway_v1.handle_execute, apigateway_v1._gateway_error_response
    build, authorize = apigateway_v1._build_lambda_event_v1, apigateway_v1._invoke_authorizer_lambda

    async def serve_and_keep(scope, receive, send):
        if scope["type"] in ("http", "websocket"):
            sent = scope["headers"]
            _headers.set([(name.decode("latin-1"), decode_header_value(value)) for name, value in sent])
            _request_id.set(str(uuid.uuid4()))
            scope = scope | {"headers": [(name.lower(), value) for name, value in sent]}
        await serve(scope, receive, send)

    async def execute_with_id(*arguments):
        status, headers, body = await execute(*arguments)
        headers.setdefault("x-amzn-requestid", _request_id.get())
        return status, headers, body

    def render_with_id(error, request):
        return render(error, request | {"request_id": _request_id.get()})

    def as_sent(event):
        names, values = {}, {}  # lower-case name -> the name as first sent; that name -> values
        for name, value in _headers.get():
            values.setdefault(names.setdefault(name.lower(), name), []).append(value)
        event["headers"], event["multiValueHeaders"] = {name: all[-1] for name, all in values.items()}, values
        event["requestContext"]["requestId"] = _request_id.get()
        return event

    def build_as_sent(*arguments, **named):
        return as_sent(build(*arguments, **named))

    async def authorize_as_sent(authorizer, event, account_id, region):
        return await authorize(authorizer, as_sent(event) if event["type"] == "REQUEST" else event, account_id, region)

    app.app = serve_and_keep
    apigateway_v1.handle_execute = execute_with_id
    apigateway_v1._gateway_error_response = render_with_id
    apigateway_v1._build_lambda_event_v1 = build_as_sent
    apigateway_v1._invoke_authorizer_lambda = authorize_as_sent
