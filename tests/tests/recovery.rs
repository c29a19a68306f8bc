//! Tests sagas that were stopped, which `recover-onboarding` undoes, and sagas without progress, which
//! `check-sagas` reports. A test holds a step by stopping its function's processes. It also checks what the
//! step does when the processes continue after everything was undone.

#[path = "disruptions/faults.rs"]
#[expect(dead_code, reason = "not every fault is brought about here")]
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
    wait::{Look, TIMEOUT, until, until_true},
};
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::faults::{Broken, Frozen};

/// A function is held for the whole stack, so the tests run one at a time.
static TURN: Mutex<()> = Mutex::const_new(());

const METRIC: Metric = Metric::WindSpeed;

async fn register(stack: &Stack, what: &str, card: &str) -> Result<Ids> {
    let name = format!("{what} {}", Uuid::new_v4().simple());
    stack.register(&Uuid::new_v4().to_string(), &registration(&name, &[METRIC], card)).await
}

/// Onboards and decommissions a site. After it, every function of both sagas has a process that waits for work.
async fn warm_up(stack: &Stack) -> Result<()> {
    stack.deliver(&[METRIC], 5).await?;
    let ids = register(stack, "warm-up", GOOD_CARD).await?;
    stack.site_active(ids.site_id).await?;
    decommission(stack, ids).await?;
    stack.site_as(ids.site_id, "DECOMMISSIONED", &FORWARD.map(|it| (it, "UNDONE"))).await?;
    log::published_story(stack, ids.onboarding_id).await?;
    Ok(())
}

async fn decommission(stack: &Stack, ids: Ids) -> Result<()> {
    let answer = stack.call(Call::delete(format!("/sites/{}", ids.site_id))).await?;
    ensure!(answer.status == 202, "DELETE was answered with {answer}");
    Ok(())
}

/// Waits until the execution that `find` finds tries that step.
async fn at_step(
    step: &str,
    find: impl AsyncFn() -> Result<Option<Execution>>,
) -> Result<Execution> {
    until(&format!("an execution to be at {step}"), TIMEOUT, async || {
        let execution = find().await?;
        let at = execution.as_ref().and_then(Execution::current);
        Ok(if at.is_some_and(|task| task.name == step && task.tries > 0) {
            Look::Found(execution.context("an execution")?)
        } else {
            Look::Saw(format!("{execution:?}"))
        })
    })
    .await
}

/// Stops an execution, and checks that it was in that state at that time with its task in progress.
async fn stop_in(stack: &Stack, execution: &Execution, state: &str) -> Result<()> {
    stack.stop(&execution.arn).await?;
    let stopped = stack.execution(&execution.arn).await?.context("the execution")?;
    assert_eq!(stopped.status, ExecutionStatus::Aborted, "{stopped:?}");
    assert_eq!(stopped.stopped_in.as_deref(), Some(state), "{stopped:?}");
    let task = stopped.task(state).context("the task")?;
    assert!(!task.succeeded && task.failures.is_empty(), "it was over already: {task:?}");
    Ok(())
}

fn recovery(onboarding: OnboardingId) -> String {
    format!("recovery-{onboarding}")
}

/// Waits until the recovery has undone everything.
async fn recovered(stack: &Stack, onboarding: OnboardingId) -> Result<Execution> {
    let name = recovery(onboarding);
    let execution = until(&format!("{name} to be over"), TIMEOUT, async || {
        Ok(match stack.teardown(onboarding).await? {
            Some(execution)
                if execution.arn.contains(&name)
                    && execution.status != ExecutionStatus::Running =>
            {
                Look::Found(execution)
            }
            other => Look::Saw(format!("{other:?}")),
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

/// Waits until the step that was in progress at the stop has answered, and returns the name of its error.
async fn late_failure(stack: &Stack, execution: &Execution) -> Result<String> {
    until("the late answer of the step", TIMEOUT, async || {
        let execution = stack.execution(&execution.arn).await?.context("the execution")?;
        Ok(match execution.late_failure.clone() {
            Some(error) => Look::Found(error),
            None => Look::Saw(format!("{execution:?}")),
        })
    })
    .await
}

/// Returns whether the row is billing's stored answer that a command came too late. Billing keeps its answers
/// for a week.
fn is_late_answer(row: &str) -> bool {
    serde_json::from_str(row).is_ok_and(|row: Value| {
        let id = row["id"].as_str().unwrap_or_default();
        id.starts_with("idempotency#initialize-subscription#")
            && row["data"] == "\"Superseded\""
            && row["expiration"].is_number()
    })
}

/// Checks that nothing is left of the site, and that the log has exactly the events of these entities.
async fn assert_nothing_left(stack: &Stack, ids: Ids, entities: EventsByEntity) -> Result<()> {
    let left = residue(stack, ids).await?.into_iter();
    let left: Vec<_> = left.filter(|(_, row)| !is_late_answer(row)).collect();
    assert_eq!(left, []);
    let story = log::published_story(stack, ids.onboarding_id).await?;
    assert_eq!(log::by_entity(&story), entities);
    assert_eq!(log::gaps(&story), [""; 0]);
    let inventory = Inventory::read(stack).await?;
    let off = Inventory::off(&inventory.stock, &inventory.unreserved);
    assert!(off.is_empty(), "the stock is off by {off:?}");
    Ok(())
}

/// Returns the events of a rejected site whose first steps were done and undone.
fn done_and_undone(steps: usize) -> EventsByEntity {
    events_undone(steps, &["SiteCreated", "SiteRejected"])
}

/// Stops an onboarding while that step is in progress. The step continues only after everything was undone.
async fn cut_off_in(step: &str) -> Result<()> {
    let _turn = TURN.lock().await;
    let stack = Stack::connect().await?;
    warm_up(&stack).await?;
    let held = Frozen::processes(&stack, &kebab(step))?;
    let ids = register(&stack, "cut off", GOOD_CARD).await?;
    let execution = at_step(step, async || stack.onboarding(ids.onboarding_id).await).await?;
    stop_in(&stack, &execution, step).await?;

    recovered(&stack, ids.onboarding_id).await?;
    let steps = FORWARD.into_iter().position(|name| name == step).context("a step")?;
    let told: Vec<_> = FORWARD[..steps].iter().map(|step| (*step, "UNDONE")).collect();
    let told: Vec<_> = told.into_iter().chain([(step, "FAILED")]).collect();
    let site = stack.site_as(ids.site_id, "REJECTED", &told).await?;
    let failure = &site["onboarding"]["failure"];
    assert_eq!((&failure["step"], &failure["error"]), (&json!(step), &json!("Aborted")), "{site}");

    assert_eq!(residue(&stack, ids).await?, []);

    // The late step finds the tombstone of its undo. Billing does not even start, because the task that sent
    // the command has ended.
    drop(held);
    if step == "InitializeSubscription" {
        let queue = stack.queue_url(names::INITIALIZE_SUBSCRIPTION).await?;
        until_true("the late command to be let go", TIMEOUT, async || {
            let (waiting, in_work) = stack.depth(&queue).await?;
            Ok((waiting + in_work == 0, format!("{waiting} waiting, {in_work} in work")))
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
    assert_eq!(teardowns(&stack, ids.onboarding_id).await?, [recovery(ids.onboarding_id)]);
    Ok(())
}

#[tokio::test]
async fn an_onboarding_stopped_in_any_step_is_undone() -> Result<()> {
    for step in FORWARD {
        cut_off_in(step).await.with_context(|| format!("stopped in {step}"))?;
    }
    Ok(())
}

#[tokio::test]
async fn an_onboarding_stopped_during_its_undo_is_still_undone() -> Result<()> {
    let _turn = TURN.lock().await;
    let stack = Stack::connect().await?;
    warm_up(&stack).await?;
    let held = Frozen::processes(&stack, "deprovision-sensors")?;
    let ids = register(&stack, "cut off undoing", DECLINED_CARD).await?;
    let onboarding =
        at_step("Compensate", async || stack.onboarding(ids.onboarding_id).await).await?;
    let nested =
        at_step("DeprovisionSensors", async || stack.teardown(ids.onboarding_id).await).await?;
    // Step Functions also stops nested executions.
    stop_in(&stack, &onboarding, "Compensate").await?;
    stop_in(&stack, &nested, "DeprovisionSensors").await?;

    recovered(&stack, ids.onboarding_id).await?;
    drop(held);
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

    // The end of the nested execution is also sent as an event. It starts no other teardown.
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
    let (answer, _) = stack.invoke("recover-onboarding", &event).await?;
    assert_eq!(answer, "Already");
    let [newest, first] = &teardowns(&stack, ids.onboarding_id).await?[..] else {
        bail!("more than the nested teardown and its recovery");
    };
    assert_eq!((newest, &nested.arn.ends_with(first)), (&recovery(ids.onboarding_id), &true));
    Ok(())
}

#[tokio::test]
async fn a_stopped_teardown_of_a_live_site_is_completed() -> Result<()> {
    let _turn = TURN.lock().await;
    let stack = Stack::connect().await?;
    warm_up(&stack).await?;
    let ids = register(&stack, "stopped teardown", GOOD_CARD).await?;
    stack.site_active(ids.site_id).await?;
    let held = Frozen::processes(&stack, "cancel-subscription")?;
    decommission(&stack, ids).await?;
    let teardown =
        at_step("CancelSubscription", async || stack.teardown(ids.onboarding_id).await).await?;
    stop_in(&stack, &teardown, "CancelSubscription").await?;

    // The recovery calls the same function, and the stopped invocation continues beside it.
    drop(held);
    recovered(&stack, ids.onboarding_id).await?;
    let site =
        stack.site_as(ids.site_id, "DECOMMISSIONED", &FORWARD.map(|it| (it, "UNDONE"))).await?;
    assert_eq!(site["onboarding"]["failure"], Value::Null);
    let of_site = ["SiteCreated", "SiteActivated", "SiteDecommissioned"];
    let entities = events_undone(FORWARD.len(), &of_site);
    assert_nothing_left(&stack, ids, entities).await?;
    let [_, stopped] = &stack.teardowns_of(ids.onboarding_id).await?[..] else {
        bail!("more than the stopped teardown and its recovery");
    };
    assert_eq!(*stopped, teardown.arn);
    Ok(())
}

/// Invokes check-sagas once, and returns its log line about that execution and its answer.
async fn check(stack: &Stack, arn: &str) -> Result<(Option<Value>, Value)> {
    let event = json!({ "source": "aws.events", "detail-type": "Scheduled Event", "detail": {} });
    let (answer, log) = stack.invoke("check-sagas", &event).await?;
    let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok((lines.find(|line| line["execution"] == arn), answer))
}

#[tokio::test]
async fn a_saga_without_progress_is_reported() -> Result<()> {
    let _turn = TURN.lock().await;
    let stack = Stack::connect().await?;
    warm_up(&stack).await?;
    let held = Frozen::processes(&stack, "provision-sensors")?;
    let ids = register(&stack, "stuck", GOOD_CARD).await?;
    let execution =
        at_step("ProvisionSensors", async || stack.onboarding(ids.onboarding_id).await).await?;

    let (line, answer) = check(&stack, &execution.arn).await?;
    assert_eq!(line, None, "it is young yet: {answer}");
    assert!(answer["running"].as_u64().is_some_and(|count| count > 0), "{answer}");

    let impatient = Broken::version(&stack, "check-sagas", "SAGA_BUDGET_SECONDS", "1").await?;
    let (line, answer) = impatient
        .during(async || {
            tokio::time::sleep(Duration::from_millis(2500)).await;
            check(&stack, &execution.arn).await
        })
        .await?;
    let line = line.with_context(|| format!("nothing is told of it; {answer}"))?;
    assert_eq!(line["level"], "WARN", "{line}");
    assert_eq!(line["state"], "ProvisionSensors", "{line}");
    assert_eq!(line["correlationId"], json!(ids.onboarding_id), "{line}");
    assert!(line["seconds"].as_i64().is_some_and(|seconds| (1..60).contains(&seconds)), "{line}");
    assert!(answer["stuck"].as_u64().is_some_and(|count| count > 0), "{answer}");
    assert!(answer["oldestAgeSeconds"].as_i64().is_some_and(|age| age > 0), "{answer}");
    assert_eq!((&answer["unread"], &answer["incomplete"]), (&json!(0), &json!(false)), "{answer}");

    drop(held);
    stack.site_active(ids.site_id).await?;
    let execution = stack.onboarding(ids.onboarding_id).await?.context("the execution")?;
    assert_eq!(execution.task("ProvisionSensors").map(|task| task.succeeded), Some(true));
    assert!(execution.tasks.iter().all(|task| task.failures.is_empty()), "{execution:?}");
    let (line, _) = check(&stack, &execution.arn).await?;
    assert_eq!(line, None, "it is over");
    Ok(())
}
