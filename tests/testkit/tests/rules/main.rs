//! Checks the rules in `table.rs` against every resource of the templates, every state of the sagas, the
//! dependencies and the workflows. `docs/rules.md` is generated from the table.
//!
//! Each rule lists edits that break it and must object to each of them, which proves that the rule can fail.

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

/// Returns the objections of a rule to the subject, without its exceptions.
fn objections(rule: &Rule, subject: &Subject) -> Vec<(String, String)> {
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
    let mut told = String::new();
    for rule in RULES.iter().flat_map(|(_, rules)| *rules) {
        for (about, what) in objections(rule, &subject) {
            writeln!(told, "{about}: {what}\n  against {}: {}", rule.name, rule.why)
                .expect("a string takes it");
        }
    }
    assert!(told.is_empty(), "\n{told}");
}

#[test]
fn every_rule_objects_to_the_edits_that_break_it() {
    let subject = Subject::read();
    for rule in RULES.iter().flat_map(|(_, rules)| *rules) {
        assert!(!rule.breaks.is_empty(), "nothing breaks {}", rule.name);
        for (edit, about) in rule.breaks {
            let mut broken = subject.clone();
            edit.apply(&mut broken);
            let objections = objections(rule, &broken);
            assert!(
                objections.iter().any(|(named, _)| named == about),
                "{} does not object to {about} after {edit:?}, but to {objections:?}",
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
            assert!(used, "{} has no need of its exception {name}", rule.name);
        }
    }
}

#[test]
fn rule_names_are_unique() {
    let mut names = BTreeSet::new();
    for rule in RULES.iter().flat_map(|(_, rules)| *rules) {
        assert!(names.insert(rule.name), "two rules are called {}", rule.name);
    }
}

#[test]
fn the_docs_list_the_rules() {
    let mut text = String::from(
        "# Rules\n\nHeld against the templates, `statemachines/` and what comes in from outside by \
         `cargo test -p testkit --test rules`;\neach rule is also shown to object to an edit that breaks \
         it. Alarms have a table of their own, `tests/testkit/tests/alarms.rs`.\nThis page is made from \
         `tests/testkit/tests/rules/table.rs`: `UPDATE_DOCS=1 cargo test -p testkit --test rules` \
         rewrites it.\n",
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
            assert!(source.contains(&format!("fn {function}(")), "{name}: there is no {proof}");
            proofs += 1;
        }
        for rest in part("\nProof: ", "\nRemains: ").split("rule \"").skip(1) {
            let rule = rest.split('"').next().unwrap_or_default();
            assert!(rules.contains(&rule), "{name}: there is no rule {rule:?}");
            proofs += 1;
        }
        assert!(proofs > 0, "nothing proves {name}");
    }
}
