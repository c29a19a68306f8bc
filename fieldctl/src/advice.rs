//! The table of errors: what each means and what to do about it. `failures show` and `failures groups` use it.
//! docs/operations.md contains the same table; a test compares them.

use ledger::{FailureSummary, Kind};
use serde::Serialize;

/// The advice for a failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// What the error means.
    pub means: &'static str,
    /// What to do, in order.
    #[serde(rename = "do")]
    pub todo: &'static str,
    /// The command to run, with the failure's own ids.
    pub command: String,
}

/// A rule of the table. The first matching rule applies to a failure.
struct Rule {
    /// The names of the errors. If empty, the rule matches all.
    errors: &'static [&'static str],
    /// The kind. `None` matches all.
    kind: Option<Kind>,
    /// The sources. If empty, the rule matches all.
    sources: &'static [&'static str],
    means: &'static str,
    todo: &'static str,
    command: &'static str,
}

const REPLAY: &str = "fieldctl failures replay {which} --yes";
const DISCARD: &str = "fieldctl failures discard {which} --note \"<why>\" --yes";
const RECOVER: &str = "fieldctl sagas recover {onboarding}";
const SHOW: &str = "fieldctl failures show {id}";

const RULES: &[Rule] = &[
    Rule {
        errors: &["UnknownSensor"],
        kind: None,
        sources: &[],
        means: "The register does not have the sensor: its onboarding was not finished, or the logger sends a wrong sensor id. Or the sender's key belongs to another operator than the sensor.",
        todo: "Compare the id with `fieldctl sensors list <site>`. If the register has the sensor now, replay. If the id or the key is wrong, correct the logger, then discard.",
        command: REPLAY,
    },
    Rule {
        errors: &["RetiredSensor"],
        kind: None,
        sources: &[],
        means: "The site of the sensor is out of service.",
        todo: "Have the logger switched off, then discard.",
        command: DISCARD,
    },
    Rule {
        errors: &["SensorOfAnotherSite"],
        kind: None,
        sources: &[],
        means: "The logger sends the readings for a different site than the one where the sensor is registered.",
        todo: "Correct the logger's site or sensor id, have the readings sent again, then discard.",
        command: DISCARD,
    },
    Rule {
        errors: &["BundleConflict"],
        kind: None,
        sources: &[],
        means: "A bundle with the same id but other samples is already stored.",
        todo: "Have the changed readings sent with a greater revision, or with a new bundleId, then discard.",
        command: DISCARD,
    },
    Rule {
        errors: &["EventRefused", "InvalidInput"],
        kind: Some(Kind::Quarantined),
        sources: &["publish-events"],
        means: "An outlet (EventBridge or the stream of all events) refuses the event permanently, or the row of the events table is not an event.",
        todo: "Fix the cause as the runbook RefusedEvents describes, then replay.",
        command: REPLAY,
    },
    Rule {
        errors: &["InvalidInput"],
        kind: None,
        sources: &["store-readings", "detect-breaches", "import-site", "receive-kits"],
        means: "The input is not valid; the message names the field.",
        todo: "Ask the sender to correct it and send it again, then discard.",
        command: DISCARD,
    },
    Rule {
        errors: &["Unreadable", "UnreadableFile"],
        kind: None,
        sources: &[],
        means: "record-failure can't read the message or the file.",
        todo: "Follow the runbook UnreadableFailures, then discard.",
        command: SHOW,
    },
    Rule {
        errors: &["NotPublished"],
        kind: None,
        sources: &[],
        means: "EventBridge could not publish the event to the SNS topic that the message names.",
        todo: "Follow the runbook UnreadableFailures: publish the payload, then discard.",
        command: SHOW,
    },
    Rule {
        errors: &[],
        kind: Some(Kind::ExecutionFailed),
        sources: &[],
        means: "An undo failed permanently, so the site is not completely undone.",
        todo: "`fieldctl trace` shows the undo and its error. Fix the cause, then recover.",
        command: RECOVER,
    },
    Rule {
        errors: &["Refused"],
        kind: Some(Kind::DeadLetter),
        sources: &[],
        means: "Step Functions does not confirm the sender of the command.",
        todo: "Follow the runbook ForgedCommand. If the command is forged, discard.",
        command: DISCARD,
    },
    Rule {
        errors: &["ReceivesExhausted"],
        kind: Some(Kind::DeadLetter),
        sources: &[],
        means: "The function failed three times to process the command, or Step Functions does not confirm its sender.",
        todo: "The function's log has the reason (runbook ForgedCommand). Fix the cause, then replay.",
        command: REPLAY,
    },
    Rule {
        errors: &[],
        kind: Some(Kind::NotDelivered),
        sources: &[],
        means: "EventBridge could not call the function.",
        todo: "Correct the permission or the target that the message names, deploy, then replay.",
        command: REPLAY,
    },
    Rule {
        errors: &[],
        kind: None,
        sources: &[
            "check-consumers",
            "check-sagas",
            "reconcile-subscriptions",
            "report-failures",
            "sweep-events",
        ],
        means: "A scheduled run failed.",
        todo: "If later runs succeeded (the alarm is off), discard. If not, the function's log has the reason.",
        command: DISCARD,
    },
    Rule {
        errors: &[],
        kind: None,
        sources: &["recover-onboarding"],
        means: "A stopped saga is not undone: the function failed, or three recoveries were stopped by hand.",
        todo: "Fix the cause that the message names, then recover.",
        command: RECOVER,
    },
    Rule {
        errors: &[],
        kind: Some(Kind::GivenUp),
        sources: &[],
        means: "The function failed to process the record until Lambda gave up on it.",
        todo: "The function's log has the reason. Fix the cause, then replay. A replay does not repeat effects.",
        command: REPLAY,
    },
    Rule {
        errors: &["Transient", "BatchItemFailure"],
        kind: None,
        sources: &[],
        means: "A dependency of the function did not respond: DynamoDB, EventBridge or the payment provider.",
        todo: "When it responds again (its throttle and circuit alarms are off), replay.",
        command: REPLAY,
    },
    Rule {
        errors: &["Internal", "InvalidInput", "CorruptRow"],
        kind: None,
        sources: &[],
        means: "A defect of Fieldstation or of its deployment, such as a wrong setting, a missing permission or a broken row.",
        todo: "The message and the function's log name it. Fix it, deploy, then replay.",
        command: REPLAY,
    },
    Rule {
        errors: &["CardDeclined", "KitsOutOfStock", "Superseded"],
        kind: None,
        sources: &[],
        means: "A step of a saga was refused. The saga undoes the site by itself.",
        todo: "Check with `fieldctl trace` that the site is undone, then discard.",
        command: DISCARD,
    },
    Rule {
        errors: &[
            "Sandbox.Timedout",
            "Runtime.ExitError",
            "Runtime.Unknown",
            "Runtime.OutOfMemory",
            "Runtime.InvalidEntrypoint",
            "Function.ResponseSizeTooLarge",
            "Unhandled",
            "RetriesExhausted",
            "EventAgeExceeded",
            "ZeroReservedConcurrency",
        ],
        kind: None,
        sources: &[],
        means: "The function crashed, did not start, was throttled or ran out of time.",
        todo: "The function's log has the reason. Fix or roll back the function, then replay.",
        command: REPLAY,
    },
    Rule {
        errors: &[],
        kind: None,
        sources: &[],
        means: "This version of fieldctl does not know the error.",
        todo: "The message and the function's log have the reason. Fix the cause, then replay.",
        command: REPLAY,
    },
];

impl Rule {
    fn matches(&self, error: &str, kind: Kind, source: &str) -> bool {
        (self.errors.is_empty() || self.errors.contains(&error))
            && self.kind.is_none_or(|of| of == kind)
            && (self.sources.is_empty() || self.sources.contains(&source))
    }
}

fn rule_for(error: &str, kind: Kind, source: &str) -> &'static Rule {
    let found = RULES.iter().find(|rule| rule.matches(error, kind, source));
    // The last rule matches everything.
    found.unwrap_or(&RULES[RULES.len() - 1])
}

/// Returns the advice for a failure. `which` selects the failure on the command line: an id, or `--group` with a
/// group.
#[must_use]
pub fn advice(row: &FailureSummary, which: &str) -> Advice {
    let Rule { means, todo, command, .. } = rule_for(&row.error.name, row.kind, &row.source);
    let onboarding = row.correlation_id.map_or_else(|| "<site>".to_owned(), |id| id.to_string());
    let command = command
        .replace("{which}", which)
        .replace("{id}", &row.id.to_string())
        .replace("{onboarding}", &onboarding);
    Advice { means, todo, command }
}

/// Returns the table as it is in docs/operations.md.
#[must_use]
pub fn markdown() -> String {
    let mut lines = vec!["| error | kind or source | it means | do |".to_owned()];
    lines.push("|---|---|---|---|".to_owned());
    let names = |names: &[&str]| {
        names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
    };
    for Rule { errors, kind, sources, means, todo, command } in RULES {
        let kind = kind.map(crate::failure_pager::kind_name);
        let scope: Vec<String> =
            kind.into_iter().chain(sources.iter().map(|it| (*it).to_owned())).collect();
        let errors = if errors.is_empty() { "any".to_owned() } else { names(errors) };
        let command = command
            .replace(['{', '}'], "")
            .replace("which", "<id>")
            .replace("recover onboarding", "recover <site>");
        let command = command.replace("show id", "show <id>");
        let scope = if scope.is_empty() { "any".to_owned() } else { scope.join(", ") };
        lines.push(format!("| {errors} | {scope} | {means} | {todo} `{command}` |"));
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Error names that record-failure can write, each group with a kind and a source.
    const NAMES: [(&[&str], Kind, &str); 8] = [
        // The names of `fault::ErrorKind`, and Lambda's own error names and conditions.
        (
            &[
                "CardDeclined",
                "KitsOutOfStock",
                "Superseded",
                "Transient",
                "InvalidInput",
                "Internal",
                "Sandbox.Timedout",
                "Runtime.ExitError",
                "Runtime.Unknown",
                "Runtime.OutOfMemory",
                "Unhandled",
                "RetriesExhausted",
                "EventAgeExceeded",
                "ZeroReservedConcurrency",
            ],
            Kind::FunctionFailed,
            "project-site",
        ),
        // The conditions of a stream's event source mapping.
        (&["RetryAttemptsExhausted", "MaximumRecordAgeExceeded"], Kind::GivenUp, "store-readings"),
        // The names of `TelemetryError::permanent`, and `InvalidInput` for a record that is not a bundle.
        (
            &[
                "UnknownSensor",
                "RetiredSensor",
                "SensorOfAnotherSite",
                "BundleConflict",
                "InvalidInput",
                "CorruptRow",
            ],
            Kind::Quarantined,
            "store-readings",
        ),
        // The names of the publisher's errors.
        (&["EventRefused", "InvalidInput"], Kind::Quarantined, "publish-events"),
        (&["ReceivesExhausted", "Refused", "Transient"], Kind::DeadLetter, "cancel-subscription"),
        (
            &["CompensationIncomplete", "States.Timeout", "FAILED", "ABORTED"],
            Kind::ExecutionFailed,
            "site-teardown",
        ),
        (&["Unreadable", "UnreadableFile"], Kind::Unreadable, "project-site"),
        // The source is the queue of events that EventBridge could not publish to a topic.
        (&["NotPublished"], Kind::Unreadable, "inventory-failures"),
    ];

    #[test]
    fn every_recorded_error_has_its_own_advice() {
        let default = RULES[RULES.len() - 1].means;
        for (names, kind, source) in NAMES {
            for name in names {
                assert_ne!(rule_for(name, kind, source).means, default, "{name} of {source}");
            }
        }
        assert_eq!(rule_for("Nonsense", Kind::FunctionFailed, "project-site").means, default);
        assert_ne!(rule_for("NO_PERMISSIONS", Kind::NotDelivered, "import-site").means, default);
    }

    #[test]
    fn the_documentation_contains_the_table() {
        let docs = include_str!("../../docs/operations.md");
        assert!(docs.contains(&markdown()), "docs/operations.md lacks this:\n{}", markdown());
    }
}
