//! Rules: a newcomer learns what is missing, and loses nothing.

use crate::subject::{Objections, Subject};

/// Returns a target of the Makefile: its prerequisites and its recipe.
fn goal<'a>(subject: &'a Subject, name: &str) -> &'a str {
    let makefile = subject.file("Makefile");
    let begin = format!("\n{name}:");
    let rest = makefile.split_once(&begin).map_or("", |(_, rest)| rest);
    rest.find("\n\n").map_or(rest, |end| &rest[..end])
}

pub fn a_running_stack_is_not_lost(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    let demo = goal(subject, "demo");
    let asks = demo.find("confirm-reset");
    let asks_first = asks.is_some_and(|asks| demo.find(" down ").is_some_and(|down| asks < down));
    objections.unless(asks_first, "Makefile", "demo deletes a running stack without asking");
    objections
}

pub fn missing_things_are_named(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for name in ["lambda-image", "docker-env", "invoke-samples"] {
        let checked = goal(subject, name).starts_with(" require-docker");
        objections.unless(checked, "Makefile", format!("{name} does not look for Docker"));
    }
    let smoke = goal(subject, "smoke");
    objections.unless(smoke.contains(" kits "), "Makefile", "smoke needs a kit that is not there");
    objections.unless(
        subject.file("tests/smoke.sh").contains("KitsOutOfStock"),
        "tests/smoke.sh",
        "does not say that a kit is missing",
    );
    objections.unless(
        goal(subject, "deploy-local").contains(" api-url"),
        "Makefile",
        "deploy-local does not print the URL of the API",
    );
    for line in subject.file("Makefile").lines() {
        let installs = ["npm ", "pip install", "cargo install"].iter().any(|it| line.contains(it));
        let hidden = ["--silent", "-qq", "/dev/null"].iter().any(|it| line.contains(it));
        objections.unless(!(installs && hidden), "Makefile", format!("hides why it fails: {line}"));
    }
    objections
}

pub fn documented_commands_work_with_each_aws_cli(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    let path = "docs/integrating.md";
    let lines: Vec<_> =
        subject.file(path).lines().filter(|it| it.contains("kinesis put-record")).collect();
    objections.unless(!lines.is_empty(), path, "does not show how to put a record");
    for line in lines {
        let works = line.contains(" --data fileb://");
        objections.unless(works, path, format!("depends on the version of the AWS CLI: {line}"));
    }
    objections
}
