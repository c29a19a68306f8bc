"""The states of the state machines, one by one, by TestState: it runs a state with a given answer, and changes nothing."""

import json

from environment import NO_SITE, Environment
from steps import NotProved, Skipped, ensure, step

ONBOARDING = "6c8a7e8a-af7c-5f5a-855c-0cc480251501"
CAUSE = "3fbeaac9-9e49-5723-bc13-e54e98346d74"

# The input of an execution of site-onboarding; site-teardown reads less of it.
INPUT = {
    "onboardingId": ONBOARDING, "siteId": NO_SITE, "causationId": CAUSE, "name": "Alamosa, Colorado", "plan": "standard",
    "paymentMethod": "pm_card_visa", "sensors": [{"sensorId": "737de119-a774-5662-91c7-51fffae3b74b", "metric": "air_temperature", "unit": "Cel"}],
}
FAILURE = {"step": "ReserveKits", "error": "KitsOutOfStock", "message": 'no kit of "air_temperature".'}
UNDO_FAILURE = {"step": "CancelSubscription", "error": "Transient", "message": "no answer."}
VARIABLES = {
    "failure": FAILURE, "undoFailures": [], "compensationError": "CompensationIncomplete", "compensationCause": "CancelSubscription failed",
}
CONTEXT = {"Execution": {"Id": "arn:aws:states:eu-central-1:123456789012:execution:site-onboarding:proof", "Name": "proof"}, "Task": {"Token": "token"}}
# What a Lambda function answers when it fails, in the form in which a state gets it. The message has quotation marks in it.
ERROR = {"error": "InvalidInput", "cause": json.dumps({"errorType": "InvalidInput", "errorMessage": 'sensors: has "0" entries'})}


def cases(definition):
    """(state, what is given, what is expected) for each state of a machine. `given` are arguments of TestState."""
    for name, state in definition["States"].items():
        if state["Type"] == "Task":
            expected = {"status": "SUCCEEDED", "next": state.get("Next"), "arguments": True}
            yield name, {"mock": {"result": "{}", "fieldValidationMode": "NONE"}}, expected
            # No state tries again after InvalidInput.
            yield name, {"mock": {"errorOutput": ERROR}}, {"status": "CAUGHT_ERROR", "next": state["Catch"][0]["Next"], "caught": name}
        elif state["Type"] == "Choice":
            yield name, {}, {"status": "SUCCEEDED", "next": state["Default"]}
            broken = {"variables": VARIABLES | {"undoFailures": [UNDO_FAILURE]}}
            yield name, broken, {"status": "SUCCEEDED", "next": state["Choices"][0]["Next"]}
        elif state["Type"] == "Fail":
            yield name, {"variables": VARIABLES | {"undoFailures": [UNDO_FAILURE]}}, {"status": "FAILED", "error": True}
        else:
            yield name, {}, {"status": "SUCCEEDED", "next": state.get("Next")}


def judge(name, state, expected, answer):
    """What is wrong with an answer of TestState; None if nothing is."""
    if answer["status"] != expected["status"]:
        return f"{name} is {answer['status']} instead of {expected['status']}: {answer.get('error')} {answer.get('cause')}"
    if expected.get("next") != answer.get("nextState") and "next" in expected:
        return f"{name} leads to {answer.get('nextState')} instead of {expected['next']}"
    return None


def judge_values(name, state, expected, answer):
    """What is wrong with the values that JSONata made; None if nothing is."""
    inspected = answer.get("inspectionData", {})
    if expected.get("arguments"):
        arguments = inspected.get("afterArguments", "")
        if ONBOARDING not in arguments or "{%" in arguments:
            return f"{name} calls with {arguments or 'no arguments'}"
    if expected.get("caught"):
        variables = json.loads(inspected.get("variables", "{}"))
        noted = variables.get("failure") if "failure" in state["Catch"][0]["Assign"] else (variables.get("undoFailures") or [None])[-1]
        if "compensationError" in state["Catch"][0]["Assign"]:
            return None if variables.get("compensationError") == ERROR["error"] else f"{name} keeps {variables}"
        if not noted or (noted["step"], noted["error"], noted["message"]) != (name, ERROR["error"], 'sensors: has "0" entries'):
            return f"{name} notes the failure as {noted}"
    if expected.get("error"):
        wanted = FAILURE["error"] if name == "OnboardingFailed" else "CompensationIncomplete"
        if answer.get("error") != wanted or "{%" in answer.get("cause", "{%") or "undefined" in answer["cause"]:
            return f"{name} ends with {answer.get('error')}: {answer.get('cause')}"
    if expected["status"] == "SUCCEEDED":
        output = json.loads(answer.get("output", "null"))
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
        ensure("${" not in text, f"a placeholder of {machine} was not filled")
        definition = json.loads(text)
        tested += len(definition["States"])
        for name, given, expected in cases(definition):
            arguments = {"variables": json.dumps(given.get("variables", VARIABLES))}
            if "mock" in given:
                arguments |= {"mock": given["mock"], "context": json.dumps(CONTEXT)}
            elif environment.emulator and "variables" in given:
                continue
            else:
                # Only a mocked state needs no role.
                arguments["roleArn"] = described["roleArn"]
            count += 1
            answer = client.test_state(definition=text, stateName=name, input=json.dumps(INPUT), inspectionLevel="DEBUG", **arguments)
            if problem := judge(name, definition["States"][name], expected, answer):
                wrong.append(problem)
            elif problem := judge_values(name, definition["States"][name], expected, answer):
                values.append(problem)
    if wrong or (values and not environment.emulator):
        raise NotProved("; ".join(wrong + values))
    if environment.emulator:
        raise Skipped(f"the emulator's TestState takes no variables and evaluates no expressions of tasks; {count} transitions are right")
    return f"{tested} states were run {count} times, and went as written"
