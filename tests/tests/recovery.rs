//! Tests stopped sagas, which `recover-onboarding` undoes, and sagas without progress, which `check-sagas` reports. A
//! test blocks a step by freezing its function's processes. It also checks what the step does when the processes
//! continue after everything was undone.

#[path = "disruptions/faults.rs"]
#[expect(dead_code, reason = "this binary does not use every fault")]
mod faults;

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use aws_sdk_sfn::types::ExecutionStatus;
use contracts::{
    Metric, OnboardingId,
    names::{self, kebab},
};
use serde_json::{Value, json};
use tests::{
    Stack,
    api::Call,
    executions::Execution,
    inventory::Inventory,
    log,
    sites::{
        DECLINED_CARD, EventsByEntity, FORWARD, GOOD_CARD, Ids, UNDO, events_undone, registration,
        residue,
    },
    wait::{Poll, TIMEOUT, until, until_true},
};
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::faults::{BrokenFunction, FrozenProcesses};

/// A frozen function affects the whole stack, so the tests run one at a time.
static STACK_LOCK: Mutex<()> = Mutex::const_new(());

const METRIC: Metric = Metric::WindSpeed;

async fn register(stack: &Stack, what: &str, card: &str) -> Result<Ids> {
    let name = format!("{what} {}", Uuid::new_v4().simple());
    stack.register(&Uuid::new_v4().to_string(), &registration(&name, &[METRIC], card)).await
}

/// Onboards and decommissions a site. After that, every function of both sagas has an idle process.
async fn warm_up(stack: &Stack) -> Result<()> {
    stack.deliver(&[METRIC], 5).await?;
    let ids = register(stack, "warm-up", GOOD_CARD).await?;
    stack.wait_until_active(ids.site_id).await?;
    decommission(stack, ids).await?;
    stack.wait_for_site(ids.site_id, "DECOMMISSIONED", &FORWARD.map(|it| (it, "UNDONE"))).await?;
    log::published_saga_events(stack, ids.onboarding_id).await?;
    Ok(())
}

async fn decommission(stack: &Stack, ids: Ids) -> Result<()> {
    let response = stack.call(Call::delete(format!("/sites/{}", ids.site_id))).await?;
    ensure!(response.status == 202, "DELETE returned {response}");
    Ok(())
}

/// Waits until the execution that `find` returns attempts this step.
async fn wait_for_step(
    step: &str,
    find: impl AsyncFn() -> Result<Option<Execution>>,
) -> Result<Execution> {
    until(&format!("an execution to attempt {step}"), TIMEOUT, async || {
        let execution = find().await?;
        let current = execution.as_ref().and_then(Execution::current);
        Ok(if current.is_some_and(|task| task.name == step && task.attempts > 0) {
            Poll::Ready(execution.context("no execution was started")?)
        } else {
            Poll::Pending(format!("{execution:?}"))
        })
    })
    .await
}

/// Stops an execution, and checks that the task of this state was in progress at the stop.
async fn stop_in(stack: &Stack, execution: &Execution, state: &str) -> Result<()> {
    stack.stop(&execution.arn).await?;
    let stopped = stack.execution(&execution.arn).await?.context("the execution does not exist")?;
    assert_eq!(stopped.status, ExecutionStatus::Aborted, "{stopped:?}");
    assert_eq!(stopped.stopped_in.as_deref(), Some(state), "{stopped:?}");
    let task = stopped.task(state).context("the execution has no such task")?;
    assert!(!task.succeeded && task.failures.is_empty(), "the task had already ended: {task:?}");
    Ok(())
}

fn recovery_name(onboarding: OnboardingId) -> String {
    format!("recovery-{onboarding}")
}

/// Waits until the recovery has undone everything.
async fn wait_for_recovery(stack: &Stack, onboarding: OnboardingId) -> Result<Execution> {
    let name = recovery_name(onboarding);
    let execution = until(&format!("{name} to end"), TIMEOUT, async || {
        Ok(match stack.teardown(onboarding).await? {
            Some(execution)
                if execution.arn.contains(&name)
                    && execution.status != ExecutionStatus::Running =>
            {
                Poll::Ready(execution)
            }
            other => Poll::Pending(format!("{other:?}")),
        })
    })
    .await?;
    assert_eq!(execution.status, ExecutionStatus::Succeeded, "{execution:?}");
    assert_eq!(execution.succeeded(), UNDO);
    Ok(execution)
}

/// Returns the names of the onboarding's teardowns, newest first.
async fn teardowns(stack: &Stack, onboarding: OnboardingId) -> Result<Vec<String>> {
    let arns = stack.teardowns_of(onboarding).await?;
    Ok(arns.iter().map(|arn| arn.rsplit(':').next().unwrap_or_default().to_owned()).collect())
}

/// Waits for the response of the step that was in progress at the stop. Returns the name of its error.
async fn late_failure(stack: &Stack, execution: &Execution) -> Result<String> {
    until("the late response of the step", TIMEOUT, async || {
        let execution =
            stack.execution(&execution.arn).await?.context("the execution does not exist")?;
        Ok(match execution.late_failure.clone() {
            Some(error) => Poll::Ready(error),
            None => Poll::Pending(format!("{execution:?}")),
        })
    })
    .await
}

/// Returns whether the row is billing's idempotency record of a command that came too late. Billing keeps these records
/// for a week.
fn is_record_of_late_command(row: &str) -> bool {
    serde_json::from_str(row).is_ok_and(|row: Value| {
        let id = row["id"].as_str().unwrap_or_default();
        id.starts_with("idempotency#initialize-subscription#")
            && row["data"] == "\"Superseded\""
            && row["expiration"].is_number()
    })
}

/// Checks that nothing is left of the site, and that the event log has exactly these events.
async fn assert_nothing_left(stack: &Stack, ids: Ids, entities: EventsByEntity) -> Result<()> {
    let residue = residue(stack, ids).await?.into_iter();
    let residue: Vec<_> = residue.filter(|(_, row)| !is_record_of_late_command(row)).collect();
    assert_eq!(residue, []);
    let saga_events = log::published_saga_events(stack, ids.onboarding_id).await?;
    assert_eq!(log::by_entity(&saga_events), entities);
    assert_eq!(log::gaps(&saga_events), [""; 0]);
    let inventory = Inventory::read(stack).await?;
    let difference = Inventory::difference(&inventory.stock, &inventory.unreserved);
    assert!(difference.is_empty(), "the stock differs by {difference:?}");
    Ok(())
}

/// Returns the events of a rejected site whose first steps were done and undone.
fn done_and_undone(steps: usize) -> EventsByEntity {
    events_undone(steps, &["SiteCreated", "SiteRejected"])
}

/// Stops an onboarding while this step is in progress, and checks the recovery. The step continues only after
/// everything was undone.
async fn assert_recovered_from_stop_in(step: &str) -> Result<()> {
    let _lock = STACK_LOCK.lock().await;
    let stack = Stack::connect().await?;
    warm_up(&stack).await?;
    let frozen = FrozenProcesses::stop(&stack, &kebab(step))?;
    let ids = register(&stack, "stopped", GOOD_CARD).await?;
    let execution = wait_for_step(step, async || stack.onboarding(ids.onboarding_id).await).await?;
    stop_in(&stack, &execution, step).await?;

    wait_for_recovery(&stack, ids.onboarding_id).await?;
    let steps = FORWARD.into_iter().position(|name| name == step).context("unknown step")?;
    let undone = FORWARD[..steps].iter().map(|step| (*step, "UNDONE"));
    let expected: Vec<_> = undone.chain([(step, "FAILED")]).collect();
    let site = stack.wait_for_site(ids.site_id, "REJECTED", &expected).await?;
    let failure = &site["onboarding"]["failure"];
    assert_eq!((&failure["step"], &failure["error"]), (&json!(step), &json!("Aborted")), "{site}");

    assert_eq!(residue(&stack, ids).await?, []);

    // The late step finds the tombstone of its undo. Billing does not process the command, because the task that sent
    // it has ended.
    drop(frozen);
    if step == "InitializeSubscription" {
        let queue = stack.queue_url(names::INITIALIZE_SUBSCRIPTION).await?;
        until_true("the late command to leave the queue", TIMEOUT, async || {
            let (visible, in_flight) = stack.queue_depth(&queue).await?;
            Ok((visible + in_flight == 0, format!("{visible} visible, {in_flight} in flight")))
        })
        .await?;
        let onboarding = ids.onboarding_id.to_string();
        assert_eq!(stack.failures_about("initialize-subscription", &onboarding).await?, []);
    } else {
        assert_eq!(late_failure(&stack, &execution).await?, "Superseded");
    }
    assert_nothing_left(&stack, ids, done_and_undone(steps)).await?;
    let site = stack.site(ids.site_id).await?;
    assert_eq!(site.body["status"], "REJECTED", "{site}");
    assert_eq!(teardowns(&stack, ids.onboarding_id).await?, [recovery_name(ids.onboarding_id)]);
    Ok(())
}

#[tokio::test]
async fn an_onboarding_stopped_in_any_step_is_undone() -> Result<()> {
    for step in FORWARD {
        assert_recovered_from_stop_in(step).await.with_context(|| format!("stopped in {step}"))?;
    }
    Ok(())
}

#[tokio::test]
async fn an_onboarding_stopped_during_its_undo_is_still_undone() -> Result<()> {
    let _lock = STACK_LOCK.lock().await;
    let stack = Stack::connect().await?;
    warm_up(&stack).await?;
    let frozen = FrozenProcesses::stop(&stack, "deprovision-sensors")?;
    let ids = register(&stack, "stopped undo", DECLINED_CARD).await?;
    let onboarding =
        wait_for_step("Compensate", async || stack.onboarding(ids.onboarding_id).await).await?;
    let nested =
        wait_for_step("DeprovisionSensors", async || stack.teardown(ids.onboarding_id).await)
            .await?;
    // Step Functions also stops nested executions.
    stop_in(&stack, &onboarding, "Compensate").await?;
    stop_in(&stack, &nested, "DeprovisionSensors").await?;

    wait_for_recovery(&stack, ids.onboarding_id).await?;
    drop(frozen);
    let site = stack.site(ids.site_id).await?;
    assert_eq!(site.body["status"], "REJECTED", "{site}");
    until_true("the onboarding to be shown as undone", TIMEOUT, async || {
        let site = stack.site(ids.site_id).await?;
        let steps = site.body["onboarding"]["steps"].as_array().cloned().unwrap_or_default();
        let done = steps.iter().filter(|step| step["status"] == "COMPLETED").count();
        Ok((done == 0, site))
    })
    .await?;
    let mut entities = done_and_undone(2);
    entities.insert("subscription", vec!["SubscriptionFailed"]);
    assert_nothing_left(&stack, ids, entities).await?;

    // The event about the end of the nested execution starts no second recovery.
    let input = json!({
        "onboardingId": ids.onboarding_id,
        "siteId": ids.site_id,
        "AWS_STEP_FUNCTIONS_STARTED_BY_EXECUTION_ID": onboarding.arn,
    });
    let event = json!({
        "version": "0",
        "id": Uuid::new_v4(),
        "detail-type": "Step Functions Execution Status Change",
        "source": "aws.states",
        "detail": {
            "executionArn": nested.arn,
            "stateMachineArn": stack.machine_arn(names::SITE_TEARDOWN),
            "name": nested.arn.rsplit(':').next(),
            "status": "ABORTED",
            "input": input.to_string(),
        },
    });
    let (response, _) = stack.invoke("recover-onboarding", &event).await?;
    assert_eq!(response, "Already");
    let [newest, first] = &teardowns(&stack, ids.onboarding_id).await?[..] else {
        bail!("expected only the nested teardown and its recovery");
    };
    assert_eq!((newest, &nested.arn.ends_with(first)), (&recovery_name(ids.onboarding_id), &true));
    Ok(())
}

#[tokio::test]
async fn a_stopped_teardown_of_a_live_site_is_completed() -> Result<()> {
    let _lock = STACK_LOCK.lock().await;
    let stack = Stack::connect().await?;
    warm_up(&stack).await?;
    let ids = register(&stack, "stopped teardown", GOOD_CARD).await?;
    stack.wait_until_active(ids.site_id).await?;
    let frozen = FrozenProcesses::stop(&stack, "cancel-subscription")?;
    decommission(&stack, ids).await?;
    let teardown =
        wait_for_step("CancelSubscription", async || stack.teardown(ids.onboarding_id).await)
            .await?;
    stop_in(&stack, &teardown, "CancelSubscription").await?;

    // The recovery calls the same function while the stopped invocation continues.
    drop(frozen);
    wait_for_recovery(&stack, ids.onboarding_id).await?;
    let site = stack
        .wait_for_site(ids.site_id, "DECOMMISSIONED", &FORWARD.map(|it| (it, "UNDONE")))
        .await?;
    assert_eq!(site["onboarding"]["failure"], Value::Null);
    let site_events = ["SiteCreated", "SiteActivated", "SiteDecommissioned"];
    let entities = events_undone(FORWARD.len(), &site_events);
    assert_nothing_left(&stack, ids, entities).await?;
    let [_, stopped] = &stack.teardowns_of(ids.onboarding_id).await?[..] else {
        bail!("expected only the stopped teardown and its recovery");
    };
    assert_eq!(*stopped, teardown.arn);
    Ok(())
}

/// Invokes check-sagas once. Returns its log line about this execution, and its response.
async fn run_check_sagas(stack: &Stack, arn: &str) -> Result<(Option<Value>, Value)> {
    let event = json!({ "source": "aws.events", "detail-type": "Scheduled Event", "detail": {} });
    let (response, log) = stack.invoke("check-sagas", &event).await?;
    let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok((lines.find(|line| line["execution"] == arn), response))
}

#[tokio::test]
async fn a_saga_without_progress_is_reported() -> Result<()> {
    let _lock = STACK_LOCK.lock().await;
    let stack = Stack::connect().await?;
    warm_up(&stack).await?;
    let frozen = FrozenProcesses::stop(&stack, "provision-sensors")?;
    let ids = register(&stack, "stuck", GOOD_CARD).await?;
    let execution =
        wait_for_step("ProvisionSensors", async || stack.onboarding(ids.onboarding_id).await)
            .await?;

    let (line, response) = run_check_sagas(&stack, &execution.arn).await?;
    assert_eq!(line, None, "reported too early: {response}");
    assert!(response["running"].as_u64().is_some_and(|count| count > 0), "{response}");

    let short_budget =
        BrokenFunction::deploy(&stack, "check-sagas", "SAGA_BUDGET_SECONDS", "1").await?;
    let (line, response) = short_budget
        .during(async || {
            tokio::time::sleep(Duration::from_millis(2500)).await;
            run_check_sagas(&stack, &execution.arn).await
        })
        .await?;
    let line = line.with_context(|| format!("the saga is not reported: {response}"))?;
    assert_eq!(line["level"], "WARN", "{line}");
    assert_eq!(line["state"], "ProvisionSensors", "{line}");
    assert_eq!(line["correlationId"], json!(ids.onboarding_id), "{line}");
    assert!(line["seconds"].as_i64().is_some_and(|seconds| (1..60).contains(&seconds)), "{line}");
    assert!(response["stuck"].as_u64().is_some_and(|count| count > 0), "{response}");
    assert!(response["oldestAgeSeconds"].as_i64().is_some_and(|age| age > 0), "{response}");
    assert_eq!(
        (&response["unread"], &response["incomplete"]),
        (&json!(0), &json!(false)),
        "{response}"
    );

    drop(frozen);
    stack.wait_until_active(ids.site_id).await?;
    let execution =
        stack.onboarding(ids.onboarding_id).await?.context("the execution does not exist")?;
    assert_eq!(execution.task("ProvisionSensors").map(|task| task.succeeded), Some(true));
    assert!(execution.tasks.iter().all(|task| task.failures.is_empty()), "{execution:?}");
    let (line, _) = run_check_sagas(&stack, &execution.arn).await?;
    assert_eq!(line, None, "reported after its end");
    Ok(())
}
