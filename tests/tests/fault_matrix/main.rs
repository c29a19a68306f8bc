//! The fault matrix: injects every fault at every call of every step of an onboarding and its undo, on the deployed
//! local stack. `make fault-matrix` runs it; docs/fault-matrix.md describes it.

mod callers;
mod faults;
mod invariants;
mod plan;
mod provider;
mod proxy;
mod report;
mod snapshot;

use std::{
    collections::{HashMap, VecDeque},
    env,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use aws_sdk_sfn::types::ExecutionStatus;
use clap::Parser;
use contracts::{Metric, OnboardingId, OperatorId, SiteId, names};
use futures_util::future::try_join_all;
use tests::{
    Stack,
    api::Call,
    sites::{GOOD_CARD, Ids, registration, residue},
    wait::{Poll, TIMEOUT, until, until_true},
};
use uuid::Uuid;

use crate::{
    faults::Fault,
    invariants::{FinalState, Outcome, Reference},
    plan::{Case, Phase, Step},
    proxy::{ArmedFault, FaultTarget, ObservedInvocation, Proxy},
    snapshot::SnapshotReader,
};

/// The number of concurrent onboardings. Each has its own metric, so that its kits can be counted.
const CONCURRENCY: usize = 12;
/// The timeout of a saga. It is longer than an interrupted payment keeps its lock, plus the delays of a command that
/// waits for the lock.
const SAGA_TIMEOUT: Duration = Duration::from_mins(4);
/// The timeout for work after the end of an onboarding: events in transit, or a duplicate delivery.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(45);

/// Injects every fault at every call of every step.
#[derive(Debug, Parser)]
struct Args {
    /// Runs one case of each step and fault
    #[arg(long)]
    subset: bool,
    /// Runs one case, such as `ReserveKits TransactWriteItems#1 cut-after`, or all cases of a step or of a call
    #[arg(long)]
    case: Option<String>,
    /// Lists the cases and runs none
    #[arg(long)]
    list: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            terminal::print_error(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

struct Matrix {
    stack: Stack,
    sfn: aws_sdk_sfn::Client,
    proxy: Arc<Proxy>,
    reader: SnapshotReader,
    reference: Reference,
    /// The function and the name of the last call of the last step. In a case of an undo, this call is refused.
    last_call: (String, String),
}

/// The result of a case.
struct CaseResult {
    case: Case,
    onboarding: OnboardingId,
    /// `None` if the case could not be completed.
    outcome: Option<Outcome>,
    violations: Vec<String>,
}

fn port(variable: &str, default: u16) -> Result<u16> {
    let Ok(text) = env::var(variable) else { return Ok(default) };
    text.parse().with_context(|| format!("{variable} is not a port: {text:?}"))
}

async fn run(args: Args) -> Result<bool> {
    let stack = Stack::connect().await?;
    let steps = plan::steps(&stack)?;
    let stripe = format!("http://127.0.0.1:{}", port("FIELDSTATION_STRIPE_PORT", 8420)?);
    let proxy = Proxy::start(
        &stack,
        port("FIELDSTATION_PROXY_PORT", 4577)?,
        port("FIELDSTATION_STRIPE_PROXY_PORT", 8431)?,
        stripe,
    )
    .await?;
    let metrics = &Metric::ALL[..CONCURRENCY];
    stack.deliver(metrics, 1000).await?;

    let sfn = aws_sdk_sfn::Client::new(stack.config());
    let reference = Reference { active: FinalState::default(), undone: FinalState::default() };
    let reader = SnapshotReader::default();
    let last_call = (String::new(), String::new());
    let mut matrix = Matrix { stack, sfn, proxy, reader, reference, last_call };
    let calls = matrix.discover(&steps).await?;
    let all = plan::all(&steps, &calls);
    let cases = match &args.case {
        Some(name) => all.iter().filter(|case| case.matches(name)).cloned().collect(),
        None if args.subset => plan::subset(&all),
        None => all.clone(),
    };
    ensure!(!cases.is_empty(), "no case matches; the steps and calls are listed above");
    if args.list {
        for case in &cases {
            terminal::print(case);
        }
        return Ok(true);
    }

    let results = matrix.run_all(&cases).await?;
    let failed: Vec<_> = results.iter().filter(|result| !result.violations.is_empty()).collect();
    terminal::print(format_args!(
        "\n{} of {} cases passed",
        results.len() - failed.len(),
        results.len()
    ));
    for CaseResult { case, .. } in &failed {
        terminal::print(format_args!(
            "FAILED: {case}; run it alone: make fault-matrix CASE='{case}'"
        ));
    }
    if failed.is_empty() && cases.len() == all.len() {
        let outcomes: Vec<_> =
            results.iter().filter_map(|result| Some((&result.case, result.outcome?))).collect();
        report::write(&steps, &calls, &outcomes)?;
    }
    Ok(failed.is_empty())
}

impl Matrix {
    /// Records the calls of onboardings without faults, with new and with warm processes. Prints them.
    async fn discover(&mut self, steps: &[Step]) -> Result<HashMap<String, Vec<plan::StepCall>>> {
        let functions: Vec<_> = steps.iter().map(|step| step.function.clone()).collect();
        let last_step = steps.iter().rfind(|step| step.phase == Phase::Forward);
        let last_step = last_step.context("no forward step")?;
        let (mut cold, mut warm) = (Vec::new(), Vec::new());
        // After this run, the proxy knows the processes of the steps, so it can end them. The first round then has new
        // processes.
        self.run_without_fault(false).await?;
        self.proxy.force_cold_starts(&functions).await?;
        self.proxy.force_cold_starts(&[]).await?;
        for round in 0..3 {
            let invocations = if round == 0 { &mut cold } else { &mut warm };
            let (ids, observed) = self.run_without_fault(false).await?;
            let of_last_step = observed.iter().filter(|it| it.function == last_step.function);
            let call = of_last_step.flat_map(|it| &it.calls).next_back();
            let (_, call) = call.with_context(|| format!("no call of {}", last_step.name))?;
            self.last_call = (last_step.function.clone(), call.clone());
            invocations.extend(observed);
            self.reference.active =
                self.wait_for_final_state(ids.onboarding_id, Outcome::Active).await?;
            self.stack.wait_until_active(ids.site_id).await?;
            let (ids, observed) = self.run_without_fault(true).await?;
            invocations.extend(observed);
            self.reference.undone =
                self.wait_for_final_state(ids.onboarding_id, Outcome::Undone).await?;
            let residue = residue(&self.stack, ids).await?;
            ensure!(residue.is_empty(), "an undo without a fault left {residue:?}");
        }
        let calls = plan::calls(steps, &cold, &warm)?;
        for step in steps {
            let names = calls[&step.name]
                .iter()
                .map(|call| format!("{}{}", call.name, if call.cold { " (cold)" } else { "" }));
            terminal::print(format_args!(
                "{:24} {}",
                step.name,
                names.collect::<Vec<_>>().join(", ")
            ));
        }
        Ok(calls)
    }

    /// Runs an onboarding without a fault. With `undo`, its last call is refused. Returns its invocations.
    async fn run_without_fault(&self, undo: bool) -> Result<(Ids, Vec<ObservedInvocation>)> {
        let key = Uuid::new_v4().to_string();
        let ids = ids(&key);
        self.proxy.watch(ids.onboarding_id.to_string(), key.clone());
        if undo {
            self.refuse_last_call(ids);
        }
        self.register(&key, ids, Metric::ALL[0]).await?;
        let outcome = self.wait_for_end(ids.onboarding_id).await?;
        ensure!(
            (outcome == Outcome::Undone) == undo,
            "the onboarding without a fault ended as {outcome:?}"
        );
        self.wait_until_idle(ids.onboarding_id).await?;
        Ok((ids, self.proxy.unwatch(&ids.onboarding_id.to_string())))
    }

    /// Waits until the final state of an onboarding without a fault is complete, and returns it.
    async fn wait_for_final_state(
        &self,
        onboarding: OnboardingId,
        outcome: Outcome,
    ) -> Result<FinalState> {
        until("the final state of an onboarding without a fault", TIMEOUT, async || {
            let snapshot = self.reader.read(&self.stack).await?;
            let state = FinalState::read(&snapshot, onboarding);
            let own_reference = Reference { active: state.clone(), undone: state.clone() };
            let violations =
                invariants::violations(&snapshot, &own_reference, onboarding, outcome, None);
            Ok(if violations.is_empty() {
                Poll::Ready(state)
            } else {
                Poll::Pending(violations.join("; "))
            })
        })
        .await
    }

    fn refuse_last_call(&self, ids: Ids) -> Arc<ArmedFault> {
        let (function, call) = self.last_call.clone();
        self.proxy.refuse(FaultTarget { onboarding: ids.onboarding_id.to_string(), function, call })
    }

    /// Registers a site like a client that repeats its request with the same key until it gets a response.
    async fn register(&self, key: &str, ids: Ids, metric: Metric) -> Result<()> {
        let registration = registration(&format!("matrix {key}"), &[metric], GOOD_CARD);
        let registered = until("the registration to be accepted", TIMEOUT, async || {
            let response = self.stack.call(Call::post_site(key, &registration)).await?;
            Ok(match response.status {
                500.. | 429 => Poll::Pending(response),
                _ => Poll::Ready(Ids::from_response(&response)?),
            })
        });
        let registered = registered.await?;
        ensure!(registered == ids, "registered as {registered:?}, expected {ids:?}");
        Ok(())
    }

    /// Waits until the onboarding has ended.
    async fn wait_for_end(&self, onboarding: OnboardingId) -> Result<Outcome> {
        let arn = self.stack.onboarding_arn(onboarding)?;
        until("the onboarding to end", SAGA_TIMEOUT, async || {
            let described = machines::describe(&self.sfn, &arn).await;
            let Some(described) = described.context("the execution can't be described")? else {
                return Ok(Poll::Pending("not started".to_owned()));
            };
            let error = described.error().unwrap_or_default();
            Ok(match described.status() {
                ExecutionStatus::Running => {
                    tokio::time::sleep(Duration::from_millis(350)).await;
                    Poll::Pending("running".to_owned())
                }
                ExecutionStatus::Succeeded => Poll::Ready(Outcome::Active),
                ExecutionStatus::Failed if error != "CompensationIncomplete" => {
                    Poll::Ready(Outcome::Undone)
                }
                other => {
                    bail!("the onboarding ended as {other:?}: {error} {:?}", described.cause())
                }
            })
        })
        .await
    }

    /// Waits until no invocation of the onboarding is in progress.
    async fn wait_until_idle(&self, onboarding: OnboardingId) -> Result<()> {
        until_true("the last invocation to end", SETTLE_TIMEOUT, async || {
            let count = self.proxy.active_invocations(&onboarding.to_string());
            Ok((count == 0, format!("{count} invocations in progress")))
        })
        .await
    }

    async fn run_all(&self, cases: &[Case]) -> Result<Vec<CaseResult>> {
        let (cold, warm): (Vec<_>, Vec<_>) = cases.iter().cloned().partition(|it| it.call.cold);
        let mut results = self.run_concurrently(warm, 0, cases.len()).await?;
        if !cold.is_empty() {
            let functions: Vec<_> = cold.iter().map(|case| case.step.function.clone()).collect();
            self.proxy.force_cold_starts(&functions).await?;
            results.extend(self.run_concurrently(cold, results.len(), cases.len()).await?);
            self.proxy.force_cold_starts(&[]).await?;
        }

        // Check all cases again after all work has ended, including commands that wait in their queue.
        for queue in [names::INITIALIZE_SUBSCRIPTION, names::CANCEL_SUBSCRIPTION] {
            let queue = self.stack.queue_url(queue).await?;
            until_true("the commands' queue to be empty", SAGA_TIMEOUT, async || {
                let (visible, in_flight) = self.stack.queue_depth(&queue).await?;
                Ok((visible + in_flight == 0, format!("{visible} visible, {in_flight} in flight")))
            })
            .await?;
        }
        // sweep-events publishes an event again if it is on the bus but not marked as published. It runs once a
        // minute, for events older than a minute.
        until_true("all events to be published", SAGA_TIMEOUT, async || {
            let unpublished = self.reader.read(&self.stack).await?.unpublished();
            Ok((unpublished.is_empty(), unpublished.join(", ")))
        })
        .await?;
        let snapshot = self.reader.read(&self.stack).await?;
        let (subscribers, active) = (snapshot.subscribers(), snapshot.active());
        ensure!(
            subscribers == active,
            "{subscribers:?} have a subscription, but {active:?} are active"
        );
        if results.iter().all(|result| result.violations.is_empty()) {
            for metric in &Metric::ALL[..CONCURRENCY] {
                let surplus = snapshot.surplus(*metric)?;
                ensure!(
                    surplus == 0,
                    "after all cases there are {surplus} kits of {metric} too many"
                );
            }
        }
        for CaseResult { case, onboarding, outcome, violations } in &mut results {
            if let Some(outcome) = *outcome
                && violations.is_empty()
            {
                *violations = invariants::violations(
                    &snapshot,
                    &self.reference,
                    *onboarding,
                    outcome,
                    Some(case),
                );
                if !violations.is_empty() {
                    terminal::print(format_args!(
                        "FAILED after all cases: {case}\n    {}",
                        violations.join("\n    ")
                    ));
                }
            }
        }
        Ok(results)
    }

    async fn run_concurrently(
        &self,
        cases: Vec<Case>,
        completed: usize,
        total: usize,
    ) -> Result<Vec<CaseResult>> {
        let pending = Mutex::new(VecDeque::from(interleave(cases)));
        let results = Mutex::new(Vec::new());
        let batch_lock = tokio::sync::Mutex::new(());
        let workers = Metric::ALL.iter().take(CONCURRENCY).map(async |metric| {
            let mut surplus = 0;
            loop {
                let next = pending.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                let Some(case) = next else { return anyhow::Ok(()) };
                let _lock =
                    if case.step.is_batched() { Some(batch_lock.lock().await) } else { None };
                let started = Instant::now();
                let key = Uuid::new_v4().to_string();
                let result = self.run_case(&case, &key, *metric, &mut surplus).await;
                let (outcome, violations) = match result {
                    Ok((outcome, violations)) => (Some(outcome), violations),
                    Err(error) => (None, vec![format!("{error:#}")]),
                };
                let onboarding = ids(&key).onboarding_id;
                let invocations = self.proxy.unwatch(&onboarding.to_string());
                let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                let number = completed + results.len() + 1;
                let seconds = started.elapsed().as_secs_f32();
                let label = match outcome {
                    _ if !violations.is_empty() => "FAILED",
                    Some(Outcome::Active) => "active",
                    _ => "undone",
                };
                terminal::print(format_args!(
                    "[{number:3}/{total}] {label} {seconds:5.1} s  {case}"
                ));
                if !violations.is_empty() {
                    terminal::print(format_args!(
                        "    onboarding {onboarding}\n    {}",
                        violations.join("\n    ")
                    ));
                    for ObservedInvocation { function, calls, outcome, .. } in invocations {
                        let calls: Vec<_> = calls.iter().map(|(_, call)| call.as_str()).collect();
                        terminal::print(format_args!(
                            "    {function}: {} -> {outcome:?}",
                            calls.join(", ")
                        ));
                    }
                }
                results.push(CaseResult { case, onboarding, outcome, violations });
            }
        });
        try_join_all(workers).await?;
        Ok(results.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs a case. Returns the outcome of the onboarding and the violations.
    async fn run_case(
        &self,
        case: &Case,
        key: &str,
        metric: Metric,
        surplus: &mut i64,
    ) -> Result<(Outcome, Vec<String>)> {
        let ids = ids(key);
        let onboarding = ids.onboarding_id;
        self.proxy.watch(onboarding.to_string(), key.to_owned());
        let target = FaultTarget {
            onboarding: onboarding.to_string(),
            function: case.step.function.clone(),
            call: case.call.name.clone(),
        };
        let armed = self.proxy.arm(target, case.fault);
        let refused = (case.step.phase == Phase::Undo).then(|| self.refuse_last_call(ids));
        self.register(key, ids, metric).await?;
        let outcome = self.wait_for_end(onboarding).await;
        armed.release();
        let outcome = outcome?;
        until_true("the fault to be complete", SETTLE_TIMEOUT, async || {
            let state = armed.state();
            let is_pending = state.first.is_some()
                && state.failed.is_none()
                && (case.fault.is_late() && state.late_response.is_none()
                    || case.fault == Fault::Duplicate && state.duplicate_response.is_none());
            Ok((!is_pending, format!("{state:?}")))
        })
        .await?;
        self.wait_until_idle(onboarding).await?;

        let mut violations = Vec::new();
        let state = armed.state();
        if state.first.is_none() {
            violations.push("the fault did not happen".to_owned());
        }
        violations.extend(state.failed);
        if let Some(refused) = refused {
            if outcome == Outcome::Active || refused.state().times == 0 {
                violations.push(format!("expected an undo; the outcome is {outcome:?}"));
            }
        } else if (outcome == Outcome::Undone) != case.fault.is_permanent() && !case.fault.kills() {
            violations.push(format!("unexpected outcome {outcome:?}"));
        }

        let started = Instant::now();
        loop {
            let snapshot = self.reader.read(&self.stack).await?;
            let mut found =
                invariants::violations(&snapshot, &self.reference, onboarding, outcome, Some(case));
            let current = snapshot.surplus(metric)?;
            if current != *surplus {
                found.push(format!(
                    "kits of {metric}: {current} too many, before the case {surplus}"
                ));
            }
            if found.is_empty() || started.elapsed() > SETTLE_TIMEOUT {
                *surplus = current;
                violations.extend(found);
                return Ok((outcome, violations));
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
}

/// Returns the ids of a registration over HTTP with this key.
fn ids(key: &str) -> Ids {
    let site_id = SiteId::registered(OperatorId::DEFAULT, "", key);
    Ids { site_id, onboarding_id: OnboardingId::from_site(site_id) }
}

/// Orders the cases deterministically so that similar ones are apart: slow cases, and cases that make the provider seem
/// unavailable.
fn interleave(cases: Vec<Case>) -> Vec<Case> {
    let mut numbered: Vec<_> = (0_u64..).zip(cases).collect();
    numbered.sort_by_key(|(number, _)| number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    numbered.into_iter().map(|(_, case)| case).collect()
}
