"""Makes the local stack enforce IAM as AWS does.

With AUTH=true, MiniStack checks requests to its API against the policies of the caller's role. It does not check
the actions that it performs itself with a role, nor most calls of one service to the resources of another. It
does not know the state machine of a task token. This module adds these checks, and logs each decision once for
each caller, action and resource:

    allowed <tab> role <tab> session <tab> action <tab> resource

The session of a function has the function's name, as on AWS; `sts:AssumeRole` creates sessions with other
names. For a service, `role` is its principal, such as events.amazonaws.com, and `session` is the resource for
which it calls, such as a rule.
"""

import contextvars
import json
import threading
import time

# The permissions with which Lambda reads a source, using the function's role. AWS refuses the mapping if one is
# missing.
MAPPING_READS = {
    "sqs": ("sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"),
    "kinesis": (
        "kinesis:DescribeStream", "kinesis:DescribeStreamSummary", "kinesis:GetRecords", "kinesis:GetShardIterator",
        "kinesis:ListShards",
    ),
    "dynamodb": ("dynamodb:DescribeStream", "dynamodb:GetRecords", "dynamodb:GetShardIterator"),
}
SEND_TASK = ("states:SendTaskSuccess", "states:SendTaskFailure", "states:SendTaskHeartbeat")
NO_TASK = "no task"
CACHE_SECONDS = 2  # how long the result for a mapping is cached, because mappings poll continuously

_machine = contextvars.ContextVar("machine")  # the state machine whose task is in progress
_task_machines = {}  # task token -> ARN of its state machine
_mappings = {}  # (role, source) -> (allowed, expiry time)
_logged = set()
_lock = threading.Lock()


def install(log_file):
    """Adds the checks to MiniStack. Must be called before it starts."""
    _log_decisions(log_file)
    _record_machines_of_task_tokens()
    _correct_mapping_actions()
    _check_state_machines(log_file)
    _use_role_arns_for_sessions()
    _check_mappings(log_file)
    _check_failure_destinations(log_file)
    _check_services(log_file)
    _treat_loopback_as_tls()


def _log(log_file, allowed, arn, action, resource):
    """Logs a decision. `arn` is a session's: arn:aws:sts::<account>:assumed-role/<role>/<session>."""
    _, role, session = arn.split("/", 2)
    line = "\t".join(("allowed" if allowed else "denied", role, session, action, resource))
    with _lock:
        if line not in _logged:
            _logged.add(line)
            with open(log_file, "a") as log:
                log.write(line + "\n")


def _permits(log_file, role_arn, session, action, resource):
    """Returns whether the role's policies allow the action. Used where MiniStack uses the role without a check."""
    from ministack.core import iam_evaluator
    from ministack.core.responses import get_account_id, get_region

    account, role = get_account_id(), role_arn.rpartition("/")[2]
    context = iam_evaluator.EvalContext(
        principal_arn=f"arn:aws:sts::{account}:assumed-role/{role}/{session}", principal_type="AssumedRole",
        principal_account=account, action=action, resource_arn=resource, region=get_region(),
    )
    policies = iam_evaluator._gather_role_policies(role, account)
    allowed = iam_evaluator.evaluate(context, policies).decision == "Allow"
    _log(log_file, allowed, context.principal_arn, action, resource)
    return allowed


def _log_decisions(log_file):
    from ministack.core import iam_evaluator
    from ministack.services import stepfunctions, sts

    enforce = iam_evaluator.enforce

    def enforce_and_log(access_key, action, service, region, resource_arn="*", service_context=None):
        # An unknown token has no state machine. So the check passes if the caller may act on any state machine. Step
        # Functions then refuses the token.
        resources = list(stepfunctions._state_machines) if resource_arn == NO_TASK else [resource_arn]
        for resource_arn in resources or ["*"]:
            denied = enforce(
                access_key, action, service, region, resource_arn=resource_arn, service_context=service_context
            )
            if denied is None:
                break
        arn = (sts._sessions.get(access_key) or {}).get("Arn", "")
        if ":assumed-role/" in arn:  # not the developer's own calls, which are always allowed
            _log(log_file, denied is None, arn, action, resource_arn)
        return denied

    iam_evaluator.enforce = enforce_and_log


def _record_machines_of_task_tokens():
    """Makes SendTaskSuccess, SendTaskFailure and SendTaskHeartbeat require a permission on the task's state
    machine. MiniStack requires it on all state machines."""
    from ministack.core import iam_actions
    from ministack.services import stepfunctions

    resource_of = iam_actions.extract_resource_arn
    wait = stepfunctions._invoke_with_callback

    def record_and_wait(resource, argument, token, state):
        _task_machines[token] = _machine.get()["stateMachineArn"]
        return wait(resource, argument, token, state)

    def extract(service, method, path, headers, body, *others):
        target = headers.get("x-amz-target", "").rpartition(".")[2]
        if service == "states" and f"states:{target}" in SEND_TASK:
            return _task_machines.get(json.loads(body or b"{}").get("taskToken"), NO_TASK)
        return resource_of(service, method, path, headers, body, *others)

    stepfunctions._invoke_with_callback = record_and_wait
    iam_actions.extract_resource_arn = extract


def _correct_mapping_actions():
    """Corrects the actions on mappings. MiniStack treats GetEventSourceMapping as ListEventSourceMappings, and
    lets every caller change or delete a mapping."""
    from ministack.core import iam_actions

    action_of = iam_actions._lambda_action
    names = {"GET": "GetEventSourceMapping", "PUT": "UpdateEventSourceMapping", "DELETE": "DeleteEventSourceMapping"}

    def action_of_mapping(method, path):
        parts = [part for part in path.split("/") if part]
        if parts[1:2] == ["event-source-mappings"] and len(parts) == 3:
            return names.get(method)
        return action_of(method, path)

    iam_actions._lambda_action = action_of_mapping


def _use_role_arns_for_sessions():
    """Sets aws:PrincipalArn of a session to the ARN of its role. MiniStack uses the session's ARN."""
    from ministack.core import iam_evaluator
    from ministack.services import iam

    resolve = iam_evaluator._resolve_condition_key

    def resolve_role(key, context):
        value = resolve(key, context)
        if key.lower() == "aws:principalarn" and ":assumed-role/" in (value or ""):
            role = iam._roles.get(value.split("/")[1])
            return role["Arn"] if role else value
        return value

    iam_evaluator._resolve_condition_key = resolve_role


def _check_state_machines(log_file):
    from ministack.core import iam_evaluator
    from ministack.core.responses import get_account_id, get_region
    from ministack.services import stepfunctions

    execute, invoke, wait = (
        stepfunctions._execute_task, stepfunctions._invoke_resource, stepfunctions._invoke_with_callback,
    )

    def execute_as_machine(state, raw_input, execution, context):
        before = _machine.set(stepfunctions._state_machines[context["StateMachine"]["Id"]])
        try:
            return execute(state, raw_input, execution, context)
        finally:
            _machine.reset(before)

    def required_permission(resource, argument):
        """Returns the error's name, the action and its resource, for the kinds of tasks in this repository."""
        if "states:::lambda:invoke" in resource:
            return "Lambda.AWSLambdaException", "lambda:InvokeFunction", argument["FunctionName"]
        if function := stepfunctions._extract_lambda_ref(resource):
            return "Lambda.AWSLambdaException", "lambda:InvokeFunction", function
        if "states:::sqs:sendMessage" in resource:
            queue = argument["QueueUrl"].rpartition("/")[2]
            return "SQS.SqsException", "sqs:SendMessage", f"arn:aws:sqs:{get_region()}:{get_account_id()}:{queue}"
        if "states:::states:startExecution" in resource:
            return "StepFunctions.AWSStepFunctionsException", "states:StartExecution", argument["StateMachineArn"]
        return "States.TaskFailed", "states:IntegrationUnknownToTheLocalStack", resource

    def check(resource, argument):
        machine = _machine.get()
        error, action, target = required_permission(resource, argument)
        if not _permits(log_file, machine["roleArn"], machine["name"], action, target):
            cause = f"{machine['roleArn']} is not authorized to perform: {action} on {target}"
            raise stepfunctions._ExecutionError(error, cause)

    def invoke_if_allowed(resource, argument):
        check(resource, argument)
        return invoke(resource, argument)

    def wait_if_allowed(resource, argument, token, state):
        check(resource, argument)
        # The queue's policy is evaluated for the state machine, not for the caller that started the execution.
        machine = _machine.get()
        role = machine["roleArn"].rpartition("/")[2]
        caller = f"arn:aws:sts::{get_account_id()}:assumed-role/{role}/{machine['name']}"
        before = iam_evaluator._request_caller_arn.set(caller)
        try:
            return wait(resource, argument, token, state)
        finally:
            iam_evaluator._request_caller_arn.reset(before)

    stepfunctions._execute_task = execute_as_machine
    stepfunctions._invoke_resource = invoke_if_allowed
    stepfunctions._invoke_with_callback = wait_if_allowed


def _check_mappings(log_file):
    from ministack.core.responses import request_scope
    from ministack.services import lambda_svc

    every_mapping = lambda_svc._iter_all_esms

    def readable(account, region, mapping):
        source = mapping.get("EventSourceArn", "")
        with request_scope(account, region):
            _, config = lambda_svc._get_func_record_for_qualifier(mapping["FunctionName"], mapping.get("Qualifier"))
            if not config or not mapping.get("Enabled", True):
                return True  # MiniStack skips it
            role = config["Role"]
            allowed, until = _mappings.get((role, source), (False, 0))
            if until < time.monotonic():
                reads = MAPPING_READS.get(source.split(":")[2], ("lambda:SourceUnknownToTheLocalStack",))
                # Evaluate all of them, so that all are logged.
                allowed = all([_permits(log_file, role, config["FunctionName"], action, source) for action in reads])
                _mappings[role, source] = allowed, time.monotonic() + CACHE_SECONDS
            return allowed

    def readable_mappings():
        for account, region, mapping in every_mapping():
            if readable(account, region, mapping):
                yield account, region, mapping

    lambda_svc._iter_all_esms = readable_mappings


def _check_failure_destinations(log_file):
    """Checks the function's role, with which Lambda writes to a failure destination of asynchronous calls and
    of streams."""
    import stream_mappings
    from ministack.services import lambda_svc

    route = lambda_svc._route_async_failure

    def route_if_allowed(target, name, event, result):
        role = lambda_svc._functions[name]["config"]["Role"]
        if _permits(log_file, role, name, "sqs:SendMessage", target):
            route(target, name, event, result)

    put = stream_mappings.put_failure_file

    def put_if_allowed(config, bucket, key, content):
        required = (("s3:ListBucket", bucket), ("s3:PutObject", f"{bucket}/{key}"))
        # Evaluate all of them, so that all are logged.
        allowed = [
            _permits(log_file, config["Role"], config["FunctionName"], action, resource) for action, resource in required
        ]
        if not all(allowed):
            raise PermissionError(f"{config['Role']} may not write to {bucket}/{key}")
        put(config, bucket, key, content)

    lambda_svc._route_async_failure = route_if_allowed
    stream_mappings.put_failure_file = put_if_allowed


def _check_services(log_file):
    """Checks the resource policies of the functions, queues and topics that EventBridge and API Gateway call, and
    the roles of authorizers. MiniStack itself checks the policies of the queues that topics deliver to."""
    from ministack.core import iam_evaluator
    from ministack.core.responses import get_account_id, get_region
    from ministack.services import apigateway_v1, eventbridge, lambda_svc, sns, sqs

    def permits(service, source, action, resource, policy_of):
        account = get_account_id()
        context = iam_evaluator.EvalContext(
            principal_arn="*", principal_type="Service", principal_account="", action=action, resource_arn=resource,
            region=get_region(), service_context={"aws:sourcearn": source, "aws:sourceaccount": account},
        )
        policy, _ = policy_of(resource) or (None, account)
        allowed = iam_evaluator.evaluate_resource_policy(policy, context, service=service).decision == "Allow"
        caller = f"arn:aws:sts::{account}:assumed-role/{service}/{source.rpartition(':')[2]}"
        _log(log_file, allowed, caller, action, resource)
        return allowed

    deliver, call, authorize = (
        eventbridge._invoke_target, apigateway_v1._call_lambda_raw, apigateway_v1._invoke_authorizer_lambda,
    )

    def deliver_if_allowed(target, event, rule, view=None):
        arn = target["Arn"]
        permission = {
            "lambda": ("lambda:InvokeFunction", lambda_svc.function_policy_for_arn),
            "sns": ("sns:Publish", sns.topic_policy_for_arn),
            "sqs": ("sqs:SendMessage", sqs.queue_policy_for_arn),
        }.get(arn.split(":")[2])
        if not permission or permits("events.amazonaws.com", rule["Arn"], permission[0], arn, permission[1]):
            deliver(target, event, rule, view)

    async def call_if_allowed(function, event, *, account_id=None, region=None):
        request = event["requestContext"]
        method = f"{request['stage']}/{request['httpMethod']}{request['resourcePath']}"
        source = f"arn:aws:execute-api:{get_region()}:{get_account_id()}:{request['apiId']}/{method}"
        policy_of = lambda_svc.function_policy_for_arn
        if not permits("apigateway.amazonaws.com", source, "lambda:InvokeFunction", function, policy_of):
            return None, f"Invalid permissions on Lambda function {function}"
        return await call(function, event, account_id=account_id, region=region)

    async def authorize_if_allowed(authorizer, event, account_id, region):
        function = apigateway_v1._extract_lambda_ref_from_integration_uri(authorizer["authorizerUri"])
        action, role = "lambda:InvokeFunction", authorizer.get("authorizerCredentials")
        if role:
            allowed = _permits(log_file, role, "apigateway", action, function)
        else:
            api = event["methodArn"].split(":")[5].split("/")[0]
            source = f"arn:aws:execute-api:{region}:{account_id}:{api}/authorizers/{authorizer['id']}"
            allowed = permits("apigateway.amazonaws.com", source, action, function, lambda_svc.function_policy_for_arn)
        # Without a result, MiniStack answers with AUTHORIZER_CONFIGURATION_ERROR, as AWS does.
        return await authorize(authorizer, event, account_id, region) if allowed else None

    eventbridge._invoke_target = deliver_if_allowed
    apigateway_v1._call_lambda_raw = call_if_allowed
    apigateway_v1._invoke_authorizer_lambda = authorize_if_allowed


def _treat_loopback_as_tls():
    """Treats requests on loopback as TLS. The local stack has no TLS, and the buckets refuse requests without TLS."""
    from ministack import app

    pin = app.pin_request_origin
    app.pin_request_origin = lambda source_ip, _secure: pin(source_ip, True)
