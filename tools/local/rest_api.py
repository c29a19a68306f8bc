"""Corrects the REST APIs of API Gateway on the local stack where MiniStack differs from AWS.

MiniStack applies gateway responses, but does not import them from an OpenAPI document. From a method it imports
only the security and the URI of the integration. It joins the values of a repeated header. It gives each event of a
request a different request ID.
"""

import contextvars
import uuid

ANY_METHOD = "x-amazon-apigateway-any-method"
GATEWAY_RESPONSES = "x-amazon-apigateway-gateway-responses"
INTEGRATION = "x-amazon-apigateway-integration"
HEADER = "method.response.header."

_headers = contextvars.ContextVar("headers")  # (name, value) of the request's headers, as sent
_request_id = contextvars.ContextVar("request_id")


def install():
    """Adds the corrections to MiniStack. Must be called before it starts."""
    _import_gateway_responses()
    _inherit_statuses()
    _import_methods()
    _answer_function_errors()
    _keep_requests()


def _import_gateway_responses():
    from ministack.services import apigateway_v1

    load = apigateway_v1._import_rest_api

    def load_all(spec, base_data=None):
        api_id = load(spec, base_data)
        for kind, response in (spec.get(GATEWAY_RESPONSES) or {}).items():
            status, _, body = apigateway_v1._put_gateway_response(api_id, kind, response)
            if status >= 400:
                raise ValueError(f"gateway response {kind}: {body!r}")
        return api_id

    apigateway_v1._import_rest_api = load_all


def _inherit_statuses():
    """Uses the status of DEFAULT_4XX and DEFAULT_5XX for the types that the API does not define. MiniStack
    inherits only headers and templates. Source: "Gateway response types" in API Gateway's developer guide."""
    from ministack.services import apigateway_v1

    find = apigateway_v1._gateway_response_for_type

    def find_with_status(defined, kind):
        response = find(defined, kind)
        default = {} if kind in defined else defined.get(apigateway_v1._gateway_response_family(kind)) or {}
        return response | {"statusCode": default["statusCode"]} if default.get("statusCode") else response

    apigateway_v1._gateway_response_for_type = find_with_status


def _import_methods():
    """Imports methods for any HTTP method, and all of an integration of type MOCK."""
    from ministack.services import apigateway_v1

    apigateway_v1._OPENAPI_HTTP_METHODS.add(ANY_METHOD)
    load = apigateway_v1._import_operation

    def load_all(api_id, resource_id, method, operation, *others):
        method = "ANY" if method.lower() == ANY_METHOD else method
        load(api_id, resource_id, method, operation, *others)
        integration = operation.get(INTEGRATION) or {}
        if str(integration.get("type")).upper() != "MOCK":
            return
        apigateway_v1._put_integration(api_id, resource_id, method, {
            "type": "MOCK",
            "requestTemplates": integration.get("requestTemplates") or {},
            "passthroughBehavior": integration.get("passthroughBehavior", "when_no_match").upper(),
        })
        for pattern, response in (integration.get("responses") or {}).items():
            status = str(response["statusCode"])
            _require_declared(method, operation, status, response)
            apigateway_v1._put_integration_response(
                api_id, resource_id, method, status,
                response | {"selectionPattern": "" if pattern == "default" else str(pattern)},
            )

    apigateway_v1._import_operation = load_all


def _require_declared(method, operation, status, response):
    """Refuses an integration response whose status or headers are not in the method's `responses`, as AWS does."""
    declared = {str(status): known or {} for status, known in (operation.get("responses") or {}).items()}
    if status not in declared:
        raise ValueError(f"{method}: the integration's response {status} is not in the method's responses")
    for name in response.get("responseParameters") or {}:
        if name.startswith(HEADER) and name.removeprefix(HEADER) not in (declared[status].get("headers") or {}):
            raise ValueError(f"{method}: {name} is not in the headers of the method's response {status}")


def _answer_function_errors():
    """Answers 502 through the gateway response DEFAULT_5XX if a function fails. MiniStack shows the error to
    the caller."""
    from ministack.services import apigateway_v1

    class FunctionFailed(Exception):
        pass

    shape, invoke, render = (
        apigateway_v1._lambda_proxy_response, apigateway_v1._invoke_lambda_proxy_v1, apigateway_v1._gateway_error_response,
    )

    def shape_or_raise(result):
        response, error = shape(result)
        if error:
            raise FunctionFailed(error)
        return response, None

    async def invoke_and_catch(*arguments, **named):
        try:
            return await invoke(*arguments, **named)
        except FunctionFailed:
            error = apigateway_v1._gw_error("DEFAULT_5XX", "Internal server error")
            error.status = 502
            return error

    def render_with_status(error, request):
        status, headers, body = render(error, request)
        deployments = apigateway_v1._deployed_gateway_responses.get(request["api_id"]) or {}
        defined = (deployments.get(request["stage"].get("deploymentId")) or {}).get(error.response_type) or {}
        return status if defined.get("statusCode") else getattr(error, "status", status), headers, body

    apigateway_v1._lambda_proxy_response = shape_or_raise
    apigateway_v1._invoke_lambda_proxy_v1 = invoke_and_catch
    apigateway_v1._gateway_error_response = render_with_status


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
