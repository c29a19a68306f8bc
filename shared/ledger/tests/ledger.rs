//! Tests who may replay a failure, and how its row changes.

use contracts::{SiteId, Timestamp};
use ledger::{
    ClaimOptions, ClaimResult, DiscardResult, ErrorInfo, FailedWork, FailureId, FailureRow,
    FinishResult, Kind, Ledger, MAX_REPLAYS, Payload, ReplayOutcome, ReplayState, Status,
};
use serde_json::{Value, json};
use testkit::{
    Dynamo,
    cloud::{self, Cloud},
    dynamo::FAILURES,
    rng::Rng,
    sample::{self, noon},
};
use uuid::Uuid;

const FORCE: ClaimOptions = ClaimOptions { over_limit: true, in_doubt: false };
const DESPITE_DOUBT: ClaimOptions = ClaimOptions { over_limit: false, in_doubt: true };

/// The number of failures that are listed and counted.
const FAILURE_COUNT: u32 = 10_050;

/// Returns a failed piece of work whose payload and identity are this text.
fn failed_work(work: &str) -> FailedWork {
    let mut hash = [0; 32];
    hash[..work.len()].copy_from_slice(work.as_bytes());
    FailedWork {
        id: FailureId::new("project-site", hash),
        source: "project-site".to_owned(),
        kind: Kind::FunctionFailed,
        payload: Payload::Text(work.to_owned()),
        error: ErrorInfo::new("Transient", "no response"),
        correlation_id: None,
        site_id: None,
        execution: None,
    }
}

struct World {
    dynamo: Dynamo,
    ledger: Ledger,
}

impl World {
    async fn start() -> Self {
        let dynamo = Dynamo::start().await;
        Self { ledger: Ledger { failures: dynamo.table(FAILURES) }, dynamo }
    }

    /// Records a failure of the named work. The message arrives `second` seconds after noon, and `second` is also its
    /// id.
    async fn fail(&self, name: &str, second: u32) -> FailureId {
        let failure = failed_work(name);
        let at = noon(second.into());
        self.ledger.record(&failure, &second.to_string(), at).await.expect("recorded");
        failure.id
    }

    async fn claim(&self, id: FailureId, replay: u128, options: ClaimOptions) -> ClaimResult {
        let by = Some("an operator");
        self.ledger
            .claim(id, Uuid::from_u128(replay), by, options, noon(60))
            .await
            .expect("a claim")
    }

    async fn finish(&self, id: FailureId, replay: u128, outcome: ReplayOutcome) -> FinishResult {
        self.ledger.finish(id, Uuid::from_u128(replay), &outcome).await.expect("a result")
    }

    async fn row(&self, id: FailureId) -> FailureRow {
        self.ledger.get(id).await.expect("a table").expect("the row")
    }
}

fn failed(message: &str) -> ReplayOutcome {
    ReplayOutcome::Failed(ErrorInfo::new("Internal", message))
}

#[tokio::test]
async fn of_two_concurrent_claims_exactly_one_succeeds() {
    let world = World::start().await;
    for name in 0..20 {
        let id = world.fail(&name.to_string(), 1).await;
        let (first, second) = tokio::join!(
            world.claim(id, 1, ClaimOptions::default()),
            world.claim(id, 2, ClaimOptions::default())
        );
        let row = world.row(id).await;
        let holder = row.replay.clone().expect("a claim");
        match (first, second) {
            (ClaimResult::Claimed(claimed), ClaimResult::InDoubt(seen))
            | (ClaimResult::InDoubt(seen), ClaimResult::Claimed(claimed)) => {
                assert_eq!((*claimed, seen), (row.clone(), holder));
            }
            both => panic!("{both:?}"),
        }
        assert_eq!((row.replays, row.status), (1, Status::Open));
    }
}

#[tokio::test]
async fn a_successful_replay_closes_the_failure_once() {
    let world = World::start().await;
    let id = world.fail("a", 1).await;
    assert!(matches!(world.claim(id, 1, ClaimOptions::default()).await, ClaimResult::Claimed(_)));
    assert_eq!(world.finish(id, 2, ReplayOutcome::Done).await, FinishResult::ClaimLost);
    assert_eq!(world.finish(id, 1, ReplayOutcome::Done).await, FinishResult::Replayed);
    // The response was lost, so the call is repeated.
    assert_eq!(world.finish(id, 1, ReplayOutcome::Done).await, FinishResult::Replayed);
    let row = world.row(id).await;
    let replay = row.replay.expect("a replay");
    assert_eq!((row.status, replay.state), (Status::Replayed, ReplayState::Ended));
    assert_eq!((replay.at, replay.by.as_deref()), (noon(60), Some("an operator")));
    let closed = ClaimResult::NotOpen(Status::Replayed);
    assert_eq!(world.claim(id, 3, ClaimOptions { over_limit: true, in_doubt: true }).await, closed);
}

#[tokio::test]
async fn a_repeated_claim_of_the_same_replay_succeeds() {
    let world = World::start().await;
    let id = world.fail("a", 1).await;
    let first = world.claim(id, 1, ClaimOptions::default()).await;
    assert_eq!(world.claim(id, 1, ClaimOptions::default()).await, first);
    assert!(matches!(first, ClaimResult::Claimed(row) if row.replays == 1));
}

#[tokio::test]
async fn a_replay_that_was_not_sent_does_not_count() {
    let world = World::start().await;
    let id = world.fail("a", 1).await;
    let before = world.row(id).await;
    for replay in 1..=2 * u128::from(MAX_REPLAYS) {
        let claim = world.claim(id, replay, ClaimOptions::default()).await;
        assert!(matches!(claim, ClaimResult::Claimed(_)), "{claim:?}");
        for _ in 0..2 {
            let result = world.finish(id, replay, ReplayOutcome::NotSent).await;
            assert_eq!(result, FinishResult::Unchanged(Status::Open));
            assert_eq!(world.row(id).await.replays, before.replays);
        }
    }
    assert_eq!(FailureRow { replay: None, ..world.row(id).await }, before);
}

#[tokio::test]
async fn a_replay_with_nothing_to_do_closes_the_failure_with_the_reason() {
    let world = World::start().await;
    let id = world.fail("a", 1).await;
    assert!(matches!(world.claim(id, 1, ClaimOptions::default()).await, ClaimResult::Claimed(_)));
    let nothing_to_do = ReplayOutcome::NothingToDo("its task has ended".to_owned());
    assert_eq!(world.finish(id, 1, nothing_to_do).await, FinishResult::Replayed);
    assert_eq!(world.row(id).await.note.as_deref(), Some("its task has ended"));
}

#[tokio::test]
async fn a_replay_with_an_unknown_outcome_leaves_the_failure_open_and_not_in_doubt() {
    let world = World::start().await;
    let id = world.fail("a", 1).await;
    assert!(matches!(world.claim(id, 1, ClaimOptions::default()).await, ClaimResult::Claimed(_)));
    assert_eq!(
        world.finish(id, 1, ReplayOutcome::Unknown).await,
        FinishResult::Unchanged(Status::Open)
    );
    assert_eq!(world.row(id).await.replays, 1);
    assert!(matches!(world.claim(id, 2, ClaimOptions::default()).await, ClaimResult::Claimed(_)));
    // Something else finishes the failure in the meantime.
    assert!(world.ledger.mark_replayed(id, "by its execution").await.expect("a table"));
    assert!(!world.ledger.mark_replayed(id, "once more").await.expect("a table"));
    assert_eq!(world.finish(id, 2, ReplayOutcome::Done).await, FinishResult::Replayed);
    assert_eq!(world.row(id).await.note.as_deref(), Some("by its execution"));
}

#[tokio::test]
async fn the_sites_of_rows_of_earlier_versions_are_read_from_the_rows() {
    let world = World::start().await;
    let site = sample::saga("a").site_id;
    let old = |id: u128, site: Option<SiteId>| {
        let row = json!({
            "id": Uuid::from_u128(id), "source": "store-readings", "kind": "QUARANTINED",
            "status": "OPEN", "error": { "name": "UnknownSensor", "message": "m" },
            "fingerprint": "0123456789ab", "attempts": 1, "replays": 0, "payload": "{}",
            "firstAt": noon(0), "lastAt": noon(0), "siteId": site, "messages": ["m"],
        });
        let mut row = row.as_object().expect("a row").clone();
        row.retain(|_, value| !value.is_null());
        world.dynamo.put(FAILURES, Value::Object(row))
    };
    // More keys than one `BatchGetItem` accepts.
    for id in 1..=120 {
        old(id, (id > 10).then_some(site)).await;
    }
    let (page, _) = world.ledger.page(Status::Open, true, None, 250).await.expect("a page");
    let sites = page.iter().filter(|row| row.affected_ids.site_id == Some(site)).count();
    assert_eq!((page.len(), sites), (120, 110));
}

#[tokio::test]
async fn a_failed_replay_leaves_the_failure_open_with_its_reason() {
    let world = World::start().await;
    let id = world.fail("a", 1).await;
    let before = world.row(id).await;
    assert!(matches!(world.claim(id, 1, ClaimOptions::default()).await, ClaimResult::Claimed(_)));
    assert_eq!(world.finish(id, 1, failed("still")).await, FinishResult::Unchanged(Status::Open));
    let row = world.row(id).await;
    assert_eq!((row.error.message.as_str(), row.attempts), ("still", 1));
    assert_ne!(row.fingerprint, before.fingerprint);
    assert!(matches!(world.claim(id, 2, ClaimOptions::default()).await, ClaimResult::Claimed(_)));
}

#[tokio::test]
async fn a_failure_that_is_recorded_again_during_a_replay_stays_open() {
    let world = World::start().await;
    let id = world.fail("a", 1).await;
    assert!(matches!(world.claim(id, 1, ClaimOptions::default()).await, ClaimResult::Claimed(_)));
    world.fail("a", 2).await;
    assert_eq!(
        world.finish(id, 1, ReplayOutcome::Done).await,
        FinishResult::Unchanged(Status::Open)
    );
    let row = world.row(id).await;
    assert_eq!((row.status, row.attempts, row.replays), (Status::Open, 2, 1));
    assert!(matches!(world.claim(id, 2, ClaimOptions::default()).await, ClaimResult::Claimed(_)));
}

#[tokio::test]
async fn an_interrupted_replay_is_in_doubt_until_a_claim_allows_doubt() {
    let world = World::start().await;
    let id = world.fail("a", 1).await;
    assert!(matches!(world.claim(id, 1, ClaimOptions::default()).await, ClaimResult::Claimed(_)));
    assert_eq!(world.row(id).await.execution_name(), format!("replay-{id}-1"));
    for options in [ClaimOptions::default(), FORCE] {
        let ClaimResult::InDoubt(replay) = world.claim(id, 2, options).await else {
            panic!("in doubt")
        };
        assert_eq!(replay.id, Uuid::from_u128(1));
    }
    assert!(matches!(world.claim(id, 3, DESPITE_DOUBT).await, ClaimResult::Claimed(_)));
    assert_eq!(world.row(id).await.execution_name(), format!("replay-{id}-2"));
    // The first replay was slow, not interrupted. It has lost its claim.
    assert_eq!(world.finish(id, 1, ReplayOutcome::Done).await, FinishResult::ClaimLost);
    assert_eq!(world.finish(id, 3, ReplayOutcome::Done).await, FinishResult::Replayed);
}

#[tokio::test]
async fn after_the_maximum_number_of_replays_a_claim_must_be_forced() {
    let world = World::start().await;
    let id = world.fail("a", 1).await;
    for replay in 1..=MAX_REPLAYS {
        assert!(matches!(
            world.claim(id, replay.into(), DESPITE_DOUBT).await,
            ClaimResult::Claimed(_)
        ));
        assert_eq!(
            world.finish(id, replay.into(), failed("no")).await,
            FinishResult::Unchanged(Status::Open)
        );
    }
    assert_eq!(world.claim(id, 6, DESPITE_DOUBT).await, ClaimResult::LimitReached);
    let ClaimResult::Claimed(row) = world.claim(id, 6, FORCE).await else { panic!("forced") };
    assert_eq!(row.replays, MAX_REPLAYS + 1);
}

#[tokio::test]
async fn a_discarded_failure_is_not_listed_until_it_is_recorded_again() {
    let world = World::start().await;
    let id = world.fail("a", 1).await;
    let discard = async || world.ledger.discard(id, "a test site").await.expect("a discard");
    assert_eq!(discard().await, DiscardResult::Discarded);
    assert_eq!(discard().await, DiscardResult::NotOpen(Status::Discarded));
    let claim = world.claim(id, 1, FORCE).await;
    assert_eq!(claim, ClaimResult::NotOpen(Status::Discarded));
    assert_eq!(world.row(id).await.note.as_deref(), Some("a test site"));

    world.fail("a", 2).await;
    assert_eq!(world.row(id).await.status, Status::Open);
    // The failure is discarded during a replay, and stays discarded.
    assert!(matches!(world.claim(id, 1, ClaimOptions::default()).await, ClaimResult::Claimed(_)));
    assert_eq!(discard().await, DiscardResult::Discarded);
    assert_eq!(
        world.finish(id, 1, ReplayOutcome::Done).await,
        FinishResult::Unchanged(Status::Discarded)
    );
    assert_eq!(world.row(id).await.status, Status::Discarded);
}

#[tokio::test]
async fn a_missing_failure_is_unknown() {
    let world = World::start().await;
    let id: FailureId = "36525261-64d3-5f8c-93d1-fb195ff9fe73".parse().expect("an id");
    assert_eq!(world.ledger.get(id).await.expect("a table"), None);
    assert_eq!(world.claim(id, 1, FORCE).await, ClaimResult::NotFound);
    assert_eq!(world.finish(id, 1, ReplayOutcome::Done).await, FinishResult::ClaimLost);
    assert_eq!(world.ledger.discard(id, "").await.expect("a discard"), DiscardResult::NotFound);
}

#[test]
fn ten_thousand_failures_are_read_page_by_page_and_counted() {
    cloud::run(async {
        let cloud = Cloud::new(Rng::from_seed(1));
        let ledger = Ledger { failures: cloud.table(FAILURES) };
        let failures = i64::from(FAILURE_COUNT);
        for index in 0..failures {
            let failure = failed_work(&index.to_string());
            cloud.put(
                FAILURES,
                json!({
                    "id": failure.id, "source": "project-site", "kind": "UNREADABLE",
                    "status": "OPEN", "error": failure.error, "fingerprint": "0123456789ab",
                    "attempts": 1, "replays": 0, "payload": "x".repeat(100),
                    // Two rows share each time, so the index has to order rows of the same time.
                    "firstAt": noon(index / 2), "lastAt": noon(index / 2),
                }),
            );
        }
        for newest_first in [false, true] {
            let (mut times, mut start) = (Vec::<Timestamp>::new(), None);
            loop {
                let page = ledger.page(Status::Open, newest_first, start, 1_000).await;
                let (rows, next) = page.expect("a page");
                assert!(rows.len() <= 1_000);
                times.extend(rows.iter().map(|row| row.last_at));
                start = next;
                if start.is_none() {
                    break;
                }
            }
            assert_eq!(i64::try_from(times.len()), Ok(failures));
            assert!(times.is_sorted_by(|a, b| if newest_first { a >= b } else { a <= b }));
        }
        assert_eq!(ledger.page(Status::Replayed, true, None, 9).await.expect("a page").0, []);

        assert_eq!(
            ledger.count(Status::Open, FAILURE_COUNT).await.expect("a count"),
            FAILURE_COUNT
        );
        assert_eq!(ledger.count(Status::Open, 9).await.expect("a count"), 9);
    });
}
