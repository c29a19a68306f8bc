//! The API key of the person who runs `fieldctl`.
//!
//! `fieldctl` uses the first of these that exists:
//!
//! 1. The value of the environment variable [`VARIABLE`].
//! 2. The key file's entry for the API.
//! 3. A new administrator's key. `fieldctl` creates it with the first administrator's secret, and writes it to the key
//!    file.
//!
//! If the API does not accept an administrator's key from the key file, `fieldctl` replaces it in the same way. It
//! replaces no other credential, because the new key would have more rights.
//!
//! No argument takes a key, because all users of a machine can see the arguments of its processes.

use std::{
    collections::BTreeMap,
    env,
    fmt::{self, Write as _},
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use contracts::{Scope, names, operators::KeyRequest};
use fault::AwsErrorKind;
use hyper::header::HeaderValue;
use keys::{ApiKey, BOOTSTRAP_PREFIX, Kind};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use crate::{
    api::Call,
    error::{CliError, Exit, aws},
    output,
    stack::{DEPLOYMENT_DOCS, Stack},
};

/// The environment variable with a key, or with a token of the API's issuer.
pub const VARIABLE: &str = "FIELDSTATION_API_KEY";
/// The lifetime of the keys that `fieldctl` creates for itself. It is the longest that the API allows.
const LIFETIME_DAYS: u32 = 90;

/// A secret text that is sent as `Authorization: Bearer <text>`: a key, a token, or the first administrator's secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Credential(String);

/// Prints a placeholder instead of the secret text.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(hidden)")
    }
}

impl Credential {
    /// Checks a text that a person provided. The error does not contain the text.
    fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("it contains a space or another character that no key has".to_owned());
        }
        if ApiKey::is_key_like(text) && !text.starts_with(BOOTSTRAP_PREFIX) {
            ApiKey::parse(text).map_err(|error| error.to_string())?;
        }
        Ok(Self(text.to_owned()))
    }

    /// Returns whether this is an administrator's key.
    fn is_administrators_key(&self) -> bool {
        self.0.starts_with(Kind::Admin.prefix())
    }

    /// Returns the value of the header `Authorization`.
    pub(crate) fn header(&self) -> Result<HeaderValue, CliError> {
        let mut value = HeaderValue::try_from(format!("Bearer {}", self.0))
            .map_err(|_| CliError::usage("the API key contains a character that no key has"))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

/// Where a credential comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// The environment variable.
    Environment,
    /// The key file.
    File,
    /// It was created by this command.
    New,
}

/// The credential that this command uses.
#[derive(Clone, Debug)]
pub(crate) struct CurrentKey {
    pub(crate) credential: Credential,
    origin: Origin,
}

/// The file with the keys of the current user, by API URL. Only its owner may read it.
#[derive(Debug)]
struct KeyFile {
    path: PathBuf,
}

/// An entry of the key file.
#[derive(Serialize, Deserialize)]
struct Entry {
    key: Credential,
}

type Entries = BTreeMap<String, Entry>;

impl KeyFile {
    /// Returns the file in the folder that the XDG Base Directory Specification names. The file need not exist.
    fn locate() -> Result<Self, CliError> {
        // The specification says that a relative path is ignored.
        let folder =
            |variable| env::var_os(variable).map(PathBuf::from).filter(|it| it.is_absolute());
        let config = folder("XDG_CONFIG_HOME").or_else(|| Some(folder("HOME")?.join(".config")));
        let config = config.ok_or_else(|| {
            CliError::usage(
                "there is no folder for the key file: neither XDG_CONFIG_HOME nor HOME is set",
            )
            .advise(format!("set one of them, or set {VARIABLE} to a key of the API"))
        })?;
        Ok(Self { path: config.join("fieldstation").join("keys.json") })
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }

    fn unusable(&self, what: &str, error: &dyn fmt::Display) -> CliError {
        CliError::usage(format!("{} {what}: {error}", self.path.display())).advise(format!(
            "correct it, set XDG_CONFIG_HOME to another folder, or set {VARIABLE} to a key of the API"
        ))
    }

    /// Reads the entries. A file that does not exist has none.
    fn read(&self) -> Result<Entries, CliError> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Entries::new()),
            Err(error) => return Err(self.unusable("can't be read", &error)),
        };
        let mode = fs::metadata(&self.path)
            .map_err(|error| self.unusable("can't be read", &error))?
            .permissions()
            .mode();
        if mode & 0o077 != 0 {
            return Err(self
                .unusable(
                    "has keys that other users can access",
                    &format!("its mode is {:o}", mode & 0o777),
                )
                .advise(format!(
                    "revoke its keys if others had access, then: chmod 600 {}",
                    self.path.display()
                )));
        }
        // An error of serde can quote the content, so only the position is shown.
        serde_json::from_slice(&text).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            self.unusable("is not a key file", &format!("line {line}, column {column}"))
        })
    }

    /// Locks the key file for this process until the returned handle is dropped. The lock is a separate file, because
    /// `write` replaces the key file. Creates the folder if it does not exist.
    async fn lock(&self) -> Result<File, CliError> {
        let failed = |error: io::Error| self.unusable("can't be written", &error);
        DirBuilder::new().recursive(true).mode(0o700).create(self.folder()).map_err(failed)?;
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(false).mode(0o600);
        let lock = options.open(self.path.with_extension("lock")).map_err(failed)?;
        // Waiting for another process on this thread would block the runtime, which has no other thread.
        let locked = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await;
        locked.map_err(io::Error::other).flatten().map_err(failed)
    }

    /// Replaces the file atomically: a reader sees all of the old or all of the new content. The caller must hold the
    /// lock.
    fn write(&self, entries: &Entries) -> io::Result<()> {
        let new = self.path.with_extension("new");
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        // The mode above applies only to a file that is created. An interrupted run may have left one with another
        // mode.
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(serde_json::to_string_pretty(entries)?.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &self.path)
    }
}

/// Returns the name of a key that `fieldctl` creates for itself. The name contains the user and the machine.
fn own_name() -> String {
    let user = ["USER", "LOGNAME"].iter().find_map(|name| env::var(name).ok());
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let name = format!("fieldctl {}@{host}", user.as_deref().unwrap_or("unknown"));
    name.chars().filter(|c| !terminal::is_unsafe(*c)).take(MAX_NAME).collect()
}

/// The maximum length of the names of keys that `fieldctl` creates for itself, in characters.
const MAX_NAME: usize = 100;

impl Stack {
    /// Returns the key for the API. Creates one if there is none.
    pub(crate) async fn api_key(&self) -> Result<CurrentKey, CliError> {
        let mut current = self.api_key.lock().await;
        if let Some(key) = &*current {
            return Ok(key.clone());
        }
        Ok(current.insert(self.find_key().await?).clone())
    }

    /// Returns the key to use after the API has refused `refused` with status 401. An administrator's key from the key
    /// file is replaced; any other refused key is an error.
    pub(crate) async fn api_key_after(&self, refused: &CurrentKey) -> Result<CurrentKey, CliError> {
        let mut current = self.api_key.lock().await;
        // Another call of this command may have replaced the key already.
        if let Some(key) = current.as_ref().filter(|key| key.credential != refused.credential) {
            return Ok(key.clone());
        }
        match refused.origin {
            Origin::File if refused.credential.is_administrators_key() => {
                let key = self.stored_or_new_key(Some(&refused.credential)).await?;
                Ok(current.insert(key).clone())
            }
            Origin::Environment | Origin::File | Origin::New => Err(refused.not_accepted()),
        }
    }

    async fn find_key(&self) -> Result<CurrentKey, CliError> {
        if let Some(text) = env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
            let credential = text.to_str().ok_or_else(|| "it is not text".to_owned());
            let credential = credential.and_then(Credential::parse).map_err(|error| {
                CliError::usage(format!("the value of {VARIABLE} is not an API key: {error}"))
                    .advise("use the key as it was shown when it was created")
            })?;
            return Ok(CurrentKey { credential, origin: Origin::Environment });
        }
        match KeyFile::locate()?.read()?.remove(&self.api_url()?) {
            Some(entry) => Ok(CurrentKey { credential: entry.key, origin: Origin::File }),
            None => self.stored_or_new_key(None).await,
        }
    }

    /// Returns the key that another process has stored in the meantime, if it is not `refused`. Otherwise creates a key
    /// and stores it. With the lock, two processes that start at the same time create only one key.
    async fn stored_or_new_key(
        &self,
        refused: Option<&Credential>,
    ) -> Result<CurrentKey, CliError> {
        let (file, url) = (KeyFile::locate()?, self.api_url()?);
        let _lock = file.lock().await?;
        let mut entries = file.read()?;
        if let Some(entry) = entries.get(&url).filter(|entry| Some(&entry.key) != refused) {
            return Ok(CurrentKey { credential: entry.key.clone(), origin: Origin::File });
        }
        let (key, mut created) = self.create_own_key().await?;
        let credential = Credential(key.reveal().to_owned());
        entries.insert(url, Entry { key: credential.clone() });
        file.write(&entries).map_err(|error| {
            file.unusable(&format!("can't hold the new key {}", key.visible_prefix()), &error)
        })?;
        write!(created, "; it is in {}", file.path.display()).unwrap_or_default();
        output::print_notice(&created);
        Ok(CurrentKey { credential, origin: Origin::New })
    }

    /// Creates an administrator's key for this user with the first administrator's secret. Also returns a sentence
    /// about the new key, for the user.
    async fn create_own_key(&self) -> Result<(ApiKey, String), CliError> {
        let name = own_name();
        let request = KeyRequest {
            name: name.clone(),
            scope: Scope::Admin,
            expires_in_days: Some(LIFETIME_DAYS),
            replaces: None,
            overlap_seconds: None,
            operator_id: None,
        };
        let call = Call::post("/keys", json!(request).to_string())
            .idempotency_key(Uuid::new_v4().to_string());
        let response = self.exchange(&call, &self.first_administrator().await?).await?;
        if response.status != 201 {
            let secret = self.named(names::FIRST_ADMINISTRATOR);
            let error = CliError::refused(response.status, &response.body);
            let message =
                format!("no key can be created with the secret {secret}: {}", error.message);
            let advice = match response.status {
                // An earlier attempt with this idempotency key created a key, but the response was lost.
                409 => "run the command again, then revoke the key that nobody has".to_owned(),
                _ => format!("set {VARIABLE} to a key of the API"),
            };
            return Err(CliError { message, ..error }.advise(advice));
        }
        // The response is not shown in an error, because it contains the key.
        let key = response.body["key"].as_str().and_then(|key| ApiKey::parse(key).ok());
        let key = key.ok_or_else(|| {
            CliError::new(
                Exit::Failed,
                "the API's response to the creation of a key has no valid key",
            )
        })?;
        let expiry = response.body["expiresAt"].as_str().unwrap_or("an unknown time");
        let created = format!(
            "created the administrator's key {} with the name {name:?}, valid until {expiry}",
            key.visible_prefix()
        );
        Ok((key, created))
    }

    async fn first_administrator(&self) -> Result<Credential, CliError> {
        let name = self.named(names::FIRST_ADMINISTRATOR);
        let secrets = aws_sdk_secretsmanager::Client::new(self.config());
        let read = secrets.get_secret_value().secret_id(&name).send().await;
        let failed = format!("there is no API key, and the secret {name} can't be read");
        let read = read.map_err(|error| {
            let kind = AwsErrorKind::classify(&error);
            let error = aws(&failed)(error);
            match (kind, error.exit) {
                (AwsErrorKind::Denied, _) => error.advise(format!(
                    "set {VARIABLE} to a key of the API; to create a key, your role needs \
                     secretsmanager:GetSecretValue on the secret {name}"
                )),
                (_, Exit::NotFound) => CliError { exit: Exit::Aws, ..error }.advise(format!(
                    "deploy the service operators ({DEPLOYMENT_DOCS}), or set {VARIABLE} to a key of the API"
                )),
                _ => error,
            }
        })?;
        let text = read.secret_string().map(str::trim).unwrap_or_default();
        Ok(Credential(format!("{BOOTSTRAP_PREFIX}{text}")))
    }
}

impl CurrentKey {
    /// Returns the error for a key that the API refuses with status 401.
    pub(crate) fn not_accepted(&self) -> CliError {
        let wrong = "it is wrong, revoked, expired, or of another environment";
        let new = "fieldctl then creates an administrator's key if your role may read the first administrator's secret";
        match self.origin {
            Origin::Environment => {
                CliError::new(Exit::Aws, format!("the API does not accept the key in {VARIABLE}"))
                    .advise(format!(
                        "{wrong}: set {VARIABLE} to a valid key, or unset it: if the key file has no entry \
                         for the API, {new}"
                    ))
            }
            Origin::File if !self.credential.is_administrators_key() => match KeyFile::locate() {
                Ok(KeyFile { path }) => {
                    let message = format!("the API does not accept the key in {}", path.display());
                    CliError::new(Exit::Aws, message).advise(format!(
                        "{wrong}: write a valid key to that file, set {VARIABLE} to one, or remove the \
                         API's entry from that file: {new}"
                    ))
                }
                Err(error) => error,
            },
            Origin::File | Origin::New => {
                CliError::new(Exit::Aws, "the API does not accept a key that was just created")
                    .advise("wait a minute, then run the command again; `fieldctl logs --function authorise-caller --errors` shows problems of the authorizer")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_checked_without_quoting_it() {
        let key = ApiKey::generate(Kind::Operator).expect("random numbers");
        for good in
            [key.reveal(), "fsb_any-secret", "eyJhbGciOi.J9.e30", &format!("{}\n", key.reveal())]
        {
            assert!(Credential::parse(good).is_ok(), "{good}");
        }
        let short = &key.reveal()[..39];
        for wrong in ["", " ", "two words", "ümlaut", "line\nbreak", short] {
            let error = Credential::parse(wrong).expect_err(wrong);
            assert!(wrong.trim().is_empty() || !error.contains(wrong), "{error}");
        }
    }

    #[test]
    fn a_credential_is_hidden_in_debug_output() {
        let key = CurrentKey { credential: Credential("hush".to_owned()), origin: Origin::File };
        let header = key.credential.header().expect("a header");
        assert_eq!(header, "Bearer hush");
        assert!(!format!("{key:?} {header:?}").contains("hush"));
    }
}
