//! Tests where `fieldctl` gets its API key from, and the commands `fieldctl operators` and `fieldctl keys`. Runs the real
//! binary against a fake of AWS.

mod cloud;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use cloud::{API_KEY, Cloud, ReceivedRequest, new_key};
use contracts::{OperatorId, operators::KeyId};
use keys::{ApiKey, Kind};
use serde_json::{Value, json};
use tempfile::TempDir;

type FakeResponse = (u16, Value, Vec<(&'static str, &'static str)>);

/// The text of the first administrator's secret.
const SECRET: &str = "firstAdministratorsSecretText123";

/// A fake API that accepts some keys, and a home folder for `fieldctl`.
struct Fake {
    cloud: Cloud,
    home: TempDir,
    keys: Arc<Mutex<KeysOfApi>>,
}

/// The keys of the fake API.
#[derive(Default)]
struct KeysOfApi {
    accepted: Vec<ApiKey>,
    created: Vec<ApiKey>,
}

/// Answers to requests that have an accepted key.
fn respond(request: &ReceivedRequest) -> FakeResponse {
    let key_id = KeyId::from_request(OperatorId::DEFAULT, "key-1");
    let key = json!({
        "keyId": key_id, "prefix": "fsl_abcdefgh", "name": "roof", "scope": "operator",
        "createdAt": "2026-01-01T00:00:00.000Z", "expiresAt": "2026-01-31T00:00:00.000Z",
        "lastUsedOn": "2026-01-02",
    });
    let operator = json!({
        "operatorId": OperatorId::registered("a"), "name": "Alps", "plan": "standard",
        "status": "ACTIVE", "createdAt": "2026-01-01T00:00:00.000Z",
    });
    let body = match (request.method.as_str(), request.operation.as_str()) {
        ("GET", "/local/keys") => json!({ "keys": [key] }),
        ("DELETE", _) => json!({ "keyId": key_id, "prefix": "fsl_abcdefgh",
            "revokedAt": "2026-01-03T00:00:00.000Z" }),
        ("GET", "/local/operators") => json!({ "operators": [operator] }),
        (_, path) if path.starts_with("/local/operators") => operator,
        ("GET", "/local/audit") => {
            let entry = |number: u32| {
                json!({ "at": format!("2026-01-0{number}T00:00:00.000Z"), "actor": "jwt:ada",
                    "action": "CreateKey", "target": format!("target {number}"),
                    "details": "scope read" })
            };
            if request.query.contains("next=") {
                json!({ "entries": [entry(1)] })
            } else {
                json!({ "entries": [entry(3), entry(2)], "next": "n" })
            }
        }
        _ => json!({ "sites": [] }),
    };
    (200, body, vec![])
}

fn unauthorized() -> FakeResponse {
    (401, json!({ "title": "Unauthorized", "status": 401 }), vec![("www-authenticate", "Bearer")])
}

fn aws_error(code: &'static str) -> FakeResponse {
    (400, json!({ "__type": code, "message": "no" }), vec![("x-amzn-errortype", code)])
}

impl Fake {
    /// Starts a fake that answers to the read of the secret with `secret`, and accepts created keys if `accept_new`.
    async fn with(secret: fn() -> FakeResponse, accept_new: bool) -> Self {
        let all = Arc::new(Mutex::new(KeysOfApi {
            accepted: vec![API_KEY.clone()],
            ..KeysOfApi::default()
        }));
        let keys = Arc::clone(&all);
        let cloud = Cloud::start(move |request| {
            if request.operation == "secretsmanager.GetSecretValue" {
                return secret();
            }
            if request.operation.starts_with("AWSStepFunctions") {
                return aws_error("ExecutionDoesNotExist");
            }
            let mut keys = keys.lock().expect("no panic");
            let is_bootstrap = request.authorization == format!("Bearer fsb_{SECRET}");
            let is_accepted = keys
                .accepted
                .iter()
                .any(|key| request.authorization == format!("Bearer {}", key.reveal()));
            let creates_key =
                (request.method.as_str(), request.operation.as_str()) == ("POST", "/local/keys");
            if creates_key && (is_bootstrap || is_accepted) {
                let key = new_key(Kind::Admin);
                keys.created.push(key.clone());
                if accept_new {
                    keys.accepted.push(key.clone());
                }
                let body: Value = serde_json::from_str(&request.body).expect("JSON");
                let created = json!({
                    "keyId": KeyId::from_request(OperatorId::DEFAULT, key.visible_prefix()),
                    "operatorId": OperatorId::DEFAULT, "name": body["name"], "scope": body["scope"],
                    "prefix": key.visible_prefix(), "createdAt": "2026-01-01T00:00:00.000Z",
                    "expiresAt": "2026-04-01T00:00:00.000Z", "key": key.reveal(),
                });
                return (201, created, vec![]);
            }
            if is_accepted { respond(request) } else { unauthorized() }
        })
        .await;
        Self { cloud, home: TempDir::new().expect("a folder"), keys: all }
    }

    async fn start() -> Self {
        Self::with(|| (200, json!({ "SecretString": SECRET }), vec![]), true).await
    }

    /// Runs a command with that value of the environment variable. Checks that no output has a key or the secret.
    async fn run(&self, args: &[&str], variable: Option<&str>) -> (i32, String, String) {
        let (code, out, err) = self.run_showing_keys(args, variable).await;
        let mut secrets = vec![SECRET.to_owned()];
        secrets.extend(self.keys.lock().expect("no panic").created.iter().map(hidden_part));
        secrets.push(hidden_part(&API_KEY));
        secrets.extend(variable.map(str::to_owned).filter(|value| !value.trim().is_empty()));
        for secret in secrets {
            let shown = out.contains(&secret) || err.contains(&secret);
            assert!(!shown, "{secret} is shown by {args:?}:\n{out}\n{err}");
        }
        (code, out, err)
    }

    async fn run_showing_keys(
        &self,
        args: &[&str],
        variable: Option<&str>,
    ) -> (i32, String, String) {
        let mut command = self.cloud.command(args);
        command.env("HOME", self.home.path()).env_remove("FIELDSTATION_API_KEY");
        if let Some(value) = variable {
            command.env("FIELDSTATION_API_KEY", value);
        }
        let output = command.output().await.expect("fieldctl runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
    }

    /// Returns the key that was created last.
    fn last_key(&self) -> ApiKey {
        self.keys.lock().expect("no panic").created.last().expect("a key").clone()
    }

    fn file(&self) -> PathBuf {
        self.home.path().join(".config/fieldstation/keys.json")
    }

    fn stored(&self) -> Value {
        serde_json::from_slice(&fs::read(self.file()).expect("the key file")).expect("JSON")
    }

    async fn url(&self) -> String {
        self.cloud.run(&["outputs", "ApiUrl"]).await.1.trim().to_owned()
    }

    /// Writes the key file with that key for this API, and one for another API.
    async fn store(&self, key: &ApiKey) {
        let entries = json!({ self.url().await: { "key": key.reveal() },
            "https://other.example/v1": { "key": "of another API" } });
        fs::create_dir_all(self.file().parent().expect("a folder")).expect("a folder");
        fs::write(self.file(), entries.to_string()).expect("the key file");
        self.set_mode(0o600);
    }

    fn set_mode(&self, mode: u32) {
        fs::set_permissions(self.file(), fs::Permissions::from_mode(mode)).expect("the mode");
    }

    /// Returns the bodies of the requests that created a key.
    fn created(&self) -> Vec<Value> {
        let posts = self.cloud.requests("/local/keys").into_iter().filter(|it| it.method == "POST");
        posts.map(|it| serde_json::from_str(&it.body).expect("JSON")).collect()
    }

    /// Returns the header of each request for the list of sites.
    fn authorizations(&self) -> Vec<String> {
        self.cloud.requests("/local/sites").into_iter().map(|it| it.authorization).collect()
    }
}

/// Returns the part of a key that no output may contain.
fn hidden_part(key: &ApiKey) -> String {
    key.reveal()[key.visible_prefix().len()..].to_owned()
}

fn bearer(key: &ApiKey) -> String {
    format!("Bearer {}", key.reveal())
}

const LIST: [&str; 2] = ["sites", "list"];

#[tokio::test]
async fn a_key_in_the_environment_is_used_before_all_others() {
    let fake = Fake::start().await;
    fake.store(&new_key(Kind::Admin)).await;
    let value = format!("{}\n", API_KEY.reveal());
    let (code, _, err) = fake.run(&LIST, Some(&value)).await;
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(fake.authorizations(), [bearer(&API_KEY)]);
    assert_eq!(fake.cloud.requests("GetSecretValue").len(), 0);
    assert_eq!(fake.cloud.requests("execute-api").len(), 0);
}

#[tokio::test]
async fn a_key_in_the_environment_that_is_not_accepted_is_an_error() {
    let fake = Fake::start().await;
    for value in [new_key(Kind::Operator).reveal(), "a.web.token"] {
        let (code, out, err) = fake.run(&LIST, Some(value)).await;
        assert_eq!((code, out.as_str()), (5, ""), "{err}");
        for part in ["does not accept the key in FIELDSTATION_API_KEY", "revoked, expired", "unset"]
        {
            assert!(err.contains(part), "{part}: {err}");
        }
    }
    assert_eq!(fake.authorizations().len(), 2, "no call is repeated");
    assert!(fake.created().is_empty() && !fake.file().exists());
}

#[tokio::test]
async fn a_text_that_is_no_key_is_not_sent() {
    let fake = Fake::start().await;
    let key = new_key(Kind::Operator);
    for value in [&key.reveal()[..39], "two words", &key.reveal().replace("fso_", "fsa_")] {
        let (code, _, err) = fake.run(&LIST, Some(value)).await;
        assert_eq!(code, 2, "{err}");
        assert!(err.contains("the value of FIELDSTATION_API_KEY is not an API key"), "{err}");
    }
    assert!(fake.authorizations().is_empty());
}

#[tokio::test]
async fn the_key_file_has_a_key_for_each_api() {
    let fake = Fake::start().await;
    fake.store(&API_KEY).await;
    for variable in [None, Some("")] {
        let (code, _, err) = fake.run(&LIST, variable).await;
        assert_eq!((code, err.as_str()), (0, ""));
    }
    assert_eq!(fake.authorizations(), [bearer(&API_KEY), bearer(&API_KEY)]);
    assert!(fake.created().is_empty());
    let files = fs::read_dir(fake.file().parent().expect("a folder")).expect("its files");
    assert_eq!(files.count(), 1, "a command that has a key needs no writable folder");
}

#[tokio::test]
async fn without_a_key_one_is_created_and_kept() {
    let fake = Fake::start().await;
    let (code, _, err) = fake.run(&LIST, None).await;
    assert_eq!(code, 0, "{err}");
    let key = fake.last_key();
    for part in ["created the administrator's key", key.visible_prefix(), "keys.json", "2026-04-01"]
    {
        assert!(err.contains(part), "{part}: {err}");
    }
    let read = fake.cloud.requests("GetSecretValue");
    assert_eq!(read.len(), 1);
    assert!(read[0].body.contains("\"test-first-administrator\""), "{}", read[0].body);
    let created = fake.created();
    assert_eq!(created.len(), 1);
    assert_eq!((&created[0]["scope"], &created[0]["expiresInDays"]), (&json!("admin"), &json!(90)));
    let name = created[0]["name"].as_str().expect("a name");
    assert!(name.starts_with("fieldctl tester@") && name.len() > 16, "{name}");

    assert_eq!(fake.stored(), json!({ fake.url().await: { "key": key.reveal() } }));
    let mode = |path: &std::path::Path| {
        fs::metadata(path).expect("it exists").permissions().mode() & 0o777
    };
    let folder = fake.file().parent().expect("a folder").to_owned();
    assert_eq!((mode(&fake.file()), mode(&folder)), (0o600, 0o700));

    let (code, _, err) = fake.run(&LIST, None).await;
    assert_eq!((code, err.as_str()), (0, ""), "the second command has a key");
    assert_eq!(fake.authorizations(), [bearer(&key), bearer(&key)]);
    assert_eq!(fake.created().len(), 1);
}

#[tokio::test]
async fn two_commands_at_once_create_one_key() {
    let fake = Fake::start().await;
    let runs = tokio::join!(fake.run(&LIST, None), fake.run(&LIST, None), fake.run(&LIST, None));
    for (code, _, err) in [runs.0, runs.1, runs.2] {
        assert_eq!(code, 0, "{err}");
    }
    assert_eq!(fake.created().len(), 1);
}

#[tokio::test]
async fn a_stored_administrators_key_that_is_not_accepted_is_replaced_once() {
    let fake = Fake::start().await;
    let revoked = new_key(Kind::Admin);
    fake.store(&revoked).await;
    let (code, _, err) = fake.run(&LIST, None).await;
    assert_eq!(code, 0, "{err}");
    let key = fake.last_key();
    assert_eq!(fake.authorizations(), [bearer(&revoked), bearer(&key)]);
    assert_eq!(fake.stored()[fake.url().await]["key"], key.reveal());
    assert_eq!(fake.stored()["https://other.example/v1"]["key"], "of another API");

    // The key expires later.
    fake.keys.lock().expect("no panic").accepted.clear();
    let (code, _, err) = fake.run(&LIST, None).await;
    assert_eq!(code, 0, "{err}");
    assert_eq!(fake.created().len(), 2);
}

#[tokio::test]
async fn a_stored_key_of_another_scope_is_not_replaced_by_an_administrators_key() {
    for kind in [Kind::Operator, Kind::Read, Kind::Logger] {
        let fake = Fake::start().await;
        let expired = new_key(kind);
        fake.store(&expired).await;
        let (code, out, err) = fake.run(&LIST, None).await;
        assert_eq!((code, out.as_str()), (5, ""), "{err}");
        let path = fake.file().display().to_string();
        for part in ["does not accept the key in", &path, "FIELDSTATION_API_KEY", "remove"] {
            assert!(err.contains(part), "{part}: {err}");
        }
        assert_eq!(fake.authorizations(), [bearer(&expired)], "{kind:?}");
        assert_eq!(fake.cloud.requests("GetSecretValue").len(), 0, "{kind:?}");
        assert!(fake.created().is_empty(), "{kind:?}");
        assert_eq!(fake.stored()[fake.url().await]["key"], expired.reveal());
    }
}

#[tokio::test]
async fn a_new_key_that_is_not_accepted_is_an_error() {
    let fake = Fake::with(|| (200, json!({ "SecretString": SECRET }), vec![]), false).await;
    fake.store(&new_key(Kind::Admin)).await;
    let (code, _, err) = fake.run(&LIST, None).await;
    assert_eq!(code, 5, "{err}");
    assert!(err.contains("does not accept a key that was just created"), "{err}");
    assert_eq!((fake.created().len(), fake.authorizations().len()), (1, 2));
}

#[tokio::test]
async fn a_secret_that_can_not_be_read_is_explained() {
    type Case = (fn() -> FakeResponse, &'static str);
    let cases: [Case; 2] = [
        (|| aws_error("AccessDeniedException"), "secretsmanager:GetSecretValue"),
        (|| aws_error("ResourceNotFoundException"), "deploy the service operators"),
    ];
    let registration = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/events/import-site.json");
    for (secret, advice) in cases {
        let fake = Fake::with(secret, true).await;
        // The second command has its own advice for a request that may have been executed. It does not apply here,
        // because no request was sent.
        for command in [&LIST[..], &["sites", "onboard", registration]] {
            let (code, _, err) = fake.run(command, None).await;
            assert_eq!(code, 5, "{err}");
            for part in [advice, "test-first-administrator", "FIELDSTATION_API_KEY"] {
                assert!(err.contains(part), "{part}: {err}");
            }
        }
        assert!(fake.created().is_empty() && !fake.file().exists());
    }
}

#[tokio::test]
async fn a_wrong_secret_is_explained() {
    let fake = Fake::with(|| (200, json!({ "SecretString": "old" }), vec![]), true).await;
    let (code, _, err) = fake.run(&LIST, None).await;
    assert_eq!(code, 5, "{err}");
    assert!(
        err.contains("no key can be created with the secret test-first-administrator"),
        "{err}"
    );
}

#[tokio::test]
async fn a_key_file_that_others_can_read_or_that_is_broken_is_refused() {
    let fake = Fake::start().await;
    fake.store(&API_KEY).await;
    fake.set_mode(0o640);
    let (code, _, err) = fake.run(&LIST, None).await;
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("its mode is 640") && err.contains("chmod 600"), "{err}");

    fake.set_mode(0o600);
    let key = API_KEY.reveal();
    for broken in [key.to_owned(), json!({ "a": key }).to_string(), json!([key]).to_string()] {
        fs::write(fake.file(), &broken).expect("the key file");
        let (code, _, err) = fake.run(&LIST, None).await;
        assert_eq!(code, 2, "{err}");
        assert!(err.contains("is not a key file: line 1"), "{err}");
    }

    // If a key can't be kept, none is created.
    fs::remove_dir_all(fake.home.path().join(".config")).expect("removed");
    fs::write(fake.home.path().join(".config"), "").expect("a file");
    let (code, _, err) = fake.run(&LIST, None).await;
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("XDG_CONFIG_HOME") && fake.created().is_empty(), "{err}");
}

#[tokio::test]
async fn a_created_key_is_shown_once() {
    let fake = Fake::start().await;
    let variable = Some(API_KEY.reveal());
    for options in [&[][..], &["--json"]] {
        let command = ["keys", "create", "roof", "--scope", "read", "--expires-in-days", "30"];
        let (code, out, err) = fake.run_showing_keys(&[options, &command].concat(), variable).await;
        assert_eq!(code, 0, "{err}");
        let key = fake.last_key();
        assert_eq!(out.matches(key.reveal()).count(), 1, "{out}");
        assert!(err.contains("it can't be shown again") && !err.contains(key.reveal()), "{err}");
        let request = json!({ "name": "roof", "scope": "read", "expiresInDays": 30 });
        assert_eq!(fake.created().pop().expect("a request"), request);
        if !options.is_empty() {
            let created: Value = serde_json::from_str(&out).expect("JSON");
            assert_eq!(created["key"], key.reveal());
        }
    }
    let logger = ["keys", "create", "x", "--scope", "logger:55115657-a433-553f-959b-29ae8465145d"];
    let (code, ..) =
        fake.run_showing_keys(&[&logger[..], &["--operator", "alps"]].concat(), variable).await;
    let request =
        json!({ "name": "x", "scope": logger[4], "operatorId": OperatorId::registered("a") });
    assert_eq!((code, fake.created().pop()), (0, Some(request)));

    let (code, _, err) = fake.run(&["keys", "create", "x", "--scope", "root"], variable).await;
    assert_eq!(code, 2);
    assert!(err.contains("\"root\" is not a scope; give admin"), "{err}");
}

#[tokio::test]
async fn a_rotated_key_keeps_its_name_scope_and_lifetime() {
    let fake = Fake::start().await;
    let variable = Some(API_KEY.reveal());
    let old = KeyId::from_request(OperatorId::DEFAULT, "key-1");
    for (options, overlap, days) in
        [(&[][..], 86_400, 30), (&["--overlap", "15m", "--expires-in-days", "7"], 900, 7)]
    {
        let command = [&["keys", "rotate", "fsl_abcdefgh"], options].concat();
        let (code, out, err) = fake.run_showing_keys(&command, variable).await;
        assert_eq!(code, 0, "{err}");
        assert!(out.contains(fake.last_key().reveal()), "{out}");
        let request = json!({ "name": "roof", "scope": "operator", "expiresInDays": days,
            "replaces": old, "overlapSeconds": overlap });
        assert_eq!(fake.created().pop().expect("a request"), request);
    }
}

#[tokio::test]
async fn a_key_is_revoked_only_after_confirmation() {
    let fake = Fake::start().await;
    let variable = Some(API_KEY.reveal());
    let deleted = |fake: &Fake| {
        let requests = fake.cloud.requests("/local/keys/").into_iter();
        requests.filter(|it| it.method == "DELETE").map(|it| it.operation).collect::<Vec<_>>()
    };
    let (code, _, err) = fake.run(&["keys", "revoke", "roof"], variable).await;
    assert_eq!(code, 2);
    assert!(err.contains("--yes") && deleted(&fake).is_empty(), "{err}");
    let (code, out, err) = fake.run(&["keys", "revoke", "roof", "--yes"], variable).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("The key fsl_abcdefgh is revoked"), "{out}");
    let id = KeyId::from_request(OperatorId::DEFAULT, "key-1");
    assert_eq!(deleted(&fake), [format!("/local/keys/{id}")]);
    let (code, ..) = fake.run(&["keys", "revoke", "cellar", "--yes"], variable).await;
    assert_eq!(code, 3);
}

#[tokio::test]
async fn a_whole_key_as_an_argument_is_refused_and_not_repeated() {
    let fake = Fake::start().await;
    let key = new_key(Kind::Logger);
    for text in [key.reveal(), &key.reveal()[..30]] {
        let (code, out, err) =
            fake.run(&["keys", "revoke", text, "--yes"], Some(API_KEY.reveal())).await;
        assert_eq!(code, 2, "{err}");
        assert!(err.contains("the argument is a whole key"), "{err}");
        assert!(!out.contains(text) && !err.contains(text), "{out}{err}");
    }
    assert!(fake.cloud.requests("/local/keys").is_empty());
}

#[tokio::test]
async fn the_audit_trail_is_listed_page_by_page() {
    let fake = Fake::start().await;
    let variable = Some(API_KEY.reveal());
    let (code, out, err) = fake.run(&["audit", "list"], variable).await;
    assert_eq!(code, 0, "{err}");
    let lines: Vec<_> = out.lines().collect();
    assert!(lines[0].starts_with("TIME") && lines[0].contains("ACTOR"), "{out}");
    for (line, number) in lines[1..].iter().zip([3, 2, 1]) {
        assert!(line.starts_with(&format!("2026-01-0{number}T")), "{out}");
        assert!(line.contains("jwt:ada") && line.contains("CreateKey"), "{out}");
        assert!(line.contains(&format!("target {number}")), "{out}");
    }
    assert_eq!(lines.len(), 4, "{out}");

    let command = ["--json", "audit", "list", "--operator", "alps", "--limit", "2"];
    let (code, out, err) = fake.run(&command, variable).await;
    assert_eq!(code, 0, "{err}");
    let entries = out.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let targets: Vec<_> = entries.map(|entry| entry["target"].clone()).collect();
    assert_eq!(targets, ["target 3", "target 2"]);
    let requests = fake.cloud.requests("/local/audit");
    let query = format!("operatorId={}&limit=2", OperatorId::registered("a"));
    assert_eq!(requests.last().expect("a request").query, query);
}

#[tokio::test]
async fn keys_and_operators_are_listed() {
    let fake = Fake::start().await;
    let variable = Some(API_KEY.reveal());
    let (code, out, err) = fake.run(&["keys", "list"], variable).await;
    assert_eq!(code, 0, "{err}");
    let lines: Vec<_> = out.lines().collect();
    assert!(lines[0].starts_with("PREFIX") && lines[0].ends_with("LAST USED   NAME"), "{out}");
    assert!(
        lines[1].starts_with("fsl_abcdefgh  ") && lines[1].ends_with("2026-01-02  roof"),
        "{out}"
    );
    let (_, out, _) = fake.run(&["--json", "keys", "list"], variable).await;
    let key: Value = serde_json::from_str(&out).expect("one line");
    assert_eq!(key["name"], "roof");

    let (code, out, err) = fake.run(&["operators", "list"], variable).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.lines().nth(1).is_some_and(|it| it.starts_with("ACTIVE") && it.ends_with("Alps")));
    let (code, out, err) = fake.run(&["operators", "show", "alps"], variable).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains(&OperatorId::registered("a").to_string()), "{out}");
    let id = format!("/local/operators/{}", OperatorId::registered("a"));
    assert_eq!(fake.cloud.requests(&id).len(), 1);
    let (code, ..) = fake.run(&["operators", "show", "andes"], variable).await;
    assert_eq!(code, 3);

    let create = ["operators", "create", "Alps", "--plan", "standard"];
    let (code, out, err) = fake.run(&create, variable).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("Alps"), "{out}");
    let requests = fake.cloud.requests("/local/operators");
    let request = requests.iter().find(|it| it.method == "POST").expect("a request");
    assert_eq!(request.body, json!({ "name": "Alps", "plan": "standard" }).to_string());
}

#[tokio::test]
async fn an_administrator_lists_rotates_and_revokes_the_keys_of_another_operator() {
    let fake = Fake::start().await;
    let variable = Some(API_KEY.reveal());
    let operator = OperatorId::registered("a").to_string();
    let named = format!("operatorId={operator}");
    let (code, out, err) = fake.run(&["keys", "list", "--operator", "alps"], variable).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("fsl_abcdefgh"), "{out}");
    assert_eq!(fake.cloud.requests("/local/keys")[0].query, format!("{named}&limit=100"));
    let rotate = ["keys", "rotate", "roof", "--operator", "alps"];
    let (code, _, err) = fake.run_showing_keys(&rotate, variable).await;
    assert_eq!(code, 0, "{err}");
    let request = fake.created().pop().expect("a request");
    assert_eq!(request["operatorId"], operator);
    assert_eq!(request["replaces"], json!(KeyId::from_request(OperatorId::DEFAULT, "key-1")));
    let reads = fake.cloud.requests("/local/keys").into_iter().filter(|it| it.method == "GET");
    let queries: Vec<_> = reads.map(|it| it.query).collect();
    assert_eq!(queries.len(), 2);
    assert_eq!(queries[0], queries[1], "the old key is looked up among the operator's keys");

    let revoke = ["keys", "revoke", "roof", "--operator", &operator, "--yes"];
    let (code, _, err) = fake.run(&revoke, variable).await;
    assert_eq!(code, 0, "{err}");
    let requests = fake.cloud.requests("/local/keys/");
    assert_eq!((requests[0].method.as_str(), requests[0].query.as_str()), ("DELETE", &*named));
}

#[tokio::test]
async fn an_operator_is_changed_suspended_after_confirmation_and_resumed() {
    let fake = Fake::start().await;
    let variable = Some(API_KEY.reveal());
    let bodies = |fake: &Fake| {
        let requests = fake.cloud.requests("/local/operators/").into_iter();
        requests.filter(|it| it.method == "PATCH").map(|it| it.body).collect::<Vec<_>>()
    };
    for (command, expected) in [
        (&["update", "alps"][..], 2),
        (&["suspend", "alps"], 2),
        (&["update", "alps", "--plan", "community"], 0),
        (&["update", "alps", "--name", "Alpes"], 0),
        (&["suspend", "alps", "--yes"], 0),
        (&["resume", "alps"], 0),
    ] {
        let command = [&["operators"], command].concat();
        let (code, out, err) = fake.run(&command, variable).await;
        assert_eq!(code, expected, "{command:?}: {err}");
        let delayed = code == 0 && !command.contains(&"--name");
        assert_eq!(out.contains("for another two minutes"), delayed, "{out}");
    }
    let expected = [
        r#"{"plan":"community"}"#,
        r#"{"name":"Alpes"}"#,
        r#"{"status":"SUSPENDED"}"#,
        r#"{"status":"ACTIVE"}"#,
    ];
    assert_eq!(bodies(&fake), expected);
}
