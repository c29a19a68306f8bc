//! Tests of the report on open failures.

use failures::report_failures::{MAX_COUNTED, Reply, ReportFailures};
use lambda::Step;
use ledger::{DiscardResult, FailedWork, FailureId, Ledger};
use serde_json::json;
use testkit::{
    Dynamo,
    cloud::{self, Cloud},
    dynamo::FAILURES,
    measured::measured,
    rng::Rng,
    sample::{self, noon},
};

fn event() -> <ReportFailures as Step>::Command {
    fault::decode(&sample::event("report-failures").to_string()).expect("an event")
}

#[tokio::test]
async fn the_report_has_the_number_of_open_failures_and_the_oldest_age() {
    let dynamo = Dynamo::start().await;
    let ledger = || Ledger { failures: dynamo.table(FAILURES) };
    let report = async || {
        let step = ReportFailures { ledger: ledger() };
        let (reply, metrics) = measured(step.run(event(), noon(300))).await;
        let values = ["OpenFailures", "OldestOpenFailureAgeSeconds"].map(|name| metrics[name]);
        (reply.expect("a report"), values)
    };
    let expected = Reply { open: 0, oldest_age_seconds: 0 };
    assert_eq!(report().await, (expected, [0.0, 0.0]));
    let fail = async |work: FailedWork, second: i64| {
        ledger().record(&work, "a message", noon(second)).await.expect("recorded");
        work.id
    };
    let first = fail(failures::parse::unreadable("sites-failures", "a"), 1).await;
    fail(failures::parse::unreadable("sites-failures", "b"), 2).await;
    let expected = Reply { open: 2, oldest_age_seconds: 299 };
    assert_eq!(report().await, (expected, [2.0, 299.0]));
    assert_eq!(
        ledger().discard(first, "known").await.expect("the discard"),
        DiscardResult::Discarded
    );
    let expected = Reply { open: 1, oldest_age_seconds: 298 };
    assert_eq!(report().await, (expected, [1.0, 298.0]));
}

#[test]
fn at_most_the_maximum_number_of_failures_is_counted() {
    cloud::run(async {
        let cloud = Cloud::new(Rng::from_seed(1));
        for index in 0..i64::from(MAX_COUNTED) + 50 {
            let work: [u8; 32] = std::array::from_fn(|at| index.to_le_bytes()[at % 8]);
            cloud.put(
                FAILURES,
                json!({
                    "id": FailureId::new("project-site", work), "source": "project-site",
                    "kind": "UNREADABLE", "status": "OPEN",
                    "error": { "name": "Unreadable", "message": "m", "concerns": {} },
                    "fingerprint": "0123456789ab", "attempts": 1, "replays": 0, "payload": "x",
                    "firstAt": noon(0), "lastAt": noon(0),
                }),
            );
        }
        let ledger = Ledger { failures: cloud.table(FAILURES) };
        let reply = ReportFailures { ledger }.run(event(), noon(300)).await.expect("a report");
        assert_eq!(reply, Reply { open: MAX_COUNTED, oldest_age_seconds: 300 });
    });
}
