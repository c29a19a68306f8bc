//! The fault matrix: every fault at every call of every step of an onboarding and of its undo, on the deployed
//! local stack. `make fault-matrix` runs it; docs/fault-matrix.md describes it.

mod books;
mod callers;
mod faults;
mod judge;
mod plan;
mod provider;
mod proxy;
mod report;

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
use contracts::{Metric, OnboardingId, SiteId, names};
use futures_util::future::try_join_all;
use tests::{
    Stack,
    api::Call,
    sites::{GOOD_CARD, Ids, registration, residue},
    wait::{Look, TIMEOUT, until, until_true},
};
use uuid::Uuid;

use crate::{
    books::Reader,
    faults::Fault,
    judge::{End, Reference, Trace},
    plan::{Case, Phase, Step},
    proxy::{Armed, Proxy, Seen, Spot},
};

/// The number of concurrent onboardings. Each has its own metric, so that its kits can be counted.
const SIDE_BY_SIDE: usize = 12;
/// Longer than the lease of an interrupted payment plus the delays of a command that waits for it.
const LONGEST_SAGA: Duration = Duration::from_mins(4);
/// The time limit for what follows an onboarding's end: events in transit, or a duplicate delivery.
const AFTERMATH: Duration = Duration::from_secs(45);

/// Tries every fault at every call of every step.
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
    machines: aws_sdk_sfn::Client,
    proxy: Arc<Proxy>,
    reader: Reader,
    reference: Reference,
    /// The function and the call that are refused in a case of an undo: the last call of the last step.
    last: (String, String),
}

/// A case that was run.
struct Ran {
    case: Case,
    onboarding: OnboardingId,
    end: Option<End>,
    wrong: Vec<String>,
}

fn port(variable: &str, default: u16) -> Result<u16> {
    let Ok(text) = env::var(variable) else { return Ok(default) };
    text.parse().with_context(|| format!("{variable} is {text:?}"))
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
    let metrics = &Metric::ALL[..SIDE_BY_SIDE];
    stack.deliver(metrics, 1000).await?;

    let machines = aws_sdk_sfn::Client::new(stack.config());
    let reference = Reference { active: Trace::default(), undone: Trace::default() };
    let reader = Reader::default();
    let last = (String::new(), String::new());
    let mut matrix = Matrix { stack, machines, proxy, reader, reference, last };
    let calls = matrix.discover(&steps).await?;
    let all = plan::all(&steps, &calls);
    let cases = match &args.case {
        Some(name) => all.iter().filter(|case| case.is_meant_by(name)).cloned().collect(),
        None if args.subset => plan::subset(&all),
        None => all.clone(),
    };
    ensure!(!cases.is_empty(), "there is no such case of the steps and calls above");
    if args.list {
        for case in &cases {
            terminal::print(case);
        }
        return Ok(true);
    }

    let ran = matrix.run_all(&cases).await?;
    let failed: Vec<_> = ran.iter().filter(|ran| !ran.wrong.is_empty()).collect();
    terminal::print(format_args!("\n{} of {} cases passed", ran.len() - failed.len(), ran.len()));
    for Ran { case, .. } in &failed {
        terminal::print(format_args!("failed; alone: make fault-matrix CASE='{case}'"));
    }
    if failed.is_empty() && cases.len() == all.len() {
        let ran: Vec<_> = ran.iter().filter_map(|ran| Some((&ran.case, ran.end?))).collect();
        report::write(&steps, &calls, &ran)?;
    }
    Ok(failed.is_empty())
}

impl Matrix {
    /// Records the calls of undisturbed onboardings, with new and with warm processes.
    async fn discover(&mut self, steps: &[Step]) -> Result<HashMap<String, Vec<plan::Call>>> {
        let functions: Vec<_> = steps.iter().map(|step| step.function.clone()).collect();
        let forward = steps.iter().rfind(|step| step.phase == Phase::Forward);
        let last_step = forward.context("a last step")?;
        let (mut cold, mut warm) = (Vec::new(), Vec::new());
        // The functions that start an onboarding are warmed up, so that they do not count as cold below.
        self.undisturbed(false).await?;
        self.proxy.only_cold(&functions).await?;
        self.proxy.only_cold(&[]).await?;
        for round in 0..3 {
            let seen = if round == 0 { &mut cold } else { &mut warm };
            let (ids, calls) = self.undisturbed(false).await?;
            let of_last = calls.iter().filter(|seen| seen.function == last_step.function);
            let call = of_last.flat_map(|seen| &seen.calls).next_back();
            let (_, call) = call.with_context(|| format!("no call of {}", last_step.name))?;
            self.last = (last_step.function.clone(), call.clone());
            seen.extend(calls);
            self.reference.active = self.settled(ids.onboarding_id, End::Active).await?;
            self.stack.site_active(ids.site_id).await?;
            let (ids, calls) = self.undisturbed(true).await?;
            seen.extend(calls);
            self.reference.undone = self.settled(ids.onboarding_id, End::Undone).await?;
            let left = residue(&self.stack, ids).await?;
            ensure!(left.is_empty(), "undisturbed, the undoing left {left:?}");
        }
        let calls = plan::calls(steps, &cold, &warm)?;
        for step in steps {
            let told = calls[&step.name]
                .iter()
                .map(|call| format!("{}{}", call.name, if call.cold { " (cold)" } else { "" }));
            terminal::print(format_args!(
                "{:24} {}",
                step.name,
                told.collect::<Vec<_>>().join(", ")
            ));
        }
        Ok(calls)
    }

    async fn undisturbed(&self, undo: bool) -> Result<(Ids, Vec<Seen>)> {
        let key = Uuid::new_v4().to_string();
        let ids = ids(&key);
        self.proxy.watch(ids.onboarding_id.to_string(), key.clone());
        if undo {
            self.refuse_last(ids);
        }
        self.register(&key, ids, Metric::ALL[0]).await?;
        let end = self.over(ids.onboarding_id).await?;
        ensure!((end == End::Undone) == undo, "undisturbed, it ended as {end:?}");
        self.quiet(ids.onboarding_id).await?;
        Ok((ids, self.proxy.unwatch(&ids.onboarding_id.to_string())))
    }

    /// Returns what an onboarding left, once all its events are published.
    async fn settled(&self, onboarding: OnboardingId, end: End) -> Result<Trace> {
        until("all that an undisturbed onboarding leaves", TIMEOUT, async || {
            let books = self.reader.now(&self.stack).await?;
            let trace = Trace::of(&books, onboarding);
            let itself = Reference { active: trace.clone(), undone: trace.clone() };
            let wrong = judge::wrong(&books, &itself, onboarding, end, None);
            Ok(if wrong.is_empty() { Look::Found(trace) } else { Look::Saw(wrong.join("; ")) })
        })
        .await
    }

    fn refuse_last(&self, ids: Ids) -> Arc<Armed> {
        let (function, call) = self.last.clone();
        self.proxy.refuse(Spot { onboarding: ids.onboarding_id.to_string(), function, call })
    }

    /// Registers a site as a client that repeats its request with the same key until it gets a response.
    async fn register(&self, key: &str, ids: Ids, metric: Metric) -> Result<()> {
        let registration = registration(&format!("matrix {key}"), &[metric], GOOD_CARD);
        let registered = until("the registration to be accepted", TIMEOUT, async || {
            let answer = self.stack.call(Call::post_site(key, &registration)).await?;
            Ok(match answer.status {
                500.. | 429 => Look::Saw(answer),
                _ => Look::Found(Ids::accepted(&answer)?),
            })
        });
        let registered = registered.await?;
        ensure!(registered == ids, "registered as {registered:?}, and not {ids:?}");
        Ok(())
    }

    /// Waits until the onboarding has ended.
    async fn over(&self, onboarding: OnboardingId) -> Result<End> {
        let arn = self.stack.onboarding_arn(onboarding)?;
        until("the onboarding to be over", LONGEST_SAGA, async || {
            let described = machines::describe(&self.machines, &arn).await;
            let Some(described) = described.context("the execution can't be described")? else {
                return Ok(Look::Saw("not started".to_owned()));
            };
            let error = described.error().unwrap_or_default();
            Ok(match described.status() {
                ExecutionStatus::Running => {
                    tokio::time::sleep(Duration::from_millis(350)).await;
                    Look::Saw("it runs".to_owned())
                }
                ExecutionStatus::Succeeded => Look::Found(End::Active),
                ExecutionStatus::Failed if error != "CompensationIncomplete" => {
                    Look::Found(End::Undone)
                }
                other => bail!("it ended as {other:?}: {error} {:?}", described.cause()),
            })
        })
        .await
    }

    /// Waits until no function processes anything of the onboarding.
    async fn quiet(&self, onboarding: OnboardingId) -> Result<()> {
        until_true("its last invocation to be over", AFTERMATH, async || {
            let busy = self.proxy.busy(&onboarding.to_string());
            Ok((busy == 0, format!("{busy} invocations")))
        })
        .await
    }

    async fn run_all(&self, cases: &[Case]) -> Result<Vec<Ran>> {
        let (cold, warm): (Vec<_>, Vec<_>) = cases.iter().cloned().partition(|it| it.call.cold);
        let mut ran = self.run_side_by_side(warm, 0, cases.len()).await?;
        if !cold.is_empty() {
            let functions: Vec<_> = cold.iter().map(|case| case.step.function.clone()).collect();
            self.proxy.only_cold(&functions).await?;
            ran.extend(self.run_side_by_side(cold, ran.len(), cases.len()).await?);
            self.proxy.only_cold(&[]).await?;
        }

        // Check again when nothing is in progress any more, including commands that wait in their queue.
        for queue in [names::INITIALIZE_SUBSCRIPTION, names::CANCEL_SUBSCRIPTION] {
            let queue = self.stack.queue_url(queue).await?;
            until_true("the commands' queue to be empty", LONGEST_SAGA, async || {
                let (waiting, in_work) = self.stack.depth(&queue).await?;
                Ok((waiting + in_work == 0, format!("{waiting} waiting, {in_work} in work")))
            })
            .await?;
        }
        // An event that is on the bus but not marked as published is published again by sweep-events, which
        // runs once a minute and takes events older than a minute.
        until_true("all events to be published", LONGEST_SAGA, async || {
            let waiting = self.reader.now(&self.stack).await?.unpublished();
            Ok((waiting.is_empty(), waiting.join(", ")))
        })
        .await?;
        let books = self.reader.now(&self.stack).await?;
        let (paying, in_service) = (books.subscribers(), books.in_service());
        ensure!(paying == in_service, "{paying:?} pay, and {in_service:?} are in service");
        if ran.iter().all(|ran| ran.wrong.is_empty()) {
            for metric in &Metric::ALL[..SIDE_BY_SIDE] {
                let surplus = books.surplus(*metric)?;
                ensure!(surplus == 0, "at last there are {surplus} kits of {metric} too many");
            }
        }
        for Ran { case, onboarding, end, wrong } in &mut ran {
            if let Some(end) = *end
                && wrong.is_empty()
            {
                *wrong = judge::wrong(&books, &self.reference, *onboarding, end, Some(case));
                if !wrong.is_empty() {
                    terminal::print(format_args!(
                        "FAILED at last: {case}\n    {}",
                        wrong.join("\n    ")
                    ));
                }
            }
        }
        Ok(ran)
    }

    async fn run_side_by_side(
        &self,
        cases: Vec<Case>,
        before: usize,
        all: usize,
    ) -> Result<Vec<Ran>> {
        let waiting = Mutex::new(VecDeque::from(spread(cases)));
        let ran = Mutex::new(Vec::new());
        let batched = tokio::sync::Mutex::new(());
        let lanes = Metric::ALL.iter().take(SIDE_BY_SIDE).map(async |metric| {
            let mut surplus = 0;
            loop {
                let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                let Some(case) = next else { return anyhow::Ok(()) };
                let _turn = if case.step.is_batched() { Some(batched.lock().await) } else { None };
                let begun = Instant::now();
                let key = Uuid::new_v4().to_string();
                let tried = self.run_case(&case, &key, *metric, &mut surplus).await;
                let (end, wrong) = match tried {
                    Ok((end, wrong)) => (Some(end), wrong),
                    Err(error) => (None, vec![format!("{error:#}")]),
                };
                let onboarding = ids(&key).onboarding_id;
                let seen = self.proxy.unwatch(&onboarding.to_string());
                let mut ran = ran.lock().unwrap_or_else(PoisonError::into_inner);
                let number = before + ran.len() + 1;
                let seconds = begun.elapsed().as_secs_f32();
                let told = match end {
                    _ if !wrong.is_empty() => "FAILED",
                    Some(End::Active) => "active",
                    _ => "undone",
                };
                terminal::print(format_args!("[{number:3}/{all}] {told} {seconds:5.1} s  {case}"));
                if !wrong.is_empty() {
                    terminal::print(format_args!(
                        "    onboarding {onboarding}\n    {}",
                        wrong.join("\n    ")
                    ));
                    for Seen { function, calls, outcome, .. } in seen {
                        let calls: Vec<_> = calls.iter().map(|(_, call)| call.as_str()).collect();
                        terminal::print(format_args!(
                            "    {function}: {} -> {outcome:?}",
                            calls.join(", ")
                        ));
                    }
                }
                ran.push(Ran { case, onboarding, end, wrong });
            }
        });
        try_join_all(lanes).await?;
        Ok(ran.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs a case, and returns how the onboarding ended and what is wrong.
    async fn run_case(
        &self,
        case: &Case,
        key: &str,
        metric: Metric,
        surplus: &mut i64,
    ) -> Result<(End, Vec<String>)> {
        let ids = ids(key);
        let onboarding = ids.onboarding_id;
        self.proxy.watch(onboarding.to_string(), key.to_owned());
        let spot = Spot {
            onboarding: onboarding.to_string(),
            function: case.step.function.clone(),
            call: case.call.name.clone(),
        };
        let armed = self.proxy.arm(spot, case.fault);
        let refused = (case.step.phase == Phase::Undo).then(|| self.refuse_last(ids));
        self.register(key, ids, metric).await?;
        let end = self.over(onboarding).await;
        armed.release();
        let end = end?;
        until_true("the fault to be over", AFTERMATH, async || {
            let happened = armed.happened();
            let waits = happened.first.is_some()
                && happened.failed.is_none()
                && (case.fault.is_late() && happened.landed.is_none()
                    || case.fault == Fault::Duplicate && happened.delivered_twice.is_none());
            Ok((!waits, format!("{happened:?}")))
        })
        .await?;
        self.quiet(onboarding).await?;

        let mut wrong = Vec::new();
        let happened = armed.happened();
        if happened.first.is_none() {
            wrong.push("the fault did not happen".to_owned());
        }
        wrong.extend(happened.failed);
        if let Some(refused) = refused {
            if end == End::Active || refused.happened().times == 0 {
                wrong.push(format!("to be undone, it ended as {end:?}"));
            }
        } else if (end == End::Undone) != case.fault.is_final() && !case.fault.kills() {
            wrong.push(format!("it ended as {end:?}"));
        }

        let begun = Instant::now();
        loop {
            let books = self.reader.now(&self.stack).await?;
            let mut left = judge::wrong(&books, &self.reference, onboarding, end, Some(case));
            let there = books.surplus(metric)?;
            if there != *surplus {
                left.push(format!("kits of {metric}: {there} too many, {surplus} before"));
            }
            if left.is_empty() || begun.elapsed() > AFTERMATH {
                *surplus = there;
                wrong.extend(left);
                return Ok((end, wrong));
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
}

/// Returns the ids that a registration over HTTP with that key gets.
fn ids(key: &str) -> Ids {
    let site_id = SiteId::registered("", key);
    Ids { site_id, onboarding_id: OnboardingId::from_site(site_id) }
}

/// Orders the cases deterministically so that similar ones are apart: those that take long, and those that make
/// the provider seem unavailable.
fn spread(cases: Vec<Case>) -> Vec<Case> {
    let mut numbered: Vec<_> = (0_u64..).zip(cases).collect();
    numbered.sort_by_key(|(number, _)| number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    numbered.into_iter().map(|(_, case)| case).collect()
}
