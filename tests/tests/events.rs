//! Events that other systems append: the log, the stream, the bus and the counts of `GET /network/summary`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use contracts::{Metric, names};
use futures_util::{future::try_join_all, try_join};
use reqwest::Method;
use serde_json::{Value, json};
use tests::{
    Stack,
    api::{Call, Response},
    capture::{Capture, event_id},
    events::{Appended, EventStream, append, cloud_event, entity, sequence},
    sites::{GOOD_CARD, registration},
    wait::{Poll, TIMEOUT, until, until_true},
};
use uuid::Uuid;

const METRIC: Metric = Metric::RelativeHumidity;

fn unique(what: &str) -> String {
    format!("{what}{}", Uuid::new_v4().simple())
}

/// A new operator with a key of the scope `operator`.
struct Operator {
    id: String,
    key: String,
    source: String,
}

impl Operator {
    async fn create(stack: &Stack) -> Result<Self> {
        let post = |path: &str, body: &Value| {
            Call::new(Method::POST, path).key(&unique("")).text(body.to_string())
        };
        let body = json!({ "name": unique("Events "), "plan": "professional" });
        let created = stack.call(post("/operators", &body)).await?;
        let operator = created.body["operatorId"].as_str().context("no operatorId")?;
        let body = json!({ "name": "Events", "scope": "operator", "operatorId": operator });
        let created = stack.call(post("/keys", &body)).await?;
        let key = created.body["key"].as_str().context("no key")?.to_owned();
        Ok(Self { id: operator.to_owned(), key, source: unique("test.") })
    }

    fn event(&self, id: &str, kind: &str, entity: &str, data: &Value) -> Value {
        cloud_event(&self.source, id, kind, entity, data)
    }

    async fn append(&self, stack: &Stack, event: &Value) -> Result<Response> {
        stack.call(append(event).bearing(&self.key)).await
    }

    /// Returns the details of the first page of `GET /events`.
    async fn list(&self, stack: &Stack, query: &str) -> Result<Vec<Value>> {
        let response = stack.call(Call::get(format!("/events?{query}")).bearing(&self.key)).await?;
        ensure!(response.status == 200, "{query}: {response}");
        Ok(response.body["events"].as_array().context("no events")?.clone())
    }

    async fn summary(&self, stack: &Stack) -> Result<Value> {
        let response = stack.call(Call::get("/network/summary").bearing(&self.key)).await?;
        ensure!(response.status == 200, "{response}");
        Ok(response.body)
    }

    /// Waits until the summary counts this number of events of the type.
    async fn wait_for_count(&self, stack: &Stack, kind: &str, count: u64) -> Result<()> {
        until_true(&format!("{count} {kind} in the summary"), TIMEOUT, async || {
            let summary = self.summary(stack).await?;
            Ok((counted(&summary, kind) == count, summary.to_string()))
        })
        .await
    }

    /// Waits until the summary counts each of the operator's events in the log once. Returns the summary.
    async fn wait_until_all_are_counted(&self, stack: &Stack) -> Result<Value> {
        until("the counts to equal the log", TIMEOUT, async || {
            let (logged, summary) = (self.logged(stack).await?, self.summary(stack).await?);
            Ok(if counts(&summary) == logged {
                Poll::Ready(summary)
            } else {
                Poll::Pending(format!("{summary}, in the log: {logged:?}"))
            })
        })
        .await
    }

    /// Returns the number of the operator's events in the log, by day and type.
    async fn logged(&self, stack: &Stack) -> Result<Counts> {
        let mut logged = Counts::new();
        for row in stack.rows_with(names::EVENTS, "operatorId", &self.id).await? {
            let detail: Value = serde_json::from_str(row["detail"].as_str().context("no detail")?)?;
            let text = |name: &str| detail["metadata"][name].as_str().context("no metadata");
            let day = text("occurredAt")?.split('T').next().unwrap_or_default();
            *logged.entry((day.to_owned(), text("type")?.to_owned())).or_default() += 1;
        }
        Ok(logged)
    }
}

/// The number of events by day and type.
type Counts = BTreeMap<(String, String), u64>;

/// Returns all counts of events in a summary.
fn counts(summary: &Value) -> Counts {
    let mut counts = Counts::new();
    for day in summary["events"].as_array().into_iter().flatten() {
        for (kind, count) in day["types"].as_object().into_iter().flatten() {
            let day = day["day"].as_str().unwrap_or_default().to_owned();
            counts.insert((day, kind.clone()), count.as_u64().unwrap_or_default());
        }
    }
    counts
}

/// Returns the number of events of a type in a summary.
fn counted(summary: &Value, kind: &str) -> u64 {
    counts(summary).iter().filter(|((_, of), _)| of == kind).map(|(_, count)| count).sum()
}

fn sequences(details: &[Value]) -> Vec<u64> {
    details.iter().map(sequence).collect()
}

#[tokio::test]
async fn an_appended_event_is_in_the_log_on_the_stream_and_on_the_bus() -> Result<()> {
    let stack = Stack::connect().await?;
    let operator = Operator::create(&stack).await?;
    let pattern = json!({ "source": [operator.source] });
    let capture = Capture::start_with(&stack, &pattern).await?;
    let mut stream = EventStream::from_now(&stack).await?;
    let (kind, instrument) = (unique("Calibrated"), format!("acme.instrument/{}", unique("sn-")));
    let correlation = unique("visit-");

    let mut appended = Vec::new();
    for number in 1..=3_u32 {
        let data = json!({ "gas": "zero", "offset": 0.25 * f64::from(number) });
        let mut event = operator.event(&format!("c-{number}"), &kind, &instrument, &data);
        event["correlationid"] = json!(correlation);
        let first = Appended::from_response(&operator.append(&stack, &event).await?)?;
        assert_eq!(first.sequence, u64::from(number));
        let repeat = Appended::from_response(&operator.append(&stack, &event).await?)?;
        assert_eq!(repeat, first, "a repeat must get the same response");
        event["data"]["gas"] = json!("span");
        let changed = operator.append(&stack, &event).await?;
        assert_eq!(changed.status, 409, "{changed}");
        appended.push(first);
    }

    for query in [
        format!("entity={instrument}"),
        format!("type={kind}"),
        format!("correlationId={correlation}"),
    ] {
        let listed = until(&query, TIMEOUT, async || {
            let listed = operator.list(&stack, &query).await?;
            Ok(if listed.len() == 3 { Poll::Ready(listed) } else { Poll::Pending(listed.len()) })
        })
        .await?;
        assert_eq!(sequences(&listed), [3, 2, 1], "{query}: newest first");
        assert_eq!(listed[0]["data"]["offset"], 0.75);
        assert_eq!(entity(&listed[0]), instrument);
        assert_eq!(listed[0]["metadata"]["cloudEvent"]["id"], "c-3");
    }
    let after = operator.list(&stack, &format!("entity={instrument}&after=1")).await?;
    assert_eq!(sequences(&after), [2, 3], "after: oldest first");

    let mut on_stream = Vec::new();
    let ids: BTreeSet<_> = appended.iter().map(|it| it.event_id.clone()).collect();
    while sequences(&on_stream).into_iter().collect::<BTreeSet<_>>().len() < 3 {
        let new = stream.take(&stack).await?;
        on_stream.extend(new.into_iter().filter(|detail| entity(detail) == instrument));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // The stream may repeat events, also later ones. The first occurrences are in order.
    let mut seen = BTreeSet::new();
    let mut first_occurrences = on_stream.clone();
    first_occurrences.retain(|detail| seen.insert(detail["metadata"]["eventId"].to_string()));
    assert_eq!(sequences(&first_occurrences), [1, 2, 3]);

    let on_bus = capture
        .take_until(&stack, TIMEOUT, |events| {
            events.iter().map(|it| event_id(it).to_owned()).collect::<BTreeSet<_>>() == ids
        })
        .await?;
    assert_eq!(on_bus.iter().map(event_id).map(str::to_owned).collect::<BTreeSet<_>>(), ids);
    assert!(on_bus.iter().all(|it| it["detail-type"] == kind.as_str()), "{on_bus:?}");
    assert!(on_stream.contains(&on_bus[0]["detail"]), "{on_bus:?} {on_stream:?}");
    capture.stop(&stack).await
}

#[tokio::test]
async fn two_operators_neither_read_nor_write_each_others_events() -> Result<()> {
    let stack = Stack::connect().await?;
    let (a, b) = try_join!(Operator::create(&stack), Operator::create(&stack))?;
    let (kind, instrument) = (unique("Moved"), format!("acme.instrument/{}", unique("sn-")));
    for (operator, place) in [(&a, "roof"), (&b, "cellar")] {
        let event = operator.event("m-1", &kind, &instrument, &json!({ "to": place }));
        let appended = Appended::from_response(&operator.append(&stack, &event).await?)?;
        assert_eq!(appended.sequence, 1, "both operators have an entity of this name");
    }
    // The source belongs to A, also for an id that A never used.
    let stolen = a.event("m-2", &kind, &instrument, &json!({ "to": "nowhere" }));
    let refused = b.append(&stack, &stolen).await?;
    assert_eq!(refused.status, 409, "{refused}");

    for (operator, place) in [(&a, "roof"), (&b, "cellar")] {
        for query in [format!("entity={instrument}"), format!("type={kind}")] {
            let listed = operator.list(&stack, &query).await?;
            assert_eq!(listed.len(), 1, "{query}: {listed:?}");
            assert_eq!(listed[0]["data"]["to"], place);
        }
        operator.wait_for_count(&stack, &kind, 1).await?;
    }
    let site = unique("site of the default operator ");
    stack.deliver(&[METRIC], 1).await?;
    let ids = stack.register(&unique(""), &registration(&site, &[METRIC], GOOD_CARD)).await?;
    stack.wait_until_active(ids.site_id).await?;
    for query in [
        format!("entity=site/{}", ids.site_id),
        format!("correlationId={}", ids.onboarding_id),
        "type=SiteActivated".to_owned(),
    ] {
        assert_eq!(a.list(&stack, &query).await?, Vec::<Value>::new(), "{query}");
    }
    let own = stack.call(Call::get(format!("/events?entity=site/{}", ids.site_id))).await?;
    assert_eq!(own.body["events"].as_array().map(Vec::len), Some(2), "{own}");
    assert!(!own.body.to_string().contains(GOOD_CARD), "the payment method is shown: {own}");
    Ok(())
}

#[tokio::test]
async fn both_versions_of_an_event_are_on_the_bus_and_the_newest_is_on_the_stream() -> Result<()> {
    let stack = Stack::connect().await?;
    let capture = Capture::start(&stack).await?;
    let mut stream = EventStream::from_now(&stack).await?;
    stack.deliver(&[METRIC], 1).await?;
    let site = registration(&unique("versions "), &[METRIC], GOOD_CARD);
    let ids = stack.register(&unique(""), &site).await?;
    stack.wait_until_active(ids.site_id).await?;
    let of_site = |event: &Value| event["detail"]["data"]["siteId"] == json!(ids.site_id);
    let versions = |events: &[Value]| -> BTreeMap<String, Value> {
        let events = events.iter().filter(|event| of_site(event));
        let named = events.map(|event| {
            let kind = event["detail-type"].as_str().unwrap_or_default();
            (kind.to_owned(), event["detail"].clone())
        });
        named.filter(|(kind, _)| kind.starts_with("AlertingConfigured")).collect()
    };
    let events = capture.take_until(&stack, TIMEOUT, |events| versions(events).len() == 2).await?;
    let versions = versions(&events);
    let (first, second) = (&versions["AlertingConfigured"], &versions["AlertingConfigured.v2"]);
    assert_eq!(first["metadata"]["version"], 1);
    assert_eq!(second["metadata"]["version"], 2);
    assert_eq!(first["metadata"]["eventId"], second["metadata"]["eventId"]);
    let limits = second["data"]["limits"].as_array().context("no limits")?;
    assert_eq!(first["data"]["rules"], limits.len());
    let mut found = Vec::new();
    while found.is_empty() {
        found = stream.take(&stack).await?;
        found.retain(|detail| detail["metadata"]["eventId"] == second["metadata"]["eventId"]);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(&found[0], second);
    capture.stop(&stack).await
}

/// The counts are rebuilt from the log while other events arrive. At the end, each event was counted once: those before
/// the rebuild, and those that arrived during it.
#[tokio::test]
async fn rebuilding_the_network_counts_while_events_go_on_changes_nothing() -> Result<()> {
    const ROUNDS: u64 = 4;
    const ENTITIES: u64 = 10;
    let stack = Stack::connect().await?;
    let operator = Operator::create(&stack).await?;
    stack.deliver(&[METRIC], 1).await?;
    let site = registration(&unique("rebuilt "), &[METRIC], GOOD_CARD);
    let created = stack.call(Call::post_site(&unique(""), &site).bearing(&operator.key)).await?;
    ensure!(created.status == 202, "{created}");
    // The activation is the last event of the onboarding.
    operator.wait_for_count(&stack, "SiteActivated", 1).await?;
    let kind = unique("Counted");
    let append_round = async |round: u64| {
        let events = (0..ENTITIES).map(|number| {
            let id = format!("{round}-{number}");
            operator.event(&id, &kind, &format!("acme.thing/{number}"), &json!({}))
        });
        let events: Vec<_> = events.collect();
        for event in events {
            Appended::from_response(&operator.append(&stack, &event).await?)?;
        }
        anyhow::Ok(())
    };
    for round in 0..ROUNDS {
        append_round(round).await?;
    }
    let before = operator.wait_until_all_are_counted(&stack).await?;
    assert_eq!(counted(&before, &kind), ROUNDS * ENTITIES, "{before}");
    let sites = json!({ "ACTIVE": 1, "DECOMMISSIONED": 0, "ONBOARDING": 0, "REJECTED": 0 });
    assert_eq!(before["sites"], sites, "{before}");

    let rebuilding = async {
        let replaying = stack.clone();
        let replay = move || replaying.fieldctl(&["consumers", "replay", "watch-network", "--yes"]);
        let output = tokio::task::spawn_blocking(replay).await??;
        ensure!(output.code == 0, "{output:?}");
        Ok(())
    };
    let appending = async {
        for round in ROUNDS..2 * ROUNDS {
            append_round(round).await?;
        }
        anyhow::Ok(())
    };
    try_join!(rebuilding, appending)?;
    operator.wait_until_all_are_counted(&stack).await?;
    // If an event is counted twice, the second time may come late.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = operator.summary(&stack).await?;
    assert_eq!(counts(&after), operator.logged(&stack).await?, "{after}");
    assert_eq!(counted(&after, &kind), 2 * ROUNDS * ENTITIES, "{after}");
    assert_eq!(after["sites"], before["sites"], "before: {before}, after: {after}");
    let long = stack.call(Call::get("/network/summary?from=2020-01-01")).await?;
    ensure!(long.status == 400, "a summary covers a bounded number of days: {long}");
    Ok(())
}

#[tokio::test]
async fn concurrent_appends_to_one_entity_have_no_gap() -> Result<()> {
    const CALLERS: usize = 8;
    const EACH: usize = 5;
    let stack = Stack::connect().await?;
    let operator = Operator::create(&stack).await?;
    let kind = unique("Contended");
    let entity = format!("acme.counter/{}", unique(""));
    let caller = async |caller: usize| {
        let mut appended = Vec::new();
        for number in 0..EACH {
            let id = format!("{caller}-{number}");
            let event = operator.event(&id, &kind, &entity, &json!({ "caller": caller }));
            let what = format!("event {id} to be appended");
            let response = until(&what, TIMEOUT, async || {
                let response = operator.append(&stack, &event).await?;
                Ok(match response.status {
                    503 => {
                        ensure!(!response.header("retry-after").is_empty(), "{response}");
                        Poll::Pending(response)
                    }
                    _ => Poll::Ready(response),
                })
            });
            appended.push(Appended::from_response(&response.await?)?.sequence);
        }
        anyhow::Ok(appended)
    };
    let mut appended = try_join_all((0..CALLERS).map(caller)).await?.concat();
    appended.sort_unstable();
    let expected: Vec<u64> = (1..).take(CALLERS * EACH).collect();
    assert_eq!(appended, expected);
    let rows = stack.rows(names::EVENT_GUARDS).await?;
    let source = json!(operator.source).to_string();
    let guards = rows.iter().filter(|row| row.to_string().contains(source.trim_matches('"')));
    // One guard for each event, and the claim of the source.
    assert_eq!(guards.count(), CALLERS * EACH + 1);
    Ok(())
}
