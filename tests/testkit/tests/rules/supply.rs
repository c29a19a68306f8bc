//! Rules: dependencies and workflows are pinned and checked.

use serde_json::Value;
use testkit::template::yaml;

use crate::subject::{Objections, Subject, members, text};

pub fn python_by_hash(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    let requirements = subject.files.iter().filter(|(path, _)| path.contains("/requirements"));
    for (path, text) in requirements {
        for requirement in text.split("\\\n").collect::<String>().lines() {
            let requirement = requirement.trim();
            if !requirement.is_empty() && !requirement.starts_with('#') {
                let name = requirement.split(" --hash").next().unwrap_or_default().trim();
                let pinned = name.contains("==") && requirement.contains("--hash=sha256:");
                objections.unless(
                    pinned,
                    path,
                    format!("{name} is not pinned by version and hash"),
                );
            }
        }
    }
    for (path, text) in &subject.files {
        if path == "Makefile" || path.starts_with(".ci/") || path.starts_with(".github/") {
            for line in text.lines().filter(|line| line.contains("pip install")) {
                let hashed = line.contains("--require-hashes") && line.contains("--no-deps");
                objections.unless(hashed, path, format!("installs unseen: {}", line.trim()));
            }
        }
    }
    objections
}

pub fn node_by_hash(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    let path = "tools/local/package-lock.json";
    let lock: Value = serde_json::from_str(subject.file(path)).unwrap_or_default();
    let packages: Vec<_> =
        members(&lock["packages"]).filter(|(name, _)| !name.is_empty()).collect();
    objections.unless(!packages.is_empty(), path, "pins nothing");
    for (name, package) in packages {
        let pinned = text(&package["integrity"]).starts_with("sha512-")
            && (package["resolved"].is_null()
                || text(&package["resolved"]).starts_with("https://registry.npmjs.org/"));
        objections.unless(pinned, path, format!("{name} is not pinned by hash"));
    }
    for (path, text) in &subject.files {
        if path == "Makefile" || path.starts_with(".ci/") || path.starts_with(".github/") {
            let by_lock = !text.contains("npm install") && !text.contains("npx ");
            objections.unless(by_lock, path, "installs what no lock file pins");
        }
    }
    objections
}

pub fn crates_by_lock(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (path, text) in &subject.files {
        if path == "Makefile" || path.starts_with(".ci/") || path.starts_with(".github/") {
            for line in text.lines().map(str::trim) {
                let told = line.starts_with('#') || line.starts_with("step ");
                let commands =
                    ["bench", "build", "check", "clippy", "doc", "install", "run", "test"];
                let compiles =
                    !told && commands.iter().any(|it| line.contains(&format!("cargo {it} ")));
                let locked = line.contains("--locked") || line.contains("$(CARGO_FLAGS)");
                objections.unless(!compiles || locked, path, format!("ignores Cargo.lock: {line}"));
            }
        }
    }
    let checks = [
        (".ci/run", "\nmake --no-print-directory deny\n"),
        (".github/workflows/advisories.yml", "run: make advisories\n"),
        ("Makefile", "cargo-deny check bans licenses sources\n"),
        ("Makefile", "cargo-deny check advisories\n"),
    ];
    for (path, check) in checks {
        let runs = subject.file(path).contains(check);
        objections.unless(runs, path, format!("does not run {}", check.trim()));
    }
    objections
}

pub fn actions_by_commit(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (path, text) in subject.under(".github/workflows/") {
        for line in text.lines() {
            if let Some((_, action)) = line.split_once("uses: ") {
                let commit = action.split_once('@').map(|(_, rest)| rest).unwrap_or_default();
                let (commit, version) = commit.split_once(" # v").unwrap_or((commit, ""));
                let pinned = commit.len() == 40
                    && commit.chars().all(|it| it.is_ascii_hexdigit())
                    && version.starts_with(|it: char| it.is_ascii_digit());
                let pinned = pinned || action.starts_with("./");
                objections.unless(pinned, path, format!("runs whatever {action} is today"));
            }
        }
    }
    objections
}

pub fn workflows_with_few_rights(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (path, source) in subject.under(".github/workflows/") {
        let workflow = yaml(source);
        let permissions = &workflow["permissions"];
        objections.unless(permissions.is_object(), path, "has all rights: no permissions");
        for (name, right) in members(permissions) {
            let needed = matches!(
                (name, text(right)),
                ("contents" | "actions", "read") | ("id-token", "write")
            );
            objections.unless(needed, path, format!("may {name}: {right}"));
        }
        // A key of the provider's test mode can't move money.
        let secrets = source.replace("secrets.STRIPE_TEST_KEY", "");
        let key = source.contains("access-key") || secrets.contains("secrets.");
        objections.unless(!key, path, "keeps a long-lived key");
        objections.unless(!source.contains("secrets: inherit"), path, "hands on secrets");
        // These triggers run a change from a fork with the repository's permissions.
        let strangers = source.contains("pull_request_target") || source.contains("workflow_run");
        objections.unless(!strangers, path, "runs what strangers send with our rights");
        for (name, job) in members(&workflow["jobs"]) {
            let ends = job["timeout-minutes"].as_i64().is_some() || job["uses"].is_string();
            objections.unless(ends, path, format!("{name} may run for hours"));
            objections.unless(
                job["permissions"].is_null(),
                path,
                format!("{name} gives itself other rights"),
            );
        }
    }
    objections
}

pub fn no_cache_where_it_counts(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (path, source) in subject.under(".github/workflows/") {
        let releases = source.contains("make release") || source.contains("--release");
        let deploys = source.contains("id-token: write");
        let code = source.lines().filter(|line| !line.trim_start().starts_with('#'));
        let caches = code.filter(|line| line.contains("cache")).count() > 0;
        objections.unless(!caches || !(releases || deploys), path, "restores a cache");
    }
    objections
}

pub fn production_comes_from_main(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    let path = ".github/workflows/prod.yml";
    let workflow = yaml(subject.file(path));
    let steps = workflow["jobs"]["canary"]["steps"].as_array().map_or(&[][..], Vec::as_slice);
    let place = |what: &str| steps.iter().position(|step| text(&step["run"]).contains(what));
    let first = steps.first().map(|step| text(&step["run"])).unwrap_or_default();
    for (member, value) in [
        (".path", ".github/workflows/staging.yml"),
        (".head_repository.full_name", "\"$GITHUB_REPOSITORY\""),
        (".event", "push"),
        (".head_branch", "main"),
        (".conclusion", "success"),
    ] {
        let check = format!("test \"$(jq -r {member} <<< \"$run\")\" = {value} || {{");
        objections.unless(first.contains(&check), path, format!("does not check {member}"));
    }
    let ancestor = place("git merge-base --is-ancestor HEAD refs/remotes/origin/main || {");
    let work = place("make ").or_else(|| place("sam deploy"));
    let checked = ancestor.is_some_and(|ancestor| work.is_some_and(|work| ancestor < work));
    objections.unless(checked, path, "does not check that the commit is on main");
    let staging = yaml(subject.file(".github/workflows/staging.yml"));
    // The key `on` is text because the reader follows YAML 1.2. YAML 1.1 reads it as true.
    let pushes = &staging["on"]["push"];
    objections.unless(
        pushes["branches"] == serde_json::json!(["main"]) && pushes["tags"].is_null(),
        ".github/workflows/staging.yml",
        "is run by a push to something else than main",
    );
    objections
}

/// The modules that may print, because they escape everything.
const WRITERS: [&str; 1] = ["fieldctl/src/output.rs"];

pub fn output_is_escaped(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    let printing = ["println!(", "print!(", "stdout()", "stderr()", "ProgressBar::", "Term::"];
    for (path, source) in subject.under("fieldctl/src/") {
        for what in printing {
            let prints = !WRITERS.contains(&path) && source.contains(what);
            objections.unless(!prints, path, format!("{what} prints what is not escaped"));
        }
    }
    for (path, source) in subject.under("tests/src/").chain(subject.under("tools/demo/src/")) {
        let prints = source.contains("println!(") || source.contains("print!(");
        objections.unless(!prints, path, "prints what is not escaped: use terminal::print");
        for bar in ["set_message(", "set_prefix("] {
            let texts = source.split(bar).skip(1);
            let escaped = texts.into_iter().all(|text| text.starts_with("terminal::line("));
            objections.unless(escaped, path, format!("{bar} shows what is not escaped"));
        }
    }
    objections
}

pub fn local_stack_is_local(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    let path = "tools/local/stack.py";
    let source = subject.file(path);
    for needed in ["HOST = \"127.0.0.1\"\n", "\"BIND_HOST\": HOST,"] {
        objections.unless(source.contains(needed), path, format!("lacks {needed:?}"));
    }
    for (path, source) in subject.under("tools/local/") {
        let everywhere = ["0.0.0.0", "\"::\""].iter().any(|address| source.contains(address));
        objections.unless(!everywhere, path, "listens to the network");
    }
    objections
}
