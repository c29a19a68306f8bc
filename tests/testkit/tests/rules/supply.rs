//! Rules: dependencies and workflows are pinned and checked.

use serde_json::Value;
use testkit::template::yaml;

use crate::subject::{Subject, Violations, members, text};

pub fn python_packages_are_pinned(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    let requirements = subject.files.iter().filter(|(path, _)| path.contains("/requirements"));
    for (path, text) in requirements {
        for requirement in text.split("\\\n").collect::<String>().lines() {
            let requirement = requirement.trim();
            if !requirement.is_empty() && !requirement.starts_with('#') {
                let name = requirement.split(" --hash").next().unwrap_or_default().trim();
                let pinned = name.contains("==") && requirement.contains("--hash=sha256:");
                violations.check(pinned, path, format!("{name} is not pinned by version and hash"));
            }
        }
    }
    for (path, text) in &subject.files {
        if path == "Makefile" || path.starts_with(".ci/") || path.starts_with(".github/") {
            for line in text.lines().filter(|line| line.contains("pip install")) {
                let hashed = line.contains("--require-hashes") && line.contains("--no-deps");
                violations.check(
                    hashed,
                    path,
                    format!("installs packages without checking hashes: {}", line.trim()),
                );
            }
        }
    }
    violations
}

pub fn node_packages_are_pinned(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    let path = "tools/local/package-lock.json";
    let lock: Value = serde_json::from_str(subject.file(path)).unwrap_or_default();
    let packages: Vec<_> =
        members(&lock["packages"]).filter(|(name, _)| !name.is_empty()).collect();
    violations.check(!packages.is_empty(), path, "pins no packages");
    for (name, package) in packages {
        let pinned = text(&package["integrity"]).starts_with("sha512-")
            && (package["resolved"].is_null()
                || text(&package["resolved"]).starts_with("https://registry.npmjs.org/"));
        violations.check(pinned, path, format!("{name} is not pinned by hash"));
    }
    for (path, text) in &subject.files {
        if path == "Makefile" || path.starts_with(".ci/") || path.starts_with(".github/") {
            let by_lock = !text.contains("npm install") && !text.contains("npx ");
            violations.check(by_lock, path, "installs packages that are not pinned by a lock file");
        }
    }
    violations
}

pub fn crates_are_built_from_the_lock_file(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (path, text) in &subject.files {
        if path == "Makefile" || path.starts_with(".ci/") || path.starts_with(".github/") {
            for line in text.lines().map(str::trim) {
                let is_text = line.starts_with('#') || line.starts_with("step ");
                let commands =
                    ["bench", "build", "check", "clippy", "doc", "install", "run", "test"];
                let compiles =
                    !is_text && commands.iter().any(|it| line.contains(&format!("cargo {it} ")));
                let locked = line.contains("--locked") || line.contains("$(CARGO_FLAGS)");
                violations.check(!compiles || locked, path, format!("ignores Cargo.lock: {line}"));
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
        violations.check(runs, path, format!("does not run {}", check.trim()));
    }
    violations
}

pub fn actions_are_pinned_to_commits(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (path, text) in subject.under(".github/workflows/") {
        for line in text.lines() {
            if let Some((_, action)) = line.split_once("uses: ") {
                let commit = action.split_once('@').map(|(_, rest)| rest).unwrap_or_default();
                let (commit, version) = commit.split_once(" # v").unwrap_or((commit, ""));
                let pinned = commit.len() == 40
                    && commit.chars().all(|it| it.is_ascii_hexdigit())
                    && version.starts_with(|it: char| it.is_ascii_digit());
                let pinned = pinned || action.starts_with("./");
                violations.check(pinned, path, format!("does not pin {action} to a commit"));
            }
        }
    }
    violations
}

pub fn workflows_have_minimal_permissions(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (path, source) in subject.under(".github/workflows/") {
        let workflow = yaml(source);
        let permissions = &workflow["permissions"];
        violations.check(permissions.is_object(), path, "does not restrict its permissions");
        for (name, right) in members(permissions) {
            let needed = matches!(
                (name, text(right)),
                ("contents" | "actions", "read") | ("id-token", "write")
            );
            violations.check(needed, path, format!("has the permission {name}: {right}"));
        }
        // A key of the provider's test mode can't move money. A key of the API expires, and has the scope that the smoke
        // test needs: in production it can only read.
        let secrets = source
            .replace("secrets.STRIPE_TEST_KEY", "")
            .replace("secrets.FIELDSTATION_API_KEY", "");
        let key = source.contains("access-key") || secrets.contains("secrets.");
        violations.check(!key, path, "uses a long-lived key");
        violations.check(!source.contains("secrets: inherit"), path, "passes on secrets");
        // These triggers run a change from a fork with the repository's permissions.
        let runs_forks = source.contains("pull_request_target") || source.contains("workflow_run");
        violations.check(
            !runs_forks,
            path,
            "runs changes from forks with the repository's permissions",
        );
        for (name, job) in members(&workflow["jobs"]) {
            let has_timeout = job["timeout-minutes"].as_i64().is_some() || job["uses"].is_string();
            violations.check(has_timeout, path, format!("the job {name} has no timeout"));
            violations.check(
                job["permissions"].is_null(),
                path,
                format!("the job {name} has its own permissions"),
            );
        }
    }
    violations
}

pub fn releases_and_deployments_use_no_cache(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (path, source) in subject.under(".github/workflows/") {
        let releases = source.contains("make release") || source.contains("--release");
        let deploys = source.contains("id-token: write");
        let code = source.lines().filter(|line| !line.trim_start().starts_with('#'));
        let caches = code.filter(|line| line.contains("cache")).count() > 0;
        violations.check(!caches || !(releases || deploys), path, "restores a cache");
    }
    violations
}

pub fn production_deploys_only_main(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    let path = ".github/workflows/prod.yml";
    let workflow = yaml(subject.file(path));
    let steps = workflow["jobs"]["canary"]["steps"].as_array().map_or(&[][..], Vec::as_slice);
    let position = |what: &str| steps.iter().position(|step| text(&step["run"]).contains(what));
    let first = steps.first().map(|step| text(&step["run"])).unwrap_or_default();
    for (member, value) in [
        (".path", ".github/workflows/staging.yml"),
        (".head_repository.full_name", "\"$GITHUB_REPOSITORY\""),
        (".event", "push"),
        (".head_branch", "main"),
        (".conclusion", "success"),
    ] {
        let check = format!("test \"$(jq -r {member} <<< \"$run\")\" = {value} || {{");
        violations.check(first.contains(&check), path, format!("does not check {member}"));
    }
    let ancestor = position("git merge-base --is-ancestor HEAD refs/remotes/origin/main || {");
    let work = position("make ").or_else(|| position("sam deploy"));
    let checked = ancestor.is_some_and(|ancestor| work.is_some_and(|work| ancestor < work));
    violations.check(checked, path, "does not check that the commit is on main");
    let staging = yaml(subject.file(".github/workflows/staging.yml"));
    // The key `on` is text because the reader follows YAML 1.2. YAML 1.1 reads it as true.
    let pushes = &staging["on"]["push"];
    violations.check(
        pushes["branches"] == serde_json::json!(["main"]) && pushes["tags"].is_null(),
        ".github/workflows/staging.yml",
        "runs on pushes to other branches than main",
    );
    violations
}

/// The modules that may print, because they escape everything.
const WRITERS: [&str; 1] = ["fieldctl/src/output.rs"];

pub fn output_is_escaped(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    let printing = ["println!(", "print!(", "stdout()", "stderr()", "ProgressBar::", "Term::"];
    for (path, source) in subject.under("fieldctl/src/") {
        for what in printing {
            let prints = !WRITERS.contains(&path) && source.contains(what);
            violations.check(!prints, path, format!("{what} prints without escaping"));
        }
    }
    for (path, source) in subject.under("tests/src/").chain(subject.under("tools/demo/src/")) {
        let prints = source.contains("println!(") || source.contains("print!(");
        violations.check(!prints, path, "prints without escaping; use terminal::print");
        for bar in ["set_message(", "set_prefix("] {
            let texts = source.split(bar).skip(1);
            let escaped = texts.into_iter().all(|text| text.starts_with("terminal::line("));
            violations.check(escaped, path, format!("{bar} shows text without escaping"));
        }
    }
    violations
}

pub fn local_stack_is_local(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    let path = "tools/local/stack.py";
    let source = subject.file(path);
    // MQTT has no setting for its interface.
    let mqtt_is_off = "\"IOT_MTLS_ENABLED\": \"0\",";
    for needed in ["HOST = \"127.0.0.1\"\n", "\"BIND_HOST\": HOST,", mqtt_is_off] {
        violations.check(source.contains(needed), path, format!("does not contain {needed:?}"));
    }
    for (path, source) in subject.under("tools/local/") {
        let all_interfaces = ["0.0.0.0", "\"::\""].iter().any(|address| source.contains(address));
        violations.check(!all_interfaces, path, "listens on all network interfaces");
    }
    violations
}
