//! Rules: the first use reports missing prerequisites and deletes nothing without asking.

use crate::subject::{Subject, Violations};

/// Returns a target of the Makefile: its prerequisites and its recipe.
fn target<'a>(subject: &'a Subject, name: &str) -> &'a str {
    let makefile = subject.file("Makefile");
    let begin = format!("\n{name}:");
    let rest = makefile.split_once(&begin).map_or("", |(_, rest)| rest);
    rest.find("\n\n").map_or(rest, |end| &rest[..end])
}

pub fn demo_asks_before_deleting_a_stack(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    let demo = target(subject, "demo");
    let asks = demo.find("confirm-reset");
    let asks_first = asks.is_some_and(|asks| demo.find(" down ").is_some_and(|down| asks < down));
    violations.check(asks_first, "Makefile", "make demo deletes a running stack without asking");
    violations
}

pub fn missing_prerequisites_are_named(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for name in ["lambda-image", "docker-env", "invoke-samples"] {
        let checked = target(subject, name).starts_with(" require-docker");
        violations.check(checked, "Makefile", format!("{name} does not check for Docker"));
    }
    let smoke = target(subject, "smoke");
    violations.check(
        smoke.contains(" kits "),
        "Makefile",
        "smoke does not add the kits that it needs",
    );
    violations.check(
        subject.file("tests/smoke.sh").contains("KitsOutOfStock"),
        "tests/smoke.sh",
        "does not report missing kits",
    );
    violations.check(
        target(subject, "deploy-local").contains(" api-url"),
        "Makefile",
        "deploy-local does not print the URL of the API",
    );
    for line in subject.file("Makefile").lines() {
        let installs = ["npm ", "pip install", "cargo install"].iter().any(|it| line.contains(it));
        let hidden = ["--silent", "-qq", "/dev/null"].iter().any(|it| line.contains(it));
        violations.check(
            !(installs && hidden),
            "Makefile",
            format!("hides the reason of a failure: {line}"),
        );
    }
    violations
}

pub fn documented_commands_work_with_each_aws_cli(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    let path = "docs/integrating.md";
    let lines: Vec<_> =
        subject.file(path).lines().filter(|it| it.contains("kinesis put-record")).collect();
    violations.check(!lines.is_empty(), path, "does not document put-record");
    for line in lines {
        let works = line.contains(" --data fileb://");
        violations.check(
            works,
            path,
            format!("works with only one version of the AWS CLI: {line}"),
        );
    }
    violations
}
