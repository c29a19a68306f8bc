"""Tests REST APIs on a served MiniStack, with scripted functions: what an OpenAPI document imports, the answers of
API Gateway itself, and the authorizer."""

import asyncio
import http.client
import json
import socket
import tempfile
import threading
import unittest
from pathlib import Path
from unittest import mock

import authorisation
import rest_api

ACCOUNT, REGION = "000000000000", "us-east-1"
FUNCTIONS = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function"
PROBLEM = '{"type":"about:blank","detail":$context.error.messageString,"instance":"urn:request:$context.requestId"}'


def invocation(function):
    return f"arn:aws:apigateway:{REGION}:lambda:path/2015-03-31/functions/{FUNCTIONS}:{function}:live/invocations"


def operation(**others):
    return {
        "security": [{"Token": []}],
        "responses": {"200": {"description": "A site"}},
        "x-amazon-apigateway-integration": {"type": "aws_proxy", "httpMethod": "POST", "uri": invocation("site")},
    } | others


def other_methods():
    headers = {"Allow": "'DELETE,GET'", "Content-Type": "'application/problem+json'"}
    return {
        "security": [],
        "responses": {"405": {
            "description": "The path has no such method",
            "headers": {name: {"schema": {"type": "string"}} for name in headers},
        }},
        "x-amazon-apigateway-integration": {
            "type": "mock",
            "passthroughBehavior": "never",
            "requestTemplates": {"application/json": '{"statusCode": 405}'},
            "responses": {
                "default": {"statusCode": "500"},
                "405": {
                    "statusCode": "405",
                    "responseParameters": {f"method.response.header.{name}": value for name, value in headers.items()},
                    "responseTemplates": {"application/json": '{"status":405}'},
                },
            },
        },
    }


def document(gateway_responses=None, **authorizer):
    others = other_methods()
    others["responses"]["500"] = {"description": "Never used"}
    return {
        "openapi": "3.0.1",
        "info": {"title": "test", "version": "1"},
        "paths": {
            "/sites/{siteId}": {
                "get": operation(), "delete": operation(), "x-amazon-apigateway-any-method": others,
            },
            "/open": {"get": operation(security=[])},
        },
        "components": {"securitySchemes": {"Token": {
            "type": "apiKey", "name": "Authorization", "in": "header", "x-amazon-apigateway-authtype": "custom",
            "x-amazon-apigateway-authorizer": {
                "type": "request", "identitySource": "method.request.header.Authorization",
                "authorizerUri": invocation("authorize"), "authorizerResultTtlInSeconds": 60,
            } | authorizer,
        }}},
        "x-amazon-apigateway-gateway-responses": gateway_responses or {},
    }


def policy(effect, resource="*", **context):
    statement = {"Action": "execute-api:Invoke", "Effect": effect, "Resource": resource}
    document = {"Version": "2012-10-17", "Statement": [statement]}
    return {"body": {"principalId": "alice", "policyDocument": document, "context": context}}


class Answer:
    def __init__(self, response):
        self.status, self.headers, self.body = response.status, response.headers, json.loads(response.read() or "null")


class RestApi(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        from hypercorn.asyncio import serve
        from hypercorn.config import Config
        from ministack import app
        from ministack.services import apigateway_v1, eventbridge, lambda_svc

        # These are restored after the tests.
        replaced = [
            (Config, "h11_pass_raw_headers"), (app, "app"), (app, "AUTH"), (eventbridge, "_invoke_target"),
            (lambda_svc, "_execute_function"),
            *((apigateway_v1, name) for name, value in vars(apigateway_v1).items() if callable(value)),
            (apigateway_v1, "_OPENAPI_HTTP_METHODS"),
        ]
        for module, name in replaced:
            value = getattr(module, name)
            patched = mock.patch.object(module, name, set(value) if isinstance(value, set) else value)
            patched.start()
            cls.addClassCleanup(patched.stop)
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.log = Path(folder.name) / "authorisations.log"
        app.AUTH = True
        rest_api.install()
        authorisation._check_services(cls.log)

        async def serve_without_lifespan(scope, receive, send):
            assert scope["type"] != "lifespan"  # it would start MiniStack's background work
            await app.app(scope, receive, send)

        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        cls.port = listener.getsockname()[1]
        config, loop, stop = Config(), asyncio.new_event_loop(), asyncio.Event()
        config.bind, config.errorlog = [f"fd://{listener.detach()}"], None
        serving = serve(serve_without_lifespan, config, shutdown_trigger=stop.wait)
        server = threading.Thread(target=loop.run_until_complete, args=(serving,))
        server.start()
        cls.addClassCleanup(server.join)
        cls.addClassCleanup(loop.call_soon_threadsafe, stop.set)

    def setUp(self):
        from ministack.core.responses import request_scope
        from ministack.services import apigateway_v1, iam, lambda_svc

        self.gateway, self.lambda_svc, self.iam = apigateway_v1, lambda_svc, iam
        scope = request_scope(ACCOUNT, REGION)
        scope.__enter__()
        self.addCleanup(scope.__exit__, None, None, None)
        self.addCleanup(apigateway_v1.reset)
        self.addCleanup(lambda_svc._functions.clear)
        self.addCleanup(iam._roles.clear)
        self.events = {"site": [], "authorize": []}
        self.scripts = {
            "site": lambda event: {"body": {"statusCode": 200, "body": "{}"}},
            "authorize": lambda event: policy("Allow"),
        }
        for name in self.scripts:
            config = {
                "FunctionName": name, "Version": "1", "FunctionArn": f"{FUNCTIONS}:{name}",
                "Role": f"arn:aws:iam::{ACCOUNT}:role/{name}",
            }
            lambda_svc._functions[name] = {
                "config": config, "versions": {"1": {"config": config}},
                "aliases": {"live": {"Name": "live", "FunctionVersion": "1"}},
                "policy": {"Version": "2012-10-17", "Statement": []},
            }
        lambda_svc._execute_function = self.execute

    def execute(self, function, event):
        name = function["config"]["FunctionName"]
        self.events[name].append(event)
        return self.scripts[name](event)

    def deploy(self, document, permitted=("site", "authorize")):
        self.api = self.gateway._import_rest_api(document)
        self.gateway._create_deployment(self.api, {"stageName": "v1"})
        source = f"arn:aws:execute-api:{REGION}:{ACCOUNT}:{self.api}"
        sources = {"site": f"{source}/*", "authorize": f"{source}/authorizers/*"}
        for name in permitted:
            self.permit(name, sources[name])

    def permit(self, name, source):
        response = self.lambda_svc._add_permission(
            name, {"Principal": "apigateway.amazonaws.com", "SourceArn": source}, path_qualifier="live",
        )
        self.assertEqual(201, response[0], response)

    def call(self, method="GET", path="/sites/1", *headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        self.addCleanup(connection.close)
        connection.putrequest(method, f"/v1{path}", skip_host=True)
        for name, value in (("Host", f"{self.api}.execute-api.localhost"), *headers):
            connection.putheader(name, value)
        connection.endheaders()
        return Answer(connection.getresponse())

    def call_as(self, token, method="GET", path="/sites/1"):
        return self.call(method, path, ("Authorization", f"Bearer {token}"))

    def test_gateway_responses_of_the_document_are_applied(self):
        def response(status):
            return {
                "statusCode": status,
                "responseParameters": {
                    "gatewayresponse.header.Content-Type": "'application/problem+json'",
                    "gatewayresponse.header.WWW-Authenticate": "'Bearer'",
                },
                "responseTemplates": {"application/json": PROBLEM},
            }

        def broken(_event):
            return {"error": True, "body": {"errorMessage": "broken"}}

        self.deploy(document({
            "UNAUTHORIZED": response(411), "ACCESS_DENIED": response("412"), "AUTHORIZER_FAILURE": response("511"),
            "AUTHORIZER_CONFIGURATION_ERROR": response("512"), "MISSING_AUTHENTICATION_TOKEN": response("404"),
            "UNSUPPORTED_MEDIA_TYPE": response(413),
        }))
        self.scripts["authorize"] = lambda event: {
            "Bearer denied": policy("Deny"), "Bearer unmatched": policy("Allow", "arn:aws:execute-api:other"),
            "Bearer broken": broken(event), "Bearer malformed": {"body": "no policy"},
            "Bearer refused": {"error": True, "body": {"errorMessage": "Unauthorized"}},
        }[event["headers"]["Authorization"]]
        denied = "User is not authorized to access this resource"
        cases = [
            ("no identity source", self.call(), 411, "Unauthorized"),
            ("refused by the authorizer", self.call_as("refused"), 411, "Unauthorized"),
            ("denied", self.call_as("denied"), 412, f"{denied} with an explicit deny in an identity-based policy"),
            ("no statement matches", self.call_as("unmatched"), 412, denied),
            ("the authorizer fails", self.call_as("broken"), 511, None),
            ("the authorizer returns no policy", self.call_as("malformed"), 512, "Internal server error"),
            ("no such path", self.call(path="/unknown"), 404, "Missing Authentication Token"),
            ("no such method", self.call("PUT", "/open"), 404, "Missing Authentication Token"),
            ("no template for the type", self.call("PUT", "/sites/1", ("Content-Type", "text/plain")), 413, "Unsupported Media Type"),
        ]
        for name, answer, status, detail in cases:
            with self.subTest(name):
                self.assertEqual((status, detail), (answer.status, answer.body["detail"]))
                self.assertEqual(["application/problem+json"], answer.headers.get_all("Content-Type"))
                self.assertEqual("Bearer", answer.headers["WWW-Authenticate"])
                self.assertRegex(answer.headers["x-amzn-requestid"], "^[0-9a-f-]{36}$")
                self.assertEqual(f"urn:request:{answer.headers['x-amzn-requestid']}", answer.body["instance"])

    def test_other_types_use_the_default_gateway_responses(self):
        def response(name):
            template = f'{{"from":"{name}","message":"$context.error.message"}}'
            return {"responseTemplates": {"application/json": template}}

        self.scripts["site"] = lambda event: {"error": True, "body": {"errorMessage": "a secret"}}
        defaults = {"DEFAULT_4XX": response("4XX"), "DEFAULT_5XX": response("5XX")}
        self.deploy(document(defaults), permitted=["site"])
        for name, answer, status, body in [
            ("no identity source", self.call(), 401, {"from": "4XX", "message": "Unauthorized"}),
            ("no such path", self.call(path="/unknown"), 403, {"from": "4XX", "message": "Missing Authentication Token"}),
            ("no permission", self.call_as("any"), 500, {"from": "5XX", "message": "Internal server error"}),
            ("the function fails", self.call(path="/open"), 502, {"from": "5XX", "message": "Internal server error"}),
        ]:
            with self.subTest(name):
                self.assertEqual((status, body), (answer.status, answer.body))

    def test_other_types_use_the_status_of_the_default_gateway_responses(self):
        self.scripts["site"] = lambda event: {"error": True, "body": {"errorMessage": "a secret"}}
        self.deploy(document({"DEFAULT_4XX": {"statusCode": 418}, "DEFAULT_5XX": {"statusCode": 599}}), permitted=["site"])
        answers = self.call(), self.call(path="/unknown"), self.call_as("any"), self.call(path="/open")
        self.assertEqual([418, 418, 599, 599], [answer.status for answer in answers])

    def test_an_unknown_gateway_response_is_refused(self):
        with self.assertRaisesRegex(ValueError, "NO_SUCH_TYPE"):
            self.deploy(document({"NO_SUCH_TYPE": {}}))

    def test_the_authorizer_needs_a_permission(self):
        self.deploy(document(), permitted=["site"])
        self.permit("authorize", f"arn:aws:execute-api:{REGION}:{ACCOUNT}:{self.api}/*/GET/sites/*")  # an integration's
        answer = self.call_as("alice")
        self.assertEqual((500, []), (answer.status, self.events["authorize"]))
        self.assertEqual("AuthorizerConfigurationException", answer.headers["x-amzn-ErrorType"])
        authorizer = next(iter(self.gateway._authorizers_v1[self.api]))
        self.permit("authorize", f"arn:aws:execute-api:{REGION}:{ACCOUNT}:{self.api}/authorizers/{authorizer}")
        self.assertEqual(200, self.call_as("alice").status)
        session, function = f"{self.api}/authorizers/{authorizer}", f"{FUNCTIONS}:authorize:live"
        line = "\t".join(("allowed", "apigateway.amazonaws.com", session, "lambda:InvokeFunction", function))
        self.assertIn(f"{line}\n", self.log.read_text())

    def test_a_permission_without_the_alias_does_not_suffice(self):
        self.deploy(document(), permitted=["site"])
        source = f"arn:aws:execute-api:{REGION}:{ACCOUNT}:{self.api}/authorizers/*"
        self.lambda_svc._add_permission("authorize", {"Principal": "apigateway.amazonaws.com", "SourceArn": source})
        self.assertEqual((500, []), (self.call_as("alice").status, self.events["authorize"]))

    def test_the_role_of_an_authorizer_needs_a_permission(self):
        role = f"arn:aws:iam::{ACCOUNT}:role/gateway"
        self.deploy(document(authorizerCredentials=role))
        self.assertEqual((500, []), (self.call_as("alice").status, self.events["authorize"]))
        statement = {"Effect": "Allow", "Action": "lambda:InvokeFunction", "Resource": f"{FUNCTIONS}:authorize:live"}
        self.iam._roles["gateway"] = {
            "Arn": role, "AttachedPolicies": [],
            "InlinePolicies": {"invoke": json.dumps({"Version": "2012-10-17", "Statement": [statement]})},
        }
        self.assertEqual(200, self.call_as("alice").status)

    def test_other_methods_of_a_path_are_answered_by_its_mock(self):
        self.deploy(document())
        for method in ("PUT", "POST", "PATCH", "OPTIONS"):
            with self.subTest(method):
                answer = self.call(method)
                self.assertEqual((405, {"status": 405}), (answer.status, answer.body))
                self.assertEqual("DELETE,GET", answer.headers["Allow"])
                self.assertEqual(["application/problem+json"], answer.headers.get_all("Content-Type"))
        self.assertEqual(415, self.call("PUT", "/sites/1", ("Content-Type", "text/plain")).status)
        self.assertEqual({"site": [], "authorize": []}, self.events)

    def test_a_mock_may_use_only_declared_responses_and_headers(self):
        for change, error in [
            (lambda responses: responses.pop("405"), "405 is not in"),
            (lambda responses: responses["405"]["headers"].pop("Allow"), "Allow is not in the headers"),
        ]:
            with self.subTest(error):
                changed = document()
                change(changed["paths"]["/sites/{siteId}"]["x-amazon-apigateway-any-method"]["responses"])
                with self.assertRaisesRegex(ValueError, error):
                    self.deploy(changed)

    def test_repeated_headers_reach_the_authorizer_and_the_function(self):
        self.deploy(document())
        tokens = [("Authorization", "Bearer a"), ("authorization", "Bearer b"), ("X-Single", "one, two")]
        self.assertEqual(200, self.call("GET", "/sites/1", *tokens).status)
        for name in ("authorize", "site"):
            with self.subTest(name):
                event, = self.events[name]
                self.assertEqual(["Bearer a", "Bearer b"], event["multiValueHeaders"]["Authorization"])
                self.assertEqual("Bearer b", event["headers"]["Authorization"])
                self.assertEqual(["one, two"], event["multiValueHeaders"]["X-Single"])
                self.assertEqual("one, two", event["headers"]["X-Single"])
                self.assertNotIn("authorization", event["headers"])

    def test_the_events_and_the_answer_have_the_same_request_id(self):
        self.deploy(document(authorizerResultTtlInSeconds=0))
        answers = [self.call_as("alice"), self.call_as("alice")]
        ids = [answer.headers["x-amzn-requestid"] for answer in answers]
        self.assertEqual(2, len(set(ids)))
        for name in ("authorize", "site"):
            self.assertEqual(ids, [event["requestContext"]["requestId"] for event in self.events[name]])
        self.scripts["authorize"] = lambda event: policy("Deny")
        answer = self.call_as("alice")
        self.assertEqual(answer.headers["x-amzn-requestid"], self.events["authorize"][-1]["requestContext"]["requestId"])

    def test_the_context_reaches_the_function_as_strings(self):
        self.deploy(document())
        self.scripts["authorize"] = lambda event: policy("Allow", role="owner", number=7, flag=True)
        for _ in range(2):  # the second is from the cache
            self.assertEqual(200, self.call_as("alice").status)
            self.assertEqual(
                {"principalId": "alice", "role": "owner", "number": "7", "flag": "true"},
                self.events["site"][-1]["requestContext"]["authorizer"],
            )

    def test_the_result_of_an_authorizer_is_cached_for_each_token(self):
        self.deploy(document())
        effects = {"Bearer alice": "Allow", "Bearer bob": "Deny"}
        self.scripts["authorize"] = lambda event: policy(effects[event["headers"]["Authorization"]])
        statuses = [self.call_as(token).status for token in ("alice", "alice", "bob", "bob", "alice")]
        self.assertEqual([200, 200, 403, 403, 200], statuses)
        self.assertEqual(
            ["Bearer alice", "Bearer bob"], [event["headers"]["Authorization"] for event in self.events["authorize"]],
        )
        with mock.patch.object(self.gateway.time, "time", return_value=self.gateway.time.time() + 61):
            self.call_as("alice")
        self.assertEqual(3, len(self.events["authorize"]))

    def test_a_cached_policy_is_checked_for_each_method(self):
        self.deploy(document())
        self.scripts["authorize"] = lambda event: policy("Allow", event["methodArn"])
        answers = self.call_as("alice"), self.call_as("alice", "DELETE"), self.call_as("alice", path="/sites/2")
        self.assertEqual([200, 403, 403], [answer.status for answer in answers])
        event, = self.events["authorize"]
        self.assertEqual(f"arn:aws:execute-api:{REGION}:{ACCOUNT}:{self.api}/v1/GET/sites/1", event["methodArn"])

    def test_errors_of_an_authorizer_are_not_cached(self):
        self.deploy(document())
        self.scripts["authorize"] = lambda event: {"error": True, "body": {"errorMessage": "broken"}}
        self.assertEqual(500, self.call_as("alice").status)
        self.scripts["authorize"] = lambda event: policy("Allow")
        self.assertEqual(200, self.call_as("alice").status)


if __name__ == "__main__":
    unittest.main()
