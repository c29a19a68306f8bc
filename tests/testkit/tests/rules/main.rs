//! Checks the rules in `table.rs` against every resource of the templates, every state of the sagas, the
//! dependencies and the workflows. `docs/rules.md` is generated from the table.
//!
//! Each rule lists edits that break it. A test applies each edit and checks that the rule reports a violation, which
//! proves that the rule can fail.

mod access;
mod data;
mod failing;
mod first_use;
mod functions;
mod sagas;
mod services;
mod steps;
mod subject;
mod supply;
mod table;
mod versions;

use std::{collections::BTreeSet, fmt::Write as _, fs};

use subject::Subject;
use table::{RULES, Rule};
use testkit::template::root;

/// Returns the violations of a rule by the subject, without its exceptions.
fn violations(rule: &Rule, subject: &Subject) -> Vec<(String, String)> {
    let mut all = (rule.check)(subject).0;
    all.retain(|(about, _)| !rule.except.iter().any(|(name, _)| excepts(name, about)));
    all
}

/// Returns whether an exception applies. `name` may end in a `*`.
fn excepts(name: &str, about: &str) -> bool {
    name.strip_suffix('*').map_or(name == about, |start| about.starts_with(start))
}

#[test]
fn every_rule_holds() {
    let subject = Subject::read();
    let mut report = String::new();
    for rule in RULES.iter().flat_map(|(_, rules)| *rules) {
        for (about, what) in violations(rule, &subject) {
            writeln!(report, "{about}: {what}\n  rule: {}: {}", rule.name, rule.why)
                .expect("a string");
        }
    }
    assert!(report.is_empty(), "\n{report}");
}

#[test]
fn every_rule_reports_the_edits_that_break_it() {
    let subject = Subject::read();
    for rule in RULES.iter().flat_map(|(_, rules)| *rules) {
        assert!(!rule.breaks.is_empty(), "no edit breaks the rule {:?}", rule.name);
        for (edit, about) in rule.breaks {
            let mut broken = subject.clone();
            edit.apply(&mut broken);
            let violations = violations(rule, &broken);
            assert!(
                violations.iter().any(|(named, _)| named == about),
                "the rule {:?} does not report {about} after {edit:?}, but {violations:?}",
                rule.name
            );
        }
    }
}

#[test]
fn every_exception_is_needed() {
    let subject = Subject::read();
    for rule in RULES.iter().flat_map(|(_, rules)| *rules) {
        let all = (rule.check)(&subject).0;
        for (name, _) in rule.except {
            let used = all.iter().any(|(about, _)| excepts(name, about));
            assert!(used, "the rule {:?} does not need its exception {name}", rule.name);
        }
    }
}

#[test]
fn rule_names_are_unique() {
    let mut names = BTreeSet::new();
    for rule in RULES.iter().flat_map(|(_, rules)| *rules) {
        assert!(names.insert(rule.name), "two rules are named {:?}", rule.name);
    }
}

#[test]
fn the_docs_list_the_rules() {
    let mut text = String::from(
        "# Rules\n\n`cargo test -p testkit --test rules` checks these rules against the templates, the state \
         machines, the dependencies and the workflows.\nFor each rule it also checks that edits which break the \
         rule are reported. The rules for alarms are in `tests/testkit/tests/alarms.rs`.\nThis page is generated \
         from `tests/testkit/tests/rules/table.rs` by `UPDATE_DOCS=1 cargo test -p testkit --test rules`.\n",
    );
    for (heading, rules) in RULES {
        write!(text, "\n## {heading}\n\n| rule | why |\n|---|---|\n").expect("a string");
        for rule in *rules {
            writeln!(text, "| {} | {} |", rule.name, rule.why).expect("a string");
        }
    }
    text.push_str("\n## Exceptions\n\n| rule | but not | because |\n|---|---|---|\n");
    for rule in RULES.iter().flat_map(|(_, rules)| *rules) {
        for (about, reason) in rule.except {
            writeln!(text, "| {} | {about} | {reason} |", rule.name).expect("a string");
        }
    }
    let file = root().join("docs/rules.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&file, &text).expect("docs/rules.md");
    }
    let found = fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(text, found, "docs/rules.md differs; UPDATE_DOCS=1 rewrites it");
}

#[test]
fn each_threat_names_tests_and_rules_that_exist() {
    let text = fs::read_to_string(root().join("SECURITY.md")).expect("SECURITY.md");
    let rules: Vec<_> = RULES.iter().flat_map(|(_, rules)| *rules).map(|rule| rule.name).collect();
    let (_, threats) = text.split_once("\n## Threats\n").expect("the threats");
    for threat in threats.split("\n### ").skip(1) {
        let name = threat.lines().next().unwrap_or_default();
        let part = |heading: &str, next: &str| {
            let (_, rest) =
                threat.split_once(heading).unwrap_or_else(|| panic!("{name}: no {heading}"));
            if next.is_empty() { rest } else { rest.split(next).next().unwrap_or_default() }
        };
        assert!(part("\nProtected by: ", "\nProof: ").len() > 40, "{name}");
        assert!(part("\nRemains: ", "").len() > 20, "{name}");
        let mut proofs = 0;
        for proof in part("\nProof: ", "\nRemains: ").split('`').skip(1).step_by(2) {
            let (file, function) =
                proof.split_once(": ").unwrap_or_else(|| panic!("{name}: {proof}"));
            let source = fs::read_to_string(root().join(file)).unwrap_or_default();
            assert!(source.contains(&format!("fn {function}(")), "{name}: {proof} does not exist");
            proofs += 1;
        }
        for rest in part("\nProof: ", "\nRemains: ").split("rule \"").skip(1) {
            let rule = rest.split('"').next().unwrap_or_default();
            assert!(rules.contains(&rule), "{name}: the rule {rule:?} does not exist");
            proofs += 1;
        }
        assert!(proofs > 0, "{name}: no proof");
    }
}
