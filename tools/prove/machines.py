"""Tests each state of the state machines with TestState, which runs one state with a given response and changes nothing."""

import json

from environment import NO_SITE, Environment
from steps import NotProved, Skipped, ensure, step

ONBOARDING = "6c8a7e8a-af7c-5f5a-855c-0cc480251501"
OPERATOR = "c1c74101-9d25-5a81-83c5-196efff0c060"
CAUSE = "3fbeaac9-9e49-5723-bc13-e54e98346d74"

# The input of an execution of site-onboarding; site-teardown reads less of it.
INPUT = {
    "onboardingId": ONBOARDING, "siteId": NO_SITE, "operatorId": OPERATOR, "causationId": CAUSE, "name": "Alamosa, Colorado",
    "plan": "standard", "paymentMethod": "pm_card_visa", "sensors": [{"sensorId": "737de119-a774-5662-91c7-51fffae3b74b", "metric": "air_temperature", "unit": "Cel"}],
}
FAILURE = {"step": "ReserveKits", "error": "KitsOutOfStock", "message": 'no kit of "air_temperature".'}
UNDO_FAILURE = {"step": "CancelSubscription", "error": "Transient", "message": "no answer."}
VARIABLES = {
    "failure": FAILURE, "undoFailures": [], "compensationError": "CompensationIncomplete", "compensationCause": "CancelSubscription failed",
}
CONTEXT = {"Execution": {"Id": "arn:aws:states:eu-central-1:123456789012:execution:site-onboarding:proof", "Name": "proof"}, "Task": {"Token": "token"}}
# The error of a Lambda function, in the form in which a state receives it. The message contains quotation marks.
ERROR = {"error": "InvalidInput", "cause": json.dumps({"errorType": "InvalidInput", "errorMessage": 'sensors: has "0" entries'})}


def cases(definition):
    """Yields (state, arguments of TestState, expected result) for each state of a machine."""
    for name, state in definition["States"].items():
        if state["Type"] == "Task":
            expected = {"status": "SUCCEEDED", "next": state.get("Next"), "arguments": True}
            yield name, {"mock": {"result": "{}", "fieldValidationMode": "NONE"}}, expected
            # No state retries InvalidInput.
            yield name, {"mock": {"errorOutput": ERROR}}, {"status": "CAUGHT_ERROR", "next": state["Catch"][0]["Next"], "caught": name}
        elif state["Type"] == "Choice":
            yield name, {}, {"status": "SUCCEEDED", "next": state["Default"]}
            broken = {"variables": VARIABLES | {"undoFailures": [UNDO_FAILURE]}}
            yield name, broken, {"status": "SUCCEEDED", "next": state["Choices"][0]["Next"]}
        elif state["Type"] == "Fail":
            yield name, {"variables": VARIABLES | {"undoFailures": [UNDO_FAILURE]}}, {"status": "FAILED", "error": True}
        else:
            yield name, {}, {"status": "SUCCEEDED", "next": state.get("Next")}


def transition_problem(name, state, expected, response):
    """Returns what is wrong with a response of TestState, or None."""
    if response["status"] != expected["status"]:
        return f"{name} is {response['status']} instead of {expected['status']}: {response.get('error')} {response.get('cause')}"
    if expected.get("next") != response.get("nextState") and "next" in expected:
        return f"{name} continues with {response.get('nextState')} instead of {expected['next']}"
    return None


def value_problem(name, state, expected, response):
    """Returns what is wrong with the values that JSONata computed, or None."""
    inspected = response.get("inspectionData", {})
    if expected.get("arguments"):
        arguments = inspected.get("afterArguments", "")
        if ONBOARDING not in arguments or "{%" in arguments:
            return f"{name} calls with {arguments or 'no arguments'}"
    if expected.get("caught"):
        variables = json.loads(inspected.get("variables", "{}"))
        recorded = variables.get("failure") if "failure" in state["Catch"][0]["Assign"] else (variables.get("undoFailures") or [None])[-1]
        if "compensationError" in state["Catch"][0]["Assign"]:
            return None if variables.get("compensationError") == ERROR["error"] else f"{name} assigns {variables}"
        if not recorded or (recorded["step"], recorded["error"], recorded["message"]) != (name, ERROR["error"], 'sensors: has "0" entries'):
            return f"{name} records the failure as {recorded}"
    if expected.get("error"):
        expected_error = FAILURE["error"] if name == "OnboardingFailed" else "CompensationIncomplete"
        if response.get("error") != expected_error or "{%" in response.get("cause", "{%") or "undefined" in response["cause"]:
            return f"{name} ends with {response.get('error')}: {response.get('cause')}"
    if expected["status"] == "SUCCEEDED":
        output = json.loads(response.get("output", "null"))
        if not isinstance(output, dict) or output.get("onboardingId") != ONBOARDING:
            return f"the output of {name} is {output}"
    return None


@step("states", "Step Functions evaluates the JSONata of every state as the local stack does: arguments, choices, caught errors, causes", seconds=180,
      units={"transition": 100})
def states(environment: Environment):
    client, tested, count, wrong, values = environment.client("stepfunctions"), 0, 0, [], []
    for machine in ("site-onboarding", "site-teardown"):
        arn = environment.arn("states", f"stateMachine:{environment.resource_name(machine)}")
        described = client.describe_state_machine(stateMachineArn=arn)
        text = described["definition"]
        ensure("${" not in text, f"the definition of {machine} still contains a placeholder")
        definition = json.loads(text)
        tested += len(definition["States"])
        for name, given, expected in cases(definition):
            arguments = {"variables": json.dumps(given.get("variables", VARIABLES))}
            if "mock" in given:
                arguments |= {"mock": given["mock"], "context": json.dumps(CONTEXT)}
            elif environment.emulator and "variables" in given:
                continue
            else:
                # A state without a mock needs a role.
                arguments["roleArn"] = described["roleArn"]
            count += 1
            response = client.test_state(definition=text, stateName=name, input=json.dumps(INPUT), inspectionLevel="DEBUG", **arguments)
            if problem := transition_problem(name, definition["States"][name], expected, response):
                wrong.append(problem)
            elif problem := value_problem(name, definition["States"][name], expected, response):
                values.append(problem)
    if wrong or (values and not environment.emulator):
        raise NotProved("; ".join(wrong + values))
    if environment.emulator:
        raise Skipped(f"the emulator's TestState takes no variables and evaluates no expressions of tasks; {count} transitions are correct")
    return f"{tested} states were run {count} times, with the expected results"
